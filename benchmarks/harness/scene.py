"""What is clicked on: a 1080p photograph, and an annotator who works on one object in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import iog_export
from iog import Box, Point, Prompt
from iog.image import Image
from iog.prompt import Size

PHOTOGRAPH = Path(iog_export.__file__).parent / "photographs" / "astronaut.jpg"
FULL_HD = Size(1080, 1920)
SHIFTS = 90  # pixels by which boxes of one height differ
CLICKS = 8  # on one object; then the annotator takes them all back


def photograph(size: Size = FULL_HD, variant: int = 0) -> bytes:
    """A JPEG of this size, wider than high: the packaged square photograph in the middle, mirrored on both sides.

    variant: 0 to 50; each gives other bytes of the same picture.
    """
    original = cv2.imread(str(PHOTOGRAPH))
    assert original is not None
    square = cv2.resize(original, (size.height, size.height), interpolation=cv2.INTER_CUBIC)
    margin = _margin(size)
    wide = cv2.copyMakeBorder(square, 0, 0, margin, size.width - size.height - margin, cv2.BORDER_REFLECT)
    return cv2.imencode(".jpg", wide, [cv2.IMWRITE_JPEG_QUALITY, 95 - variant])[1].tobytes()


def prompt(size: Size, shift: int = 0) -> Prompt:
    """The astronaut; shift: pixels by which the box is wider, so that it is another object."""
    scale, margin = size.height / 512, _margin(size)
    box = Box(margin + 13 * scale, 8 * scale, margin + 373 * scale + shift, 500 * scale)
    return Prompt(box, Point(margin + 175 * scale, 320 * scale))


def another(size: Size, number: int, shift: int = 0) -> Prompt:
    """The astronaut again, in a box that no other number has: wider, then also lower; shift: by which it is wider."""
    lowered, wider = divmod(number, SHIFTS)
    base = prompt(size, shift + wider)
    return replace(base, box=replace(base.box, y0=base.box.y0 + lowered))


def _margin(size: Size) -> int:
    return (size.width - size.height) // 2


def corrected(prompt: Prompt, number: int) -> Prompt:
    """One more click in the box; its place depends on the number alone."""
    box = prompt.box
    x = box.x0 + (0.2 + 0.6 * (number * 0.618 % 1)) * (box.x1 - box.x0)
    y = box.y0 + (0.2 + 0.6 * (number * 0.382 % 1)) * (box.y1 - box.y0)
    return prompt.with_click(x, y, positive=number % 3 > 0)


def growing(first: Prompt, corrections: int) -> list[Prompt]:
    """The prompts of one object, click by click."""
    return list(itertools.accumulate(range(corrections), corrected, initial=first))


class Annotator:
    """Clicks on one object: each first click draws a new box, each correction is a new click."""

    def __init__(self, segment: Callable[[Prompt], object], size: Size, shift: int = 0) -> None:
        """Start with the object at `shift`; the new ones follow it."""
        self._segment = segment
        self._size = size
        self._shift = shift
        self._numbers = itertools.count(1)
        self._prompt = prompt(size, shift)
        self._segment(self._prompt)

    def first(self) -> None:
        """A new object."""
        self._prompt = another(self._size, next(self._numbers), self._shift)
        self._segment(self._prompt)

    def correction(self) -> None:
        """One more click on it."""
        if len(self._prompt.clicks) >= CLICKS:
            self._prompt = Prompt(self._prompt.box, self._prompt.inside)
        self._prompt = corrected(self._prompt, next(self._numbers))
        self._segment(self._prompt)


def frame(size: Size = FULL_HD) -> Image:
    """The photograph, decoded."""
    return Image.decode(photograph(size))
