"""How well two masks agree: on their pixels, and on their outlines (boundary IoU, Cheng et al., CVPR 2021)."""

from __future__ import annotations

import math

import cv2
import numpy as np
from iog.arrays import BoolArray

DILATION = 0.02  # of the image's diagonal: the paper's choice for photographs of this size


def iou(mask: BoolArray, truth: BoolArray, known: BoolArray) -> float:
    """Intersection over union where the truth is known."""
    union = ((mask | truth) & known).sum()
    return float((mask & truth & known).sum() / union) if union else 1.0


def boundary(mask: BoolArray) -> BoolArray:
    """(h, w), the mask's pixels within DILATION of its outline; the image's edge is outline where the mask meets it."""
    reach = max(1, round(DILATION * math.hypot(*mask.shape)))
    # one erosion by a square of 2 reach + 1 is `reach` erosions by 3x3, which the authors run
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    core = cv2.erode(mask.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    return np.asarray(mask & (core == 0))


def boundary_iou(mask: BoolArray, truth: BoolArray, known: BoolArray) -> float:
    """IoU of the two boundaries where the truth is known: as strict with large objects as with small ones.

    Unknown pixels belong to neither mask: many data sets leave a ring around objects unlabelled, and outlines anywhere
    in it are the same.
    """
    return iou(boundary(mask & known), boundary(truth & known), known)
