"""Which objects are measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from iog_export.datasets import DataError, Item

MIN_COCO_AREA = 64 * 64  # smaller objects of crowded scenes say little about a clicking annotator's work


def representative(items: Sequence[Item]) -> list[Item]:
    """The objects that count in an evaluation: all, but of a set named coco those of MIN_COCO_AREA and above.

    Raises DataError if none does.
    """
    counted = [item for item in items if item.collection != "coco" or item.area >= MIN_COCO_AREA]
    if not counted:
        raise DataError(f"none of the {len(items)} objects of coco has at least 64x64 pixels")
    return counted


def uncounted(items: Sequence[Item]) -> list[str]:
    """What `representative` leaves out, for people: one line, or none."""
    count = len(items) - len(representative(items))
    return [f"{count} objects of coco have under 64x64 pixels and do not count"] if count else []


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items, evenly from the list: the same ones each time."""
    indices = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[i] for i in indices]


def digest_of(items: Iterable[Item]) -> str:
    """Names a selection: which objects, with what labels."""
    lines = "\n".join(f"{item.name} {item.id} {item.bounds} {item.area}" for item in items)
    return hashlib.sha256(lines.encode()).hexdigest()
