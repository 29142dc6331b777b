"""What the network sees, what it answers and what would be right, side by side."""

from __future__ import annotations

import numpy as np
import torch
from iog.arrays import UInt8Array
from torch.nn import functional

from iog_export.networks import IOG

from .samples import Batch

COUNT = 4
FOREGROUND, BACKGROUND = (0, 255, 0), (255, 0, 0)  # RGB of the clicks


@torch.no_grad()
def pictures(network: IOG, batch: Batch) -> UInt8Array:
    """(COUNT S, 3 S, 3) uint8 RGB: for each of the batch's first objects its crop with clicks, mask and truth."""
    inputs, target = batch.inputs[:COUNT], batch.target[:COUNT]
    side = inputs.shape[-1]
    logits = network(inputs.to(next(network.parameters()).device).float()).logits.float()
    logits = functional.interpolate(logits, size=(side, side), mode="bilinear", align_corners=True)
    masks = (255 * torch.sigmoid(logits[:, 0])).byte().cpu().numpy()
    rows = [
        np.concatenate([_clicked(sample), _grey(mask), _grey(255 * truth[0])], axis=1)
        for sample, mask, truth in zip(inputs.numpy(), masks, target.numpy(), strict=True)
    ]
    return np.concatenate(rows)


def _clicked(sample: UInt8Array) -> UInt8Array:
    """(5, S, S) -> (S, S, 3): the heat laid over the crop, in its colour."""
    crop = sample[:3].transpose(1, 2, 0).astype(np.float32)
    for heat, colour in zip(sample[3:], (FOREGROUND, BACKGROUND), strict=True):
        weight = heat[:, :, None] / np.float32(255)
        crop = crop * (1 - weight) + np.array(colour, np.float32) * weight
    return crop.round().astype(np.uint8)


def _grey(values: UInt8Array) -> UInt8Array:
    return np.repeat(values[:, :, None], 3, axis=2)
