"""What training minimises: boundary-weighted cross-entropy and Dice on the mask, cross-entropy on the side outputs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from iog_export.networks import Outputs

BOUNDARY_WEIGHT = 4.0
BOUNDARY_WIDTH = 1 / 32  # of the frame's side, to either side of the boundary
SIDE_WEIGHT = 0.15


def loss(outputs: Outputs, target: Tensor, known: Tensor) -> Tensor:
    """The mean over the batch.

    outputs: logits (B, 1, g, g) and side logits of the same shape; target, known: (B, 1, S, S) float, 0 or 1.
    """
    side = target.shape[-1]
    logits = functional.interpolate(outputs.logits.float(), size=(side, side), mode="bilinear", align_corners=True)
    weight = known * boundary_weight(target)
    total = _cross_entropy(logits, target, weight) + _dice(logits, target, known)
    if outputs.sides:
        grid = outputs.logits.shape[-2:]
        coarse = functional.interpolate(target, size=grid, mode="bilinear", align_corners=True)
        coarse_known = (functional.interpolate(known, size=grid, mode="bilinear", align_corners=True) > 0.99).float()
        for logits in outputs.sides:
            total = total + SIDE_WEIGHT * _cross_entropy(logits.float(), coarse, coarse_known)
    return total


def boundary_weight(target: Tensor) -> Tensor:
    """(B, 1, S, S) mask -> 1 far from its boundary, rising to 1 + BOUNDARY_WEIGHT / 2 on it."""
    reach = max(round(target.shape[-1] * BOUNDARY_WIDTH), 1)
    mean = target
    for kernel, padding in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):  # a square, in strips
        mean = functional.avg_pool2d(mean, kernel, stride=1, padding=padding, count_include_pad=False)
    return 1 + BOUNDARY_WEIGHT * (target - mean).abs()


def _cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Each sample's weighted mean, so that one with little known counts as much as the others."""
    values = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return ((values * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp(min=1)).mean()


def _dice(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    scores, target = torch.sigmoid(logits) * known, target * known
    overlap = (scores * target).sum((1, 2, 3))
    return (1 - (2 * overlap + 1) / (scores.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1)).mean()
