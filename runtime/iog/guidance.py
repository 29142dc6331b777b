"""Clicks as heatmaps, and the windows of the click branch that a click can change.

This is the only implementation: the runtime, the export's proof and the training draw with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from iog.arrays import PointArray, UInt8Array

STRIDE = 16  # of the click branch: four 3x3 convolutions of stride 2, padding 1
FIELD_REACH = 15  # an output cell k of the branch sees input pixels 16 k - 15 .. 16 k + 15


@dataclass(frozen=True)
class GuidanceSpec:
    """How clicks become heat: a Gaussian of full width at half maximum `fwhm`, in pixels of the network's frame.

    The published networks have size 512 and fwhm 10 (the authors' code calls it sigma); a model of another
    size scales it.
    """

    size: int = 512
    fwhm: float = 10.0

    def __post_init__(self) -> None:
        if self.size <= 0 or self.size % 32:
            raise ValueError(f"network size {self.size}; expected a positive multiple of 32")
        if not 0.5 <= self.fwhm <= self.size / 4:
            raise ValueError(f"guidance fwhm {self.fwhm}; expected 0.5 .. {self.size / 4:g} network pixels")

    @cached_property
    def patch(self) -> UInt8Array:
        """(2 reach + 1, 2 reach + 1): all heat of one click, floored as in the authors' refinement loop."""
        # 255 exp(-4 ln2 d^2 / fwhm^2) >= 1 up to this distance
        limit = self.fwhm * math.sqrt(math.log(255) / (4 * math.log(2)))
        d = np.arange(-math.floor(limit), math.floor(limit) + 1, dtype=np.float64)
        heat = 255 * np.exp(-4 * math.log(2) * (d[:, None] ** 2 + d[None, :] ** 2) / self.fwhm**2)
        patch: UInt8Array = np.floor(heat).astype(np.uint8)
        patch.flags.writeable = False
        return patch

    @cached_property
    def reach(self) -> int:
        """Largest distance, in pixels along an axis, at which a click has heat (14 for fwhm 10)."""
        return int(self.patch.shape[0]) // 2

    @cached_property
    def cells(self) -> int:
        """Cells per axis of the click map that a click can change: those whose field meets its heat (4)."""
        return 2 * (self.reach + FIELD_REACH) // STRIDE + 1

    @cached_property
    def window(self) -> int:
        """Side of the window of heat that these cells see (79)."""
        return STRIDE * (self.cells - 1) + 2 * FIELD_REACH + 1

    @property
    def grid(self) -> int:
        """Side of the click map, in cells."""
        return self.size // STRIDE

    def first_cells(self, points: PointArray) -> PointArray:
        """(n, 2) network points -> (n, 2) the first cell (x, y) that each can change; may be negative."""
        first: PointArray = -(-(points - self.reach - FIELD_REACH) // STRIDE)  # ceiling division
        return first

    def window_origins(self, points: PointArray) -> PointArray:
        """(n, 2) network points -> (n, 2) top-left pixel (x, y) of each point's window; may be negative."""
        origins: PointArray = STRIDE * self.first_cells(points) - FIELD_REACH
        return origins


def heatmap(points: PointArray, spec: GuidanceSpec) -> UInt8Array:
    """The heat of points, 0..255: floor(255 exp(-4 ln2 d^2 / fwhm^2)), the maximum over points.

    points: (n, 2) network pixels (x, y), n may be 0; they may lie outside the frame. Returns (size, size).
    """
    out = np.zeros((spec.size, spec.size), np.uint8)
    draw(out, points, spec)
    return out


def draw(out: UInt8Array, points: PointArray, spec: GuidanceSpec) -> None:
    """Raise `out`, any (h, w) part of the frame, to the heat of points given relative to its top-left pixel."""
    height, width = out.shape
    reach, patch = spec.reach, spec.patch
    for x, y in points.tolist():
        x0, x1 = max(x - reach, 0), min(x + reach + 1, width)
        y0, y1 = max(y - reach, 0), min(y + reach + 1, height)
        if x0 < x1 and y0 < y1:
            part = out[y0:y1, x0:x1]
            np.maximum(part, patch[y0 - y + reach : y1 - y + reach, x0 - x + reach : x1 - x + reach], out=part)


def near(origin: PointArray, points: PointArray, spec: GuidanceSpec) -> PointArray:
    """Of (n, 2) points, those with heat in the window at `origin`, (2,)."""
    at = points - origin + spec.reach
    return points[((at >= 0) & (at < spec.window + 2 * spec.reach)).all(axis=1)]


def windows(origins: PointArray, foreground: PointArray, background: PointArray, spec: GuidanceSpec) -> UInt8Array:
    """The heat of all clicks within windows: (n, 2) origins -> (n, 2, window, window), foreground then background.

    Heat outside the frame is drawn too: the click graph masks it.
    """
    out = np.zeros((len(origins), 2, spec.window, spec.window), np.uint8)
    for i, origin in enumerate(origins):
        draw(out[i, 0], foreground - origin, spec)
        draw(out[i, 1], background - origin, spec)
    return out
