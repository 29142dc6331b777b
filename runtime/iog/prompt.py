"""What an annotator draws: an almost tight box, a point inside, and clicks that correct the mask.

Coordinates are float pixels, (x, y), origin at the top left. A point lies in pixel (floor x, floor y).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from iog.errors import InvalidPrompt

MAX_CLICKS = 200  # annotators place fewer than 20; a request of thousands is a defect of its sender
COORDINATE_LIMIT = 2**20  # far beyond any decodable image, far below the precision of float32 indices


@dataclass(frozen=True, slots=True)
class Size:
    """Height and width of an image, in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Point:
    """A position in an image."""

    x: float
    y: float

    def __post_init__(self) -> None:
        _check_coordinates("point", self.x, self.y)

    def __str__(self) -> str:
        return f"({self.x:.10g}, {self.y:.10g})"


@dataclass(frozen=True, slots=True)
class Click:
    """A correction: `positive` says that the object covers this point, otherwise that it does not.

    The network is told, and follows nearly always; the mask is not forced to agree at every click.
    """

    x: float
    y: float
    positive: bool

    def __post_init__(self) -> None:
        _check_coordinates("click", self.x, self.y)

    def __str__(self) -> str:
        return f"({self.x:.10g}, {self.y:.10g})"


@dataclass(frozen=True, slots=True)
class Box:
    """Two clicked corners, x0 <= x1 and y0 <= y1: the pixels they lie in belong to the box."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        _check_coordinates("box", self.x0, self.y0, self.x1, self.y1)
        if self.x1 < self.x0 or self.y1 < self.y0:
            raise InvalidPrompt(
                "box", f"{self} is inverted; expected x0 <= x1 and y0 <= y1 (Box.from_corners takes any two corners)"
            )

    @classmethod
    def from_corners(cls, a: Point, b: Point) -> Box:
        """The box between two opposite corners given in any order."""
        return cls(min(a.x, b.x), min(a.y, b.y), max(a.x, b.x), max(a.y, b.y))

    @property
    def pixels(self) -> tuple[int, int, int, int]:
        """First and last pixel in x and y, as (x0, y0, x1, y1), inclusive."""
        return math.floor(self.x0), math.floor(self.y0), math.floor(self.x1), math.floor(self.y1)

    def contains(self, point: Point | Click) -> bool:
        """Whether the point's pixel is one of the box's pixels."""
        x0, y0, x1, y1 = self.pixels
        return x0 <= math.floor(point.x) <= x1 and y0 <= math.floor(point.y) <= y1

    def clipped(self, size: Size) -> Box:
        """The part of the box within an image.

        Raises InvalidPrompt if nothing, or less than 2x2 pixels, is left.
        """
        x0, y0, x1, y1 = self.pixels
        width = min(x1, size.width - 1) - max(x0, 0) + 1
        height = min(y1, size.height - 1) - max(y0, 0) + 1
        if width < 1 or height < 1:
            raise InvalidPrompt("box", f"{self} lies outside the {size} image")
        if width < 2 or height < 2:
            raise InvalidPrompt("box", f"{self} covers {width}x{height} pixels of the image; need 2x2 at least")
        return Box(
            max(self.x0, 0.0), max(self.y0, 0.0), min(self.x1, size.width - 1.0), min(self.y1, size.height - 1.0)
        )

    def __str__(self) -> str:
        return f"({self.x0:.10g}, {self.y0:.10g}, {self.x1:.10g}, {self.y1:.10g})"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Inside-outside guidance (section 3.1 of the paper) and all corrections so far, oldest first.

    The mask does not depend on the clicks' order: take back the one that another one contradicts.
    Raises InvalidPrompt on construction if the inside point is not in the box or there are over MAX_CLICKS clicks.
    """

    box: Box
    inside: Point
    clicks: tuple[Click, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "clicks", tuple(self.clicks))
        for field, value, kind in (("box", self.box, Box), ("inside", self.inside, Point)):
            if not isinstance(value, kind):
                raise TypeError(f"{field} is {value!r}; expected an iog.{kind.__name__}")
        for i, click in enumerate(self.clicks):
            if not isinstance(click, Click):
                raise TypeError(f"clicks[{i}] is {click!r}; expected an iog.Click")
        if len(self.clicks) > MAX_CLICKS:
            raise InvalidPrompt(
                "clicks", f"{len(self.clicks)} clicks; at most {MAX_CLICKS} are taken: start a new object"
            )
        if not self.box.contains(self.inside):
            raise InvalidPrompt("inside", f"{self.inside} is not in the box {self.box}; click on the object")

    def with_click(self, x: float, y: float, positive: bool) -> Prompt:
        """The same prompt with one more correction."""
        return replace(self, clicks=(*self.clicks, Click(x, y, positive)))

    def within(self, size: Size) -> Prompt:
        """The prompt for an image of this size: the box is clipped to the image, points must lie in it.

        Points on the right and bottom edge, to where front ends clamp the pointer, are moved into the last pixel.
        Raises InvalidPrompt: box outside the image or too small, inside point or a click outside the image.
        """
        box = self.box.clipped(size)
        inside = Point(*_within("inside", self.inside, size))
        clicks = (Click(*_within(f"clicks[{i}]", c, size), c.positive) for i, c in enumerate(self.clicks))
        return Prompt(box, inside, tuple(clicks))


def _within(field: str, point: Point | Click, size: Size) -> tuple[float, float]:
    if not (0 <= point.x <= size.width and 0 <= point.y <= size.height):
        raise InvalidPrompt(field, f"{point} lies outside the {size} image")
    return (
        point.x if point.x < size.width else size.width - 1,
        point.y if point.y < size.height else size.height - 1,
    )


def _check_coordinates(field: str, *values: float) -> None:
    for value in values:
        if not abs(value) <= COORDINATE_LIMIT:  # nor is NaN
            limit = f"{COORDINATE_LIMIT:,}"
            raise InvalidPrompt(
                field, f"coordinate {value!r} is no pixel position; expected a finite number from -{limit} to {limit}"
            )
