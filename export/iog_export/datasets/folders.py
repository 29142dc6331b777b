"""The plain layout: `<set>/images/NAME.jpg` pairs with `<set>/masks/NAME.png`, a `LabelMap`.

A list has one `<set>/NAME` a line. `NAME-2` is a second annotation of the image NAME and has no image of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .labelmap import LabelMap
from .lists import read_list
from .photograph import DataError


@dataclass(frozen=True)
class Folders:
    """See `Layout`."""

    root: Path
    names: Sequence[str]
    skipped: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def open(cls, root: Path, split: str, listed: Path | None = None) -> Folders:
        """The photographs in `listed`, or in `<split>.txt`. Raises DataError."""
        return cls(root, read_list(listed or root / f"{split}.txt", "<set>/NAME"))

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whether the folder looks like this."""
        return any((masks.parent / "images").is_dir() for masks in root.glob("*/masks"))

    def image(self, name: str) -> Path:
        """The photograph's file."""
        path = self._file(name, "images", ".jpg")
        if path.stem.endswith("-2") and not path.exists():
            return path.with_name(f"{path.stem.removesuffix('-2')}.jpg")
        return path

    def labels(self, name: str) -> LabelMap:
        """What is labelled in it."""
        return LabelMap.read(self._file(name, "masks", ".png"))

    def _file(self, name: str, folder: str, suffix: str) -> Path:
        collection, _, stem = name.partition("/")
        if not stem:
            raise DataError(f"name {name!r}; expected <set>/NAME")
        return self.root / collection / folder / f"{stem}{suffix}"
