"""Photographs seen differently: turned, mirrored, scaled, occluded, on other backgrounds, in other colours.

Everything geometric happens on a scene, a small image around one object, in one affine warp; colours change in the
crop, which has fewer pixels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import cv2
import numpy as np
from iog.arrays import Array, BoolArray, UInt8Array
from iog.prompt import Box, Size

from iog_export.annotator import tight_box
from iog_export.datasets import Target

MARGIN = 0.42  # a scene reaches this share of the object's longer side beyond it: loosest box plus crop margin
LONGEST_SIDE = 2.0  # of an object in a scene, as a share of the network's side; larger ones only cost time


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """An augmented photograph around one object. All arrays have the same height and width.

    pixels: (h, w, 3) uint8 RGB, 0 outside the photograph; target: the object; known: labelled, and in the photograph;
    photograph: the smallest box around what the photograph covers.
    """

    pixels: UInt8Array
    target: BoolArray
    known: BoolArray
    inside: BoolArray
    photograph: Box

    @property
    def size(self) -> Size:
        """Of the arrays."""
        return Size(self.target.shape[0], self.target.shape[1])


def scene(target: Target, network_size: int, rng: np.random.Generator, strength: float = 1.0) -> Scene:
    """Warp the surroundings of an object: mirrored, scaled, stretched and turned at random.

    strength: 0..1; at 0 only the mirror and scaling by up to two are left.
    """
    x, y, width, height = target.item.bounds
    side = max(width, height)
    # Mostly larger than in the crop, which then shrinks it as it shrinks photographs: to a network that has only seen
    # crops that were warped at their own resolution, deployed ones are too sharp.
    longest = LONGEST_SIDE * network_size * np.exp(rng.uniform(-0.7 - 0.8 * strength, 0.0))
    scale = min(longest / side, 1.6)
    angle = 0.0
    if rng.random() < 0.7 * strength:
        angle = rng.normal(0, 10) if rng.random() < 0.85 else rng.uniform(-40, 40)
    stretch = np.exp(rng.normal(0, 0.12 * strength))
    mirror = -1.0 if rng.random() < 0.5 else 1.0

    # The part of the photograph that can reach the scene, shrunk by averaging before the warp can alias.
    reach = 1.3 * (0.5 + MARGIN) * side
    if angle or stretch != 1:
        reach *= 1.35
    centre_x, centre_y = x + width / 2, y + height / 2
    pixels, mask, known = target.photograph.pixels, target.mask, target.known
    x0, x1 = max(int(centre_x - reach), 0), min(int(centre_x + reach) + 1, mask.shape[1])
    y0, y1 = max(int(centre_y - reach), 0), min(int(centre_y + reach) + 1, mask.shape[0])
    pixels, mask, known = pixels[y0:y1, x0:x1], mask[y0:y1, x0:x1], known[y0:y1, x0:x1]
    layers = np.dstack([mask, known, np.ones_like(mask)]).astype(np.uint8) * 255
    shrink = 1.0
    if scale < 0.7:
        shrink = scale
        shrunk = max(round((x1 - x0) * shrink), 2), max(round((y1 - y0) * shrink), 2)
        pixels = _bytes(cv2.resize(pixels, shrunk, interpolation=cv2.INTER_AREA))
        layers = _bytes(cv2.resize(layers, shrunk, interpolation=cv2.INTER_AREA))
    part_height, part_width = pixels.shape[:2]
    factor_x, factor_y = part_width / (x1 - x0), part_height / (y1 - y0)

    # A rotated box grows; the scene holds it with its margin.
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    scale_x, scale_y = scale * np.sqrt(stretch), scale / np.sqrt(stretch)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([mirror * scale_x, scale_y])
    extent = np.abs(linear) @ (width, height)  # of the warped box
    margin = MARGIN * extent.max()
    canvas = np.ceil(extent + 2 * margin).astype(int)
    linear = linear @ np.diag([1 / factor_x, 1 / factor_y])
    centre = np.array([(centre_x - x0) * factor_x, (centre_y - y0) * factor_y])
    matrix = np.column_stack([linear, canvas / 2 - linear @ centre])
    shape = (int(canvas[0]), int(canvas[1]))
    pixels = _bytes(cv2.warpAffine(pixels, matrix, shape, flags=cv2.INTER_CUBIC))
    layers = _bytes(cv2.warpAffine(layers, matrix, shape, flags=cv2.INTER_LINEAR))

    edges = (-0.5, part_width - 0.5), (-0.5, part_height - 0.5)  # half a pixel beyond the outermost centres
    corners = np.array(list(itertools.product(*edges))) @ linear.T + matrix[:, 2]
    low = np.clip(corners.min(axis=0) + 0.5, 0, canvas - 2)
    high = np.clip(corners.max(axis=0) - 0.5, low + 1, canvas - 1)
    return Scene(
        pixels,
        layers[:, :, 0] >= 128,
        layers[:, :, 1] >= 250,
        layers[:, :, 2] >= 250,
        Box(*(float(v) for v in (*low, *high))),
    )


def occluded(front: Scene, other: Scene, rng: np.random.Generator) -> Scene:
    """The scene with another scene's object pasted somewhere over it, unless that hides over half of the target."""
    box_x0, box_y0, box_x1, box_y1 = tight_box(other.target).pixels
    cut = slice(box_y0, box_y1 + 1), slice(box_x0, box_x1 + 1)
    mask, pixels = other.target[cut].astype(np.uint8), other.pixels[cut]
    target_box = tight_box(front.target)
    longest = max(target_box.x1 - target_box.x0, target_box.y1 - target_box.y0) + 1
    scale = longest * rng.uniform(0.3, 0.9) / max(mask.shape)
    shape = max(round(mask.shape[1] * scale), 2), max(round(mask.shape[0] * scale), 2)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    mask = _bytes(cv2.resize(mask * 255, shape, interpolation=interpolation))
    pixels = _bytes(cv2.resize(pixels, shape, interpolation=interpolation))
    height, width = front.target.shape
    x = int(rng.integers(-shape[0] // 2, width - shape[0] // 2))
    y = int(rng.integers(-shape[1] // 2, height - shape[1] // 2))
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + shape[0], width), min(y + shape[1], height)
    mask, pixels = mask[y0 - y : y1 - y, x0 - x : x1 - x], pixels[y0 - y : y1 - y, x0 - x : x1 - x]
    covers = (mask >= 128) & front.inside[y0:y1, x0:x1]
    if (covers & front.target[y0:y1, x0:x1]).sum() > 0.5 * front.target.sum():
        return front
    weight = (mask * front.inside[y0:y1, x0:x1]).astype(np.float32)[:, :, None] / 255
    result = front.pixels.copy()
    part = result[y0:y1, x0:x1]
    part[:] = np.rint(part * (1 - weight) + pixels * weight)
    target, known = front.target.copy(), front.known.copy()
    target[y0:y1, x0:x1] &= ~covers
    known[y0:y1, x0:x1] |= covers
    return Scene(result, target, known, front.inside, front.photograph)


def transplanted(front: Scene, back: Scene) -> Scene:
    """The target of `front`, cut out and put on what the photograph covers of `back`, resized to cover the scene.

    back: not turned, or its borders show.
    """
    height, width = front.target.shape
    x0, y0, x1, y1 = tight_box(back.inside).pixels
    background = cv2.resize(back.pixels[y0 : y1 + 1, x0 : x1 + 1], (width, height), interpolation=cv2.INTER_LINEAR)
    weight = cv2.GaussianBlur(front.target.astype(np.float32), (3, 3), 0)[:, :, None]
    pixels = np.rint(front.pixels * weight + background * (1 - weight)).astype(np.uint8)
    everywhere = np.ones_like(front.target)
    return Scene(pixels, front.target, everywhere, everywhere, Box(0, 0, width - 1, height - 1))


def recoloured(crop: UInt8Array, inside: BoolArray, rng: np.random.Generator, strength: float = 1.0) -> UInt8Array:
    """(s, s, 3) crop in other light, of another camera, blurred, noisy, compressed; still 0 outside the photograph.

    strength: 0..1, with which each of these becomes rarer.
    """
    pixels = crop
    if rng.random() < 0.5 * strength:
        pixels = _saturated(pixels, rng)
    if rng.random() < 0.85 * strength:
        ramp = np.linspace(0, 1, 256)[:, None]
        gain = np.exp(rng.normal(0, 0.2) + rng.normal(0, 0.08, 3))
        bias, gamma = rng.normal(0, 0.06), np.exp(rng.normal(0, 0.2))
        curve = np.clip(255 * ((ramp**gamma - 0.5) * gain + 0.5 + bias), 0, 255).astype(np.uint8)
        pixels = _bytes(cv2.LUT(pixels, curve[:, None, :]))
    if rng.random() < 0.15 * strength:
        pixels = _bytes(cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.4, 1.6) * crop.shape[0] / 256))
    if rng.random() < 0.1 * strength:
        noise = rng.normal(0, rng.uniform(2, 12), pixels.shape).astype(np.float32)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.15 * strength:
        quality = int(rng.integers(25, 90))
        _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        pixels = _bytes(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return pixels * inside[:, :, None]


def _saturated(pixels: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Colours mixed towards or away from grey, and turned a little around it."""
    saturation = 0.0 if rng.random() < 0.08 else np.exp(rng.normal(0, 0.35))
    hue = rng.normal(0, 0.25)  # radians
    luma = np.full((3, 3), 1 / 3)
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.cos(hue) * np.eye(3) + np.sin(hue) * axis + (1 - np.cos(hue)) * luma  # rotation about the grey axis
    matrix = turn @ (saturation * np.eye(3) + (1 - saturation) * luma)
    return _bytes(cv2.transform(pixels, matrix))


def _bytes(array: Array | None) -> UInt8Array:
    assert array is not None  # only cv2.imdecode could, and what it decodes was encoded here
    return np.asarray(array, np.uint8)
