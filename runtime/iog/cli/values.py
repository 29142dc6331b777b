"""What people write on the command line -> values, for click's `type=`; and sizes back into words."""

from __future__ import annotations

import re
from typing import Any

import click

from iog.address import check_address
from iog.backends import ENGINES, NAMES
from iog.errors import InvalidPrompt
from iog.prompt import Box, Click, Point

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Engines(click.Choice[str]):
    """Backends. The one for tests is taken too, but not offered: its masks mean nothing."""

    def __init__(self) -> None:
        super().__init__(ENGINES)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raises BadParameter."""
        return value if value in NAMES else super().convert(value, param, ctx)


ENGINE = Engines()
PIXELS = click.IntRange(1, 178_956_970)  # of an image; Pillow opens none larger
DEFAULT_PIXELS = 64_000_000  # iog.image.ImageLimits', whose import takes longer than --help
THREADS = click.IntRange(0, 1024)  # beyond that, starting them takes longer than any inference
MAX_BYTES = 2.0**63
MAX_SECONDS = 366 * 86400.0


class Number(click.FloatRange):
    """A FloatRange without NaN, which is in every one of click's."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Raises BadParameter."""
        number: float = super().convert(value, param, ctx)
        if number != number:
            self.fail(f"{value!r} is not in the range {self._describe_range()}.", param, ctx)
        return number


class Seconds(Number):
    """A time from `min` to MAX_SECONDS: neither gRPC nor locks can wait for ever."""

    def __init__(self, min: float) -> None:
        super().__init__(min=min, max=MAX_SECONDS)


def box(text: str) -> Box:
    """x0,y0,x1,y1: two opposite corners, whichever. Raises BadParameter."""
    x0, y0, x1, y1 = _numbers(text, text, "x0,y0,x1,y1")
    try:
        return Box.from_corners(Point(x0, y0), Point(x1, y1))
    except InvalidPrompt as e:
        raise click.BadParameter(f"{text!r}: {e}") from e


def point(text: str) -> Point:
    """x,y. Raises BadParameter."""
    x, y = _numbers(text, text, "x,y")
    try:
        return Point(x, y)
    except InvalidPrompt as e:
        raise click.BadParameter(f"{text!r}: {e}") from e


def correction(text: str) -> Click:
    """x,y,fg or x,y,bg. Raises BadParameter."""
    coordinates, _, kind = text.rpartition(",")
    if kind.strip() not in ("fg", "bg"):
        raise click.BadParameter(f"{text!r}; expected x,y,fg (on the object) or x,y,bg (beside it)")
    x, y = _numbers(coordinates, text, "x,y")
    try:
        return Click(x, y, kind.strip() == "fg")
    except InvalidPrompt as e:
        raise click.BadParameter(f"{text!r}: {e}") from e


def address(text: str) -> str:
    """host:port. Raises BadParameter."""
    try:
        return check_address(text)
    except ValueError as e:
        raise click.BadParameter(str(e)) from e


def byte_count(text: str) -> int:
    """1073741824, 512MiB, 1.5GB or 2G. Raises BadParameter."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if not match or match[2] not in UNITS:
        raise click.BadParameter(f"{text!r} is no number of bytes; expected such as 512MiB, 1.5GB or 1073741824")
    count = float(match[1]) * UNITS[match[2]]
    if count > MAX_BYTES:
        raise click.BadParameter(f"{text[:40]!r} is more memory than any machine has; expected at most 8 EiB")
    return int(count)


def in_bytes(count: float) -> str:
    """For people: 1.5 GiB."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:,.0f} {units[0]}" if units[0] == "bytes" or count >= 100 else f"{count:.3g} {units[0]}"


def _numbers(coordinates: str, text: str, form: str) -> list[float]:
    expected = form.count(",") + 1
    try:
        numbers = [float(part) for part in coordinates.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != expected:
        raise click.BadParameter(f"{text!r}; expected {expected} numbers {form}, in pixels, without spaces")
    return numbers
