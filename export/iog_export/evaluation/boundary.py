"""Boundary IoU (Cheng et al., CVPR 2021): how well outlines agree, whatever the object's size."""

from __future__ import annotations

import math

import cv2
import numpy as np
from iog.arrays import BoolArray

from .protocol import iou

DILATION = 0.02  # of the image's diagonal: the paper's choice for photographs of this size


def boundary(mask: BoolArray) -> BoolArray:
    """(h, w), the mask's pixels within DILATION of its outline; the image's edge is outline where the mask meets it."""
    reach = max(1, round(DILATION * math.hypot(*mask.shape)))
    # one erosion by a square of 2 reach + 1 is `reach` erosions by 3x3, which the authors run
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    core = cv2.erode(mask.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    return np.asarray(mask & (core == 0))


def boundary_iou(mask: BoolArray, truth: BoolArray, known: BoolArray) -> float:
    """IoU of the two boundaries where the truth is known."""
    return iou(boundary(mask), boundary(truth), known)
