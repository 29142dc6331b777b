"""What can be had without a network, from the same boxes, points and clicks."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from iog.arrays import BoolArray, UInt8Array
from iog.prompt import Click, Point, Prompt

from .protocol import Segmenter

ITERATIONS = 5
DISC = 0.03  # a click's radius as a share of the box's longer side


def grabcut(pixels: UInt8Array, prompt: Prompt) -> BoolArray:
    """OpenCV's GrabCut: background outside the box, foreground in a disc at the inside point, clicks as such discs.

    It learns the background from what lies outside the box: a box of the whole image lends it its outermost pixels.
    """
    x0, y0, x1, y1 = prompt.box.pixels
    labels = np.full(pixels.shape[:2], cv2.GC_BGD, np.uint8)
    labels[y0 : y1 + 1, x0 : x1 + 1] = cv2.GC_PR_FGD
    if (labels == cv2.GC_PR_FGD).all():
        labels[[0, -1]] = labels[:, [0, -1]] = cv2.GC_BGD
    radius = max(2, round(DISC * (max(x1 - x0, y1 - y0) + 1)))
    _disc(labels, prompt.inside, radius, cv2.GC_FGD)
    for click in prompt.clicks:
        _disc(labels, click, radius, cv2.GC_FGD if click.positive else cv2.GC_BGD)
    cv2.setRNGSeed(0)  # its mixture models start from random clusters
    bgr = np.ascontiguousarray(pixels[:, :, ::-1])
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(bgr, labels, (0, 0, 0, 0), background, foreground, ITERATIONS, cv2.GC_INIT_WITH_MASK)
    return np.asarray((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))


def _disc(labels: UInt8Array, at: Point | Click, radius: int, label: int) -> None:
    cv2.circle(labels, (int(at.x), int(at.y)), radius, (label,), -1)


def filled_box(pixels: UInt8Array, prompt: Prompt) -> BoolArray:
    """The simplest baseline: the whole box."""
    mask = np.zeros(pixels.shape[:2], bool)
    x0, y0, x1, y1 = prompt.box.pixels
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def ellipse(pixels: UInt8Array, prompt: Prompt) -> BoolArray:
    """The better simple baseline: the ellipse that touches the box's sides."""
    x0, y0, x1, y1 = prompt.box.pixels
    y, x = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    radius_x, radius_y = (x1 - x0 + 1) / 2, (y1 - y0 + 1) / 2
    return np.asarray(((x - (x0 + x1) / 2) / radius_x) ** 2 + ((y - (y0 + y1) / 2) / radius_y) ** 2 <= 1)


BASELINES: Mapping[str, Segmenter] = {"GrabCut": grabcut, "ellipse": ellipse, "filled box": filled_box}
