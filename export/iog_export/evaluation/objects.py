"""Which objects are measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from iog_export.datasets import Item

MIN_COCO_AREA = 64 * 64  # smaller objects of crowded scenes say little about a clicking annotator's work


def representative(items: Iterable[Item]) -> list[Item]:
    """The objects that count in an evaluation: all, but of a set named coco those of MIN_COCO_AREA and above."""
    return [item for item in items if item.collection != "coco" or item.area >= MIN_COCO_AREA]


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items, evenly from the list: the same ones each time."""
    indices = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[i] for i in indices]


def digest_of(items: Iterable[Item]) -> str:
    """Names a selection: which objects, with what labels."""
    lines = "\n".join(f"{item.name} {item.id} {item.bounds} {item.area}" for item in items)
    return hashlib.sha256(lines.encode()).hexdigest()
