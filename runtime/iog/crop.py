"""From the image to the network's square frame and back.

Section 3.1 of the paper: the box is "relaxed by several pixels before cropping".
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from iog.arrays import FloatArray, PointArray, UInt8Array
from iog.cores import allowed
from iog.errors import OutOfMemory
from iog.prompt import Box, Size

P = ParamSpec("P")
R = TypeVar("R")

# Of a crop that is made as a whole, in which each takes 7 bytes. With the default model's margin, a box around a whole
# image of 64 megapixels has fewer unless the image is three times as wide as high.
MAX_WHOLE = 1 << 27
LARGE = 1 << 24  # pixels; of larger crops no more are made at a time than there are cores
_TURNS = threading.Semaphore(allowed())
BLOCK = 1 << 15  # values of a frame that are made at a time
ALL = slice(None)
NO_MEMORY = -4  # cv::Error::StsNoMem


def _in_turn(call: Callable[Concatenate[Crop, P], R]) -> Callable[Concatenate[Crop, P], R]:
    """For what takes memory with the crop's size: large ones wait for each other, and a lack of it is told as ours."""

    @wraps(call)
    def made(crop: Crop, /, *arguments: P.args, **named: P.kwargs) -> R:
        try:
            with _TURNS if crop.width * crop.height > LARGE else nullcontext():
                return call(crop, *arguments, **named)
        except cv2.error as e:
            if e.code != NO_MEMORY:
                raise
            raise OutOfMemory(f"no memory to cut out a crop or its mask ({e.err}); repeat the request later") from e

    return made


@dataclass(frozen=True, slots=True)
class CropSpec:
    """How a model wants its crops.

    size: side of the network's frame, in pixels.
    relax_pixels, relax_fraction: the box grows on every side by this many image pixels plus this share of its longer
        side. The published networks use 30 pixels; a share makes the crop independent of the image's resolution.
    interpolation: "bilinear" as published, or "area", which averages where the crop is shrunk: large photographs do not
        alias.
    corner_offset: network pixels by which the corner points lie outside the box (published: 10, for tight boxes).
    """

    size: int = 512
    relax_pixels: float = 30.0
    relax_fraction: float = 0.0
    interpolation: Literal["bilinear", "area"] = "bilinear"
    corner_offset: int = 0


