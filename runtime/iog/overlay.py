"""Pictures of a mask and the clicks it came from, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from iog.arrays import BoolArray, UInt8Array
from iog.prompt import Prompt

LONG_SIDE = (640, 1600)  # of a picture, in pixels: marks stay legible on thumbnails, files of photographs small
PANEL_SIDE = 560  # of one picture among several

Color = tuple[int, int, int]

MASK: Color = (36, 132, 255)
POSITIVE: Color = (22, 190, 70)
NEGATIVE: Color = (235, 40, 40)
LIGHT: Color = (255, 255, 255)
DARK: Color = (20, 20, 24)
FILL_OPACITY = 0.42

_SUBPIXEL = 4  # fractional bits of the coordinates given to OpenCV
_FAR = 1 << 20  # beyond every picture, within OpenCV's integers


def overlay(
    pixels: UInt8Array, prompt: Prompt, mask: BoolArray | None, caption: str = "", *, long_side: int | None = None
) -> UInt8Array:
    """The image with the mask tinted and outlined, the box, its corners and the clicks; a caption below.

    pixels: (H, W, 3) uint8 RGB. mask: (H, W) bool, None for none. caption: of Latin letters; long lines are cut.
    long_side: of the picture without its caption; by default that of the image, within LONG_SIDE.
    Green is foreground (the inside point dotted, clicks a plus), red is background (corners small, clicks a minus):
    every mark has a light and a dark line, so that it shows on any photograph.
    """
    height, width = pixels.shape[:2]
    scale = (long_side or float(np.clip(max(height, width), *LONG_SIDE))) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    canvas = np.array(cv2.resize(pixels, size, interpolation=interpolation), np.uint8)
    unit = max(size) / 640
    if mask is not None:
        _draw_mask(canvas, mask, unit)
    _draw_prompt(canvas, prompt, _Frame(size[0] / width, size[1] / height), unit)
    return np.vstack([canvas, _caption(caption, size[0], unit)]) if caption else canvas


def panel(pictures: Sequence[UInt8Array], gap: int = 12) -> UInt8Array:
    """Pictures side by side on white, aligned at the top. Each (h, w, 3) uint8."""
    height = max(picture.shape[0] for picture in pictures)
    columns: list[UInt8Array] = []
    for picture in pictures:
        column = np.full((height + 2 * gap, picture.shape[1] + gap, 3), 255, np.uint8)
        column[gap : gap + picture.shape[0], gap:] = picture
        columns.append(column)
    return np.hstack([*columns, np.full((height + 2 * gap, gap, 3), 255, np.uint8)])


class _Frame(NamedTuple):
    """Pixels of the picture per pixel of the image."""

    x: float
    y: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """An image position, pixel i covering i .. i + 1, in OpenCV's coordinates, where it is centred at i."""
        return x * self.x - 0.5, y * self.y - 0.5

    def centre(self, x: float, y: float) -> tuple[float, float]:
        """The centre of the pixel that a point lies in."""
        return self.at(np.floor(x) + 0.5, np.floor(y) + 0.5)


def _draw_mask(canvas: UInt8Array, mask: BoolArray, unit: float) -> None:
    height, width = canvas.shape[:2]
    smooth: Any = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    inside = smooth > 0.5
    tint = canvas[inside] * (1 - FILL_OPACITY) + np.array(MASK) * FILL_OPACITY
    canvas[inside] = tint.astype(np.uint8)
    outlines, _ = cv2.findContours(inside.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, outlines, -1, DARK, _width(5, unit), cv2.LINE_AA)
    cv2.drawContours(canvas, outlines, -1, LIGHT, _width(2, unit), cv2.LINE_AA)


def _draw_prompt(canvas: UInt8Array, prompt: Prompt, frame: _Frame, unit: float) -> None:
    x0, y0, x1, y1 = prompt.box.pixels
    corners = [frame.at(x, y) for x, y in ((x0, y0), (x1 + 1, y0), (x1 + 1, y1 + 1), (x0, y1 + 1))]
    outline = np.array([_fixed(corner) for corner in corners], np.int32)
    for color, thickness in ((DARK, 4.4), (LIGHT, 1.6)):
        cv2.polylines(canvas, [outline], True, color, _width(thickness, unit), cv2.LINE_AA, _SUBPIXEL)
    for corner in corners:
        _disc(canvas, corner, 3.5 * unit, NEGATIVE, unit)
    inside = frame.centre(prompt.inside.x, prompt.inside.y)
    _disc(canvas, inside, 8 * unit, POSITIVE, unit)
    _disc(canvas, inside, 2.5 * unit, LIGHT, 0)
    for click in prompt.clicks:
        centre = frame.centre(click.x, click.y)
        _disc(canvas, centre, 8 * unit, POSITIVE if click.positive else NEGATIVE, unit)
        _bar(canvas, centre, (4.5 * unit, 0), unit)
        if click.positive:
            _bar(canvas, centre, (0, 4.5 * unit), unit)


def _disc(canvas: UInt8Array, centre: tuple[float, float], radius: float, color: Color, edge: float) -> None:
    rings = ((DARK, 2.5), (LIGHT, 1.5)) if edge else ()
    for ring, extra in rings:
        cv2.circle(canvas, _fixed(centre), _fixed_length(radius + extra * edge), ring, -1, cv2.LINE_AA, _SUBPIXEL)
    cv2.circle(canvas, _fixed(centre), _fixed_length(radius), color, -1, cv2.LINE_AA, _SUBPIXEL)


def _bar(canvas: UInt8Array, centre: tuple[float, float], half: tuple[float, float], unit: float) -> None:
    ends = [(centre[0] + sign * half[0], centre[1] + sign * half[1]) for sign in (-1, 1)]
    cv2.line(canvas, _fixed(ends[0]), _fixed(ends[1]), LIGHT, _width(2.4, unit), cv2.LINE_AA, _SUBPIXEL)


def _caption(text: str, width: int, unit: float) -> UInt8Array:
    lines = text.splitlines()
    size = max(12, round(17 * unit))
    font = PIL.ImageFont.load_default(size)
    step, pad = round(size * 1.35), round(size * 0.5)
    bar = PIL.Image.new("RGB", (width, step * len(lines) + 2 * pad), LIGHT)
    draw = PIL.ImageDraw.Draw(bar)
    for row, line in enumerate(lines):
        draw.text((pad, pad + row * step), _cut(line, font, width - 2 * pad), fill=DARK, font=font)
    return np.asarray(bar, np.uint8)


def _cut(line: str, font: Any, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."


def _width(pixels: float, unit: float) -> int:
    return max(1, round(pixels * unit))


def _fixed(point: tuple[float, float]) -> tuple[int, int]:
    return _fixed_length(point[0]), _fixed_length(point[1])


def _fixed_length(length: float) -> int:
    return round(min(max(length, -_FAR), _FAR) * (1 << _SUBPIXEL))
