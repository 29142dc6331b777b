"""Masks: scores -> the pixels within tight bounds, and the encodings they travel in."""

from __future__ import annotations

import enum
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco

from iog.arrays import BoolArray, FloatArray, PointArray
from iog.prompt import Size

PNG_FILTER, PNG_FILTER_NONE = 19, 8  # named in cv2 since OpenCV 4.12; earlier ones ignore them


class Bounds(NamedTuple):
    """Image pixels x0 <= x < x1, y0 <= y < y1; all zeros for an empty mask."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        """In pixels."""
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        """In pixels."""
        return self.y1 - self.y0


class Ring(NamedTuple):
    """A closed outline through the centres of boundary pixels.

    points: (n, 2) int32 image pixels (x, y). hole: the ring runs over foreground, what it encloses is background.
    """

    points: PointArray
    hole: bool


class MaskEncoding(enum.Enum):
    """How a mask travels."""

    PNG = "png"  # 8-bit gray, 0 or 255, of the bounds
    COCO_RLE = "coco_rle"  # compressed counts of the full frame, column by column, as pycocotools reads them
    POLYGONS = "polygons"  # rings, exact: filled again they give the same mask
    SCORE_MAP = "score_map"  # not at all: the logits travel, and who receives them makes the mask


def threshold(scores: FloatArray, limit: float, x0: int, y0: int) -> tuple[BoolArray, Bounds]:
    """(h, w) scores of the image part at (x0, y0) -> the pixels above `limit`, cut to their bounds; the bounds."""
    above: BoolArray = scores > limit
    # NB: cv2.boundingRect does this too, wrongly in OpenCV 4.9
    rows, columns = np.flatnonzero(above.any(axis=1)), np.flatnonzero(above.any(axis=0))
    if len(rows) == 0:
        return np.zeros((0, 0), np.bool_), Bounds(0, 0, 0, 0)
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    bounds = Bounds(x0 + int(left), y0 + int(top), x0 + int(right), y0 + int(bottom))
    return above[top:bottom, left:right], bounds


def full_frame(region: BoolArray, bounds: Bounds, size: Size) -> BoolArray:
    """The mask in the image's frame, (H, W)."""
    mask = np.zeros((size.height, size.width), np.bool_)
    mask[bounds.y0 : bounds.y1, bounds.x0 : bounds.x1] = region
    return mask


def to_png(region: BoolArray) -> bytes:
    """(h, w) -> PNG; b"" for an empty region, which PNG cannot express."""
    if region.size == 0:
        return b""
    # level 1 and no filter: ten times faster than the default and hardly larger on masks
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, PNG_FILTER, PNG_FILTER_NONE]
    return cv2.imencode(".png", region.view(np.uint8) * 255, options)[1].tobytes()


def from_png(data: bytes) -> BoolArray:
    """Inverse of to_png. Raises ValueError if the bytes are no image."""
    if not data:
        return np.zeros((0, 0), np.bool_)
    gray = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if gray is None:
        raise ValueError(f"mask of {len(data)} bytes is no PNG")
    return np.asarray(gray > 127)


def to_rle(region: BoolArray, bounds: Bounds, size: Size) -> bytes:
    """COCO's compressed counts of the full (H, W) frame, made from the bounds alone."""
    columns = np.zeros((bounds.width, bounds.height + 1), np.bool_)  # with a gap at each end, over which no run goes
    columns[:, :-1] = region.T
    x, y = np.divmod(np.flatnonzero(np.diff(columns.ravel(), prepend=False)), bounds.height + 1)
    edges = (bounds.x0 + x) * size.height + bounds.y0 + y  # in the frame: start, end, start, end ...
    # a column that reaches the bottom of the frame runs on in the next one that starts at the top
    joined = 2 * np.flatnonzero(edges[1:-1:2] == edges[2::2])
    edges = np.delete(edges, [joined + 1, joined + 2])
    counts = np.diff(edges, prepend=0, append=size.height * size.width)
    if len(edges) and counts[-1] == 0:
        counts = counts[:-1]
    rle = coco.frPyObjects({"size": [size.height, size.width], "counts": counts.tolist()}, size.height, size.width)
    return bytes(rle["counts"])


def from_rle(counts: bytes, bounds: Bounds, size: Size) -> BoolArray:
    """Inverse of to_rle: the region within bounds."""
    frame = coco.decode({"size": [size.height, size.width], "counts": counts})
    return np.ascontiguousarray(frame[bounds.y0 : bounds.y1, bounds.x0 : bounds.x1]).view(np.bool_)


def to_rings(region: BoolArray, bounds: Bounds) -> list[Ring]:
    """Outlines of the region, from the outside in: parts, the holes in them, the parts in those holes, and so on."""
    if region.size == 0:
        return []
    outlines, hierarchy = cv2.findContours(
        region.view(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE, offset=(bounds.x0, bounds.y0)
    )
    parents: list[int] = np.asarray(hierarchy)[0, :, 3].tolist()
    depths = [_depth(i, parents) for i in range(len(parents))]
    inwards = sorted(range(len(depths)), key=depths.__getitem__)
    return [Ring(np.asarray(outlines[i], np.int32).reshape(-1, 2), depths[i] % 2 == 1) for i in inwards]


def from_rings(rings: list[Ring], bounds: Bounds) -> BoolArray:
    """Inverse of to_rings: each ring in turn is filled, with background if it is a hole."""
    canvas = np.zeros((bounds.height, bounds.width), np.uint8)
    origin = np.array((bounds.x0, bounds.y0))
    for ring in rings:  # a hole's ring runs over foreground pixels: fill it, then draw it again
        points = [(ring.points - origin).astype(np.int32)]
        cv2.fillPoly(canvas, points, 0 if ring.hole else 1)
        if ring.hole:
            cv2.polylines(canvas, points, True, 1)
    return canvas.view(np.bool_)


def _depth(ring: int, parents: list[int]) -> int:
    """How many rings lie around it."""
    depth = 0
    while (ring := parents[ring]) >= 0:
        depth += 1
    return depth
