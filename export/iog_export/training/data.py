"""Photographs with object masks: `<set>/images/NAME.jpg` pairs with `<set>/masks/NAME.png`.

Masks are 8-bit: 0 background, 1..254 one id per object, 255 void (ignored). A list file has one `<set>/NAME` a line.
`NAME-2` is a second annotation of the image NAME and has no image of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from iog.arrays import BoolArray, UInt8Array
from iog.errors import IogError

VOID = 255

log = logging.getLogger(__name__)


class DataError(IogError):
    """A data folder or list file that cannot be used, or a photograph that must be skipped."""


@dataclass(frozen=True, slots=True, eq=False)
class Photograph:
    """An image with its labels.

    name: `<set>/NAME`; pixels: (h, w, 3) uint8 RGB; labels: (h, w) uint8, see above.
    """

    name: str
    pixels: UInt8Array
    labels: UInt8Array

    @property
    def collection(self) -> str:
        """The set that it belongs to."""
        return self.name.split("/", 1)[0]


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """One object of a photograph. bounds: x, y, width, height of its tight box; area: its pixels."""

    photograph: Photograph
    id: int
    bounds: tuple[int, int, int, int]
    area: int

    @property
    def fill(self) -> float:
        """The share of its box that the object covers."""
        return self.area / (self.bounds[2] * self.bounds[3])

    @property
    def mask(self) -> BoolArray:
        """(h, w), the whole photograph."""
        return np.asarray(self.photograph.labels == self.id)

    @property
    def known(self) -> BoolArray:
        """(h, w), where the labels are not void."""
        return np.asarray(self.photograph.labels != VOID)


@dataclass(frozen=True)
class DataSet:
    """All objects of the photographs on a list. skipped: the names that could not be used, with the reasons."""

    targets: tuple[Target, ...]
    skipped: dict[str, str]

    @classmethod
    def read(cls, root: Path, names: Iterable[str], *, min_area: int = 1) -> DataSet:
        """Decode all photographs, which stay in memory, and find their objects of at least `min_area` pixels.

        A photograph that cannot be used is skipped with a warning. Raises DataError if nothing is left.
        """
        targets: list[Target] = []
        skipped: dict[str, str] = {}

        def load(name: str) -> list[Target] | DataError:
            try:
                return _targets(read_photograph(root, name), min_area)
            except DataError as e:
                return e

        names = list(names)
        with ThreadPoolExecutor(2) as pool:
            for name, result in zip(names, pool.map(load, names), strict=True):
                if isinstance(result, DataError):
                    skipped[name] = str(result)
                    log.warning("skipped %s: %s", name, result)
                else:
                    targets += result
        if skipped:
            log.warning("%d of %d photographs skipped", len(skipped), len(names))
        if not targets:
            raise DataError(f"{root}: no usable object in {len(names)} listed photographs ({len(skipped)} skipped)")
        return cls(tuple(targets), skipped)


def read_list(path: Path) -> list[str]:
    """The names in a list file; blank lines and lines that start with # are left out."""
    try:
        lines = path.read_text().splitlines()
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}; expected a list file with one <set>/NAME per line") from e
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not names:
        raise DataError(f"{path} is empty; expected one <set>/NAME per line")
    return names


def read_photograph(root: Path, name: str) -> Photograph:
    """Raises DataError: a name of another form, a missing or unreadable file, sizes that differ, no object."""
    collection, _, stem = name.partition("/")
    if not stem:
        raise DataError(f"name {name!r}; expected <set>/NAME")
    image_path = root / collection / "images" / f"{stem}.jpg"
    if stem.endswith("-2") and not image_path.exists():
        image_path = image_path.with_name(f"{stem.removesuffix('-2')}.jpg")
    mask_path = root / collection / "masks" / f"{stem}.png"
    pixels = np.asarray(cv2.cvtColor(_decode(image_path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), np.uint8)
    labels = _decode(mask_path, cv2.IMREAD_UNCHANGED)
    if labels.ndim != 2:
        raise DataError(f"{mask_path} has {labels.shape[2]} channels; expected an 8-bit mask of one channel")
    if pixels.shape[:2] != labels.shape:
        (h, w), (mask_h, mask_w) = pixels.shape[:2], labels.shape
        raise DataError(f"the image is {w}x{h} and the mask {mask_w}x{mask_h}; expected the same size")
    if not ((labels > 0) & (labels < VOID)).any():
        raise DataError(f"{mask_path} holds no object; expected ids 1..254")
    return Photograph(name, pixels, labels)


def _decode(path: Path, flags: int) -> UInt8Array:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}") from e
    image = cv2.imdecode(data, flags) if data.size else None
    if image is None or image.dtype != np.uint8:
        raise DataError(f"{path} cannot be read as an 8-bit image")
    return np.asarray(image, np.uint8)


def _targets(photograph: Photograph, min_area: int) -> list[Target]:
    areas = np.bincount(photograph.labels.ravel(), minlength=256)
    targets = []
    for label in np.flatnonzero(areas[1:VOID] >= min_area) + 1:
        x, y, width, height = cv2.boundingRect((photograph.labels == label).astype(np.uint8))
        targets.append(Target(photograph, int(label), (x, y, width, height), int(areas[label])))
    return targets
