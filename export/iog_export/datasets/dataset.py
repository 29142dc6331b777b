"""The objects of many photographs, decoded when they are looked at."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Protocol

import PIL.Image
from iog.cores import allowed
from iog.errors import InvalidImage
from iog.image import Image
from iog.prompt import Size

from .photograph import DataError, Item, Labels, Photograph, Target
from .picture import opened

WARNINGS = 20  # of what was skipped, one by one
EXIF_ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)

log = logging.getLogger(__name__)


class Layout(Protocol):
    """Photographs of a data folder that a list names, and where they and their labels lie.

    names: `<set>/NAME`, each once. skipped: what has been found unusable already, with the reasons.
    """

    @property
    def names(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def skipped(self) -> Mapping[str, str]: ...  # noqa: D102

    def image(self, name: str) -> Path:
        """The photograph's file. Raises DataError."""

    def labels(self, name: str) -> Labels:
        """What is labelled in it. Raises DataError."""


def shared(one: Layout, other: Layout) -> list[str]:
    """The names in `other` of photographs that are in `one` too, under whatever name; missing ones are left out."""
    first, second = _files(one), _files(other)
    return sorted(second[file] for file in first.keys() & second.keys())


def _files(layout: Layout) -> dict[Path, str]:
    files = {}
    for name in layout.names:
        with contextlib.suppress(DataError):
            files[layout.image(name).resolve()] = name
    return files


class DataSet:
    """A sequence of targets. Iteration passes over photographs that turn out to be unreadable, with a warning.

    items: the same objects without pixels.
    skipped: photographs, and objects of usable ones, that cannot be used, with the reasons.
    small: for people, what was left out for its size; empty if nothing was.
    """

    def __init__(
        self,
        layout: Layout,
        items: Sequence[Item],
        skipped: Mapping[str, str],
        resident: Mapping[str, Photograph] | None = None,
        small: str = "",
    ) -> None:
        self.items = tuple(items)
        self.skipped = skipped
        self.small = small
        self._layout = layout
        self._resident = resident or {}
        self._last: Photograph | None = None

    @classmethod
    def open(cls, layout: Layout, *, min_area: int = 1, keep: int = 0) -> DataSet:
        """Find the objects of at least `min_area` pixels, in the order of the layout's names.

        keep: photographs stay decoded in memory up to so many bytes; the others are decoded each time.
        Labels are read, and the headers of images; what cannot be used is skipped. Raises DataError if nothing is left.
        """
        items: list[Item] = []
        small = 0
        skipped = dict(layout.skipped)
        resident: dict[str, Photograph] = {}
        room = keep

        def load(name: str) -> tuple[Sequence[Item], int, Photograph | None] | DataError:
            try:
                labels = layout.labels(name)
                _check_size(_size_of(layout.image(name)), labels.size)
                if not (found := labels.items(name)):
                    raise DataError("no object is labelled in it")
                large = [item for item in found if item.area >= min_area]
                photograph = _decoded(layout, name, labels) if large and room > 0 else None
                return large, len(found) - len(large), photograph
            except DataError as e:
                return e

        with ThreadPoolExecutor(min(allowed(), 16)) as pool:
            for name, result in zip(layout.names, pool.map(load, layout.names), strict=True):
                if isinstance(result, DataError):
                    skipped[name] = str(result)
                    continue
                found, too_small, photograph = result
                items += found
                small += too_small
                if photograph is not None and room > 0:
                    resident[name] = photograph
                    room -= photograph.pixels.nbytes * 4 // 3  # with a label map
        if not items:
            first = next((f"; {name}: {reason}" for name, reason in skipped.items()), "")
            raise DataError(
                f"no object of at least {min_area} pixels in {len(layout.names)} listed photographs; "
                f"{len(skipped)} photographs and objects are unusable{first}"
            )
        left_out = f"left out, as they have under {min_area} pixels: {small} objects" if small else ""
        return cls(layout, items, skipped, resident, left_out)

    def warnings(self) -> list[str]:
        """What was skipped, for people: the first ones by name, and how many in all."""
        lines = [f"skipped {name}: {reason}" for name, reason in islice(self.skipped.items(), WARNINGS)]
        if self.skipped:
            lines.append(f"photographs and objects skipped: {len(self.skipped)}; objects left: {len(self.items)}")
        return [*lines, self.small] if self.small else lines

    def only(self, items: Iterable[Item]) -> DataSet:
        """The same photographs, and these of their objects."""
        return DataSet(self._layout, tuple(items), self.skipped, self._resident, self.small)

    def readable(self) -> DataSet:
        """Those whose photographs can be decoded; each is tried. Raises DataError if there are none."""
        items: list[Item] = []
        skipped = dict(self.skipped)
        reason = ""
        for item in self.items:
            try:
                self.photograph(item.name)
            except DataError as e:
                skipped[item.name] = reason = str(e)
            else:
                items.append(item)
        if not items:
            raise DataError(
                f"none of {len(self)} objects is in a photograph that can be decoded; the last one: {reason}"
            )
        return DataSet(self._layout, items, skipped, self._resident, self.small)

    def photograph(self, name: str) -> Photograph:
        """Decode a photograph, unless it is in memory or was the last one asked for. Raises DataError."""
        if name in self._resident:
            return self._resident[name]
        if self._last is None or self._last.name != name:
            self._last = _decoded(self._layout, name, self._layout.labels(name))
        return self._last

    def target(self, item: Item) -> Target:
        """An object in its photograph. Raises DataError if that cannot be decoded."""
        return Target(item, self.photograph(item.name))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Target:
        return self.target(self.items[index])

    def __iter__(self) -> Iterator[Target]:
        for item in self.items:
            try:
                yield self.target(item)
            except DataError as e:
                log.warning("passed over %s object %d: %s", *item.key, e)


def _decoded(layout: Layout, name: str, labels: Labels) -> Photograph:
    path = layout.image(name)
    try:
        pixels = Image.read(path).pixels
    except InvalidImage as e:
        raise DataError(f"{path}: {e}") from e
    _check_size(Size(*pixels.shape[:2]), labels.size)
    return Photograph(name, pixels, labels)


def _check_size(image: Size, labels: Size) -> None:
    if image != labels:
        raise DataError(f"the image is {image} and its labels are {labels}; expected the same size")


def _size_of(path: Path) -> Size:
    """Of an image when upright, from its header."""
    with opened(path) as picture:
        sideways = False
        with contextlib.suppress(Exception):  # EXIF that cannot be read says nothing
            exif = PIL.Image.Image.getexif(picture)  # PNG's own decodes the picture first
            sideways = exif.get(EXIF_ORIENTATION) in SIDEWAYS
        return Size(picture.width, picture.height) if sideways else Size(picture.height, picture.width)
