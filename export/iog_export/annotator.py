"""The simulated annotator (sections 3.1, 3.3 and 4.5 of the paper), the same in training and in evaluation.

Regions are (h, w) bool arrays of one frame, an image's or a network's; points and boxes are in pixels of that frame.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from iog.arrays import BoolArray, FloatArray
from iog.prompt import Box, Click, Point, Size


class Correction(NamedTuple):
    """A click on the largest wrong region, and how many pixels that region has."""

    click: Click
    area: int


def tight_box(region: BoolArray) -> Box:
    """The pixels' bounding box; the region must not be empty."""
    x, y, width, height = cv2.boundingRect(region.astype(np.uint8))
    if width == 0:
        raise ValueError("the region is empty: nothing can be boxed or clicked")
    return Box(x, y, x + width - 1, y + height - 1)


def loosened(box: Box, sides: tuple[float, float, float, float], size: Size) -> Box:
    """The box with its left, top, right and bottom sides moved outwards by these shares of its width or height.

    Negative shares cut into the box. It stays within the image, and at least 2 pixels wide and high.
    """
    x0, y0, x1, y1 = box.pixels
    width, height = x1 - x0 + 1, y1 - y0 + 1
    left, top, right, bottom = sides
    new_x0 = min(max(x0 - round(left * width), 0), size.width - 2)
    new_y0 = min(max(y0 - round(top * height), 0), size.height - 2)
    new_x1 = max(min(x1 + round(right * width), size.width - 1), new_x0 + 1)
    new_y1 = max(min(y1 + round(bottom * height), size.height - 1), new_y0 + 1)
    return Box(new_x0, new_y0, new_x1, new_y1)


def depth(region: BoolArray) -> FloatArray:
    """(h, w) distance of the region's pixels to the nearest pixel that is not in it, as all outside the frame."""
    padded = cv2.copyMakeBorder(region.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(0,))
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1], np.float32)


def inside_point(
    region: BoolArray, rng: np.random.Generator | None = None, *, share: float = 1.0, radius: float = 0.0
) -> Point:
    """Where an annotator clicks to say "this one": the pixel farthest from the boundary.

    With `rng`, any pixel of at least `share` of the greatest depth, moved by up to `radius` pixels if that stays within
    the region (table 7 of the paper: radius 30 in a frame of 512).
    """
    if not region.any():
        raise ValueError("the region is empty: nothing can be boxed or clicked")
    distance = depth(region)
    if rng is None:
        deepest = int(distance.argmax())
        return Point(float(deepest % distance.shape[1]), float(deepest // distance.shape[1]))
    ys, xs = np.nonzero(region & (distance >= share * distance.max()))
    i = int(rng.integers(len(ys)))
    x, y = float(xs[i]), float(ys[i])
    if radius:
        angle, reach = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.uniform())
        moved_x, moved_y = round(x + reach * np.cos(angle)), round(y + reach * np.sin(angle))
        height, width = region.shape
        if 0 <= moved_x < width and 0 <= moved_y < height and region[moved_y, moved_x]:
            x, y = float(moved_x), float(moved_y)
    return Point(x, y)


def correction(
    predicted: BoolArray, truth: BoolArray, known: BoolArray | None = None, rng: np.random.Generator | None = None
) -> Correction | None:
    """The next click: in the middle of the largest connected wrong region, missed or covered in error.

    known: where the truth is known; errors elsewhere are not seen. With `rng`, the click lies anywhere in the middle
    half of the region. None if nothing is wrong.
    """
    wrong = predicted != truth
    if known is not None:
        wrong &= known
    best_area, best_positive, left, top = 0, False, 0, 0
    best_region: BoolArray | None = None  # cut out: most of them are small, and cost as little
    for positive in (True, False):
        errors = (wrong & (truth == positive)).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(errors, connectivity=4)
        if count > 1:
            label = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
            area = int(stats[label, cv2.CC_STAT_AREA])
            if area > best_area:
                left, top, width, height, _ = stats[label].tolist()
                best_region = np.asarray(labels[top : top + height, left : left + width] == label)
                best_area, best_positive = area, positive
    if best_region is None:
        return None
    point = inside_point(best_region, rng, share=0.5)
    return Correction(Click(left + point.x, top + point.y, best_positive), best_area)
