"""Which objects of which photographs are measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .data import DataError, Photograph, Target, read_photograph, targets_of
from .protocol import representative


@dataclass(frozen=True, slots=True)
class Item:
    """An object without its photograph's pixels. bounds: x, y, width, height of its tight box; area: its pixels."""

    name: str
    id: int
    bounds: tuple[int, int, int, int]
    area: int

    @property
    def key(self) -> tuple[str, int]:
        """Names the object."""
        return self.name, self.id

    def target(self, photograph: Photograph) -> Target:
        """The object again, in its photograph."""
        return Target(photograph, self.id, self.bounds, self.area)


@dataclass(frozen=True)
class Selection:
    """The objects found. skipped: photographs that could not be used, with the reasons."""

    items: tuple[Item, ...]
    skipped: dict[str, str]


def find_objects(root: Path, names: Iterable[str], *, min_area: int = 1) -> Selection:
    """Decode each photograph once and note its objects of at least `min_area` pixels that count (`representative`).

    Photographs that cannot be used are skipped. Raises DataError if nothing is left.
    """

    def load(name: str) -> list[Item] | DataError:
        try:
            found = representative(targets_of(read_photograph(root, name), min_area))
        except DataError as e:
            return e
        return [Item(name, target.id, target.bounds, target.area) for target in found]

    names = list(dict.fromkeys(names))
    items: list[Item] = []
    skipped: dict[str, str] = {}
    with ThreadPoolExecutor(2) as pool:
        for name, result in zip(names, pool.map(load, names), strict=True):
            if isinstance(result, DataError):
                skipped[name] = str(result)
            else:
                items += result
    if not items:
        first = "".join(f"; {name}: {reason}" for name, reason in list(skipped.items())[:1])
        raise DataError(
            f"{root}: no object to measure in {len(names)} listed photographs, {len(skipped)} of which are unusable"
            f" (objects of at least {min_area} pixels were looked for){first}"
        )
    return Selection(tuple(items), skipped)


def digest_of(items: Iterable[Item]) -> str:
    """Names a selection: which objects, with what labels."""
    lines = "\n".join(f"{item.name} {item.id} {item.bounds} {item.area}" for item in items)
    return hashlib.sha256(lines.encode()).hexdigest()
