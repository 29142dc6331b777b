"""A photograph and the objects that are labelled in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from iog.arrays import BoolArray, UInt8Array
from iog.errors import IogError
from iog.prompt import Size


class DataError(IogError):
    """A data set that cannot be used, or a photograph or an object of it that must be left out."""


@dataclass(frozen=True, slots=True)
class Item:
    """An object, without pixels.

    name: of its photograph, `<set>/NAME`; bounds: x, y, width, height of its tight box; area: its pixels.
    """

    name: str
    id: int
    bounds: tuple[int, int, int, int]
    area: int

    @property
    def key(self) -> tuple[str, int]:
        """Names the object."""
        return self.name, self.id

    @property
    def collection(self) -> str:
        """The set that its photograph belongs to."""
        return self.name.split("/", 1)[0]

    @property
    def fill(self) -> float:
        """The share of its box that the object covers."""
        return self.area / (self.bounds[2] * self.bounds[3])


class Labels(Protocol):
    """The objects of a photograph. They may overlap; each has a mask of its own."""

    @property
    def size(self) -> Size:
        """Of the photograph that they were drawn on."""

    def items(self, name: str) -> Sequence[Item]:
        """The objects, those of a photograph of this name; none of them empty. Raises DataError: why there are none."""

    def mask(self, id: int) -> BoolArray:
        """(h, w), the object's pixels."""

    def known(self, id: int) -> BoolArray:
        """(h, w), where it is known whether a pixel is the object's."""


@dataclass(frozen=True, slots=True, eq=False)
class Photograph:
    """A decoded image with its labels. name: `<set>/NAME`; pixels: (h, w, 3) uint8 RGB, of the labels' size."""

    name: str
    pixels: UInt8Array
    labels: Labels


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """An object in its photograph."""

    item: Item
    photograph: Photograph

    @property
    def mask(self) -> BoolArray:
        """(h, w), the object's pixels in the whole photograph."""
        return self.photograph.labels.mask(self.item.id)

    @property
    def known(self) -> BoolArray:
        """(h, w), where it is known whether a pixel is the object's."""
        return self.photograph.labels.known(self.item.id)