@dataclass(frozen=True, slots=True)
class Crop:
    """The part of an image that the network sees: pixels x0..x1, y0..y1, inclusive; it may reach outside the image."""

    x0: int
    y0: int
    x1: int
    y1: int
    size: int

    @classmethod
    def around(cls, box: Box, spec: CropSpec) -> Crop:
        """The crop of a box."""
        x0, y0, x1, y1 = box.pixels
        margin = round(spec.relax_pixels + spec.relax_fraction * (max(x1 - x0, y1 - y0) + 1))
        return cls(x0 - margin, y0 - margin, x1 + margin, y1 + margin, spec.size)

    @property
    def width(self) -> int:
        """In image pixels."""
        return self.x1 - self.x0 + 1

    @property
    def height(self) -> int:
        """In image pixels."""
        return self.y1 - self.y0 + 1

    def visible(self, size: Size) -> tuple[int, int, int, int]:
        """The crop's part within an image of this size, (x0, y0, x1, y1), half-open."""
        return max(self.x0, 0), max(self.y0, 0), min(self.x1 + 1, size.width), min(self.y1 + 1, size.height)

    @property
    def whole(self) -> bool:
        """Whether it is made as a whole, and not its visible part alone."""
        return self.width * self.height <= MAX_WHOLE

    @_in_turn
    def extract(self, pixels: UInt8Array, interpolation: Literal["bilinear", "area"] = "bilinear") -> UInt8Array:
        """(H, W) or (H, W, C) image -> (size, size[, C]); outside the image lies 0.

        Of a crop that is not `whole`, the visible part lies in the frame to the nearest pixel.
        """
        size = Size(pixels.shape[0], pixels.shape[1])
        x0, y0, x1, y1 = self.visible(size)
        part: Any = pixels[y0:y1, x0:x1]
        if not self.whole:
            left, top, right, bottom = self._in_frame(size)
            frame = np.zeros((self.size, self.size, *pixels.shape[2:]), np.uint8)
            frame[top:bottom, left:right] = _fitted(part, right - left, bottom - top, interpolation)
            return frame
        if (x1 - x0, y1 - y0) != (self.width, self.height):
            top, left = y0 - self.y0, x0 - self.x0
            bottom, right = self.y1 + 1 - y1, self.x1 + 1 - x1
            part = cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
        return _fitted(part, self.size, self.size, interpolation)

    def to_network(self, points: ArrayLike) -> PointArray:
        """(n, 2) image points (x, y) -> (n, 2) the network pixels nearest to the centres of the pixels they lie in."""
        pixels = np.floor(np.asarray(points, np.float64).reshape(-1, 2))
        scale = self._scale()
        return np.floor((pixels - (self.x0, self.y0) + 0.5) * scale).astype(np.int32)

    def corners(self, box: Box, offset: int) -> PointArray:
        """(4, 2) network points at the box's corners: top left, bottom left, top right, bottom right.

        They are the outermost network pixels whose centres lie in the box (where it is too thin to have any, that in
        which its middle lies), moved `offset` network pixels outwards.
        """
        x0, y0, x1, y1 = box.pixels
        scale = self._scale()
        start = (np.array((x0, y0)) - (self.x0, self.y0)) * scale
        end = (np.array((x1 + 1, y1 + 1)) - (self.x0, self.y0)) * scale
        low, high = np.ceil(start - 0.5), np.floor(end - 0.5)
        middle, thin = np.floor((start + end) / 2), high < low
        (left, top), (right, bottom) = np.where(thin, middle, low) - offset, np.where(thin, middle, high) + offset
        return np.array([(left, top), (left, bottom), (right, top), (right, bottom)]).astype(np.int32)

    def scores(self, logits: FloatArray, size: Size) -> FloatArray:
        """(g, g) logits -> (h, w) probabilities of the crop's visible part, as in the authors' evaluation.

        Logits to the network's frame with align_corners=True, sigmoid, bilinear to the crop's size. Threshold these and
        nothing earlier: masks thresholded before resizing are jagged.
        """
        side = self.size
        across = np.ascontiguousarray(_resized(logits.T * np.float32(0.5), side).T)  # (g, size)
        frame = np.empty((side, side), np.float32)
        for start in range(0, side, BLOCK // side):  # few enough rows to stay in the core's cache
            part = _resized(across, side, frame, slice(start, start + BLOCK // side))
            np.tanh(part, out=part)  # sigmoid(x) is 1/2 + tanh(x / 2) / 2, which cannot overflow
            part *= 0.5
            part += 0.5
        return self.from_network(frame, size)

    @_in_turn
    def from_network(self, frame: FloatArray, size: Size) -> FloatArray:
        """(size, size) values in the network's frame -> (h, w) bilinear values of the crop's visible part."""
        x0, y0, x1, y1 = self.visible(size)
        if not self.whole:
            left, top, right, bottom = self._in_frame(size)
            part = np.ascontiguousarray(frame[top:bottom, left:right])
            return np.asarray(cv2.resize(part, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR), np.float32)
        whole: Any = cv2.resize(frame, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
        visible: FloatArray = whole[y0 - self.y0 : y1 - self.y0, x0 - self.x0 : x1 - self.x0]
        return visible

    def _in_frame(self, size: Size) -> tuple[int, int, int, int]:
        """The network pixels, half-open, that the visible part takes: to the nearest, one at least."""
        x0, y0, x1, y1 = self.visible(size)
        scale = self._scale()
        low = np.rint(((x0, y0) - np.array((self.x0, self.y0))) * scale).clip(0, self.size - 1).astype(int)
        high = np.rint(((x1, y1) - np.array((self.x0, self.y0))) * scale).astype(int).clip(low + 1, self.size)
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])

    def _scale(self) -> NDArray[np.float64]:
        return np.array((self.size / self.width, self.size / self.height))


def _fitted(part: Any, width: int, height: int, interpolation: Literal["bilinear", "area"]) -> UInt8Array:
    """(h, w[, C]) -> (height, width[, C])."""
    if interpolation == "area":
        # NB: shrink first. Where one axis is enlarged, OpenCV's INTER_AREA averages neither and shifts the image.
        smaller = min(part.shape[1], width), min(part.shape[0], height)
        part = cv2.resize(part, smaller, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _resized(maps: FloatArray, target: int, out: FloatArray | None = None, rows: slice = ALL) -> FloatArray:
    """(n, m) -> (target, m): bilinear along the first axis, align_corners=True like all of the networks' resizes.

    out: contiguous, where the result goes; rows: the part of it to be computed, and returned.
    NB: as a product of matrices it takes a third of the time by itself, and 10 to 20 ms one time in ten: numpy's and
    OpenCV's BLAS spread it over threads that go on spinning and keep the next graph from the cores.
    """
    low, high, to_low, to_high = _neighbours(maps.shape[0], target)
    below = np.empty((target, maps.shape[1]), np.float32)[rows] if out is None else out[rows]
    maps.take(low[rows], axis=0, out=below, mode="clip")  # with "raise" it would fill a buffer first
    above = maps.take(high[rows], axis=0)
    below *= to_low[rows]
    above *= to_high[rows]
    below += above
    return below


@lru_cache(maxsize=64)
def _neighbours(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.intp], FloatArray, FloatArray]:
    """Of each of `target` positions along an axis of `source` values: both neighbours' indices, (target,), and
    weights, (target, 1).
    """
    position = np.arange(target) * ((source - 1) / max(target - 1, 1))
    low = np.minimum(position.astype(np.intp), max(source - 2, 0))
    high = np.minimum(low + 1, source - 1)
    to_high = (position - low).astype(np.float32)[:, None]
    arrays = low, high, 1 - to_high, to_high
    for array in arrays:
        array.flags.writeable = False  # shared by all callers
    return arrays
