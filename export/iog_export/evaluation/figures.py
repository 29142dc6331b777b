"""Means over objects: by data set, by the objects' size, by how much of their boxes they fill."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .records import Record, Track
from .session import COUNTS, GOALS, clicks_to

ALL = "all"

Groups = Mapping[str, Sequence[Record]]


@dataclass(frozen=True, slots=True)
class Figures:
    """One segmenter on a group of objects.

    objects: those measured; failed: those on which it raised, which count in no mean.
    iou, boundary_iou: means after so many clicks. standard_error: of `iou`.
    below_half: the share of objects with an IoU under 0.5, after so many clicks.
    clicks_to: mean number of clicks to the goal, where an object that never reached it counts with all clicks;
    not_reached: the share of those. Both are empty for segmenters that were not given all clicks.
    """

    objects: int
    failed: int
    iou: dict[int, float]
    standard_error: dict[int, float]
    boundary_iou: dict[int, float]
    below_half: dict[int, float]
    clicks_to: dict[float, float]
    not_reached: dict[float, float]


def figures(records: Iterable[Record], segmenter: str, clicks: int, *, goals: bool) -> Figures:
    """Figures of one segmenter, which was given `clicks` clicks. goals: with `clicks_to`."""
    records = list(records)
    tracks = [record.tracks[segmenter] for record in records if segmenter in record.tracks]
    counts = [count for count in COUNTS if count <= clicks and tracks]
    ious = {count: np.array([track.ious[count - 3] for track in tracks]) for count in counts}
    boundaries = {count: np.array([track.boundary_ious[count - 3] for track in tracks]) for count in counts}
    reached = {goal: [clicks_to(track, goal) for track in tracks] for goal in GOALS if goals and tracks}
    return Figures(
        objects=len(tracks),
        failed=sum(segmenter in record.errors for record in records),
        iou={count: float(values.mean()) for count, values in ious.items()},
        standard_error={
            count: float(values.std(ddof=1) / np.sqrt(len(values))) for count, values in ious.items() if len(values) > 1
        },
        boundary_iou={count: float(values.mean()) for count, values in boundaries.items()},
        below_half={count: float((values < 0.5).mean()) for count, values in ious.items()},
        clicks_to={goal: float(np.mean([n or clicks for n in numbers])) for goal, numbers in reached.items()},
        not_reached={goal: float(np.mean([n is None for n in numbers])) for goal, numbers in reached.items()},
    )


def each_set(records: Sequence[Record]) -> Groups:
    """The objects of each set."""
    return dict(sorted(_grouped(records, lambda record: record.collection).items()))


def by_set(records: Sequence[Record]) -> Groups:
    """All objects, if they come from several sets, and those of each set, of which one may be called "all" itself."""
    sets = each_set(records)
    if len(sets) == 1:
        return sets
    return {ALL: records, **{f"set {name}" if name == ALL else name: members for name, members in sets.items()}}


def by_size(records: Sequence[Record]) -> Groups:
    """By the object's area, in the classes of COCO."""
    return _grouped(records, lambda r: size_class(r.area), SIZES)


def by_fill(records: Sequence[Record]) -> Groups:
    """By the share of its tight box that the object covers: hollow and thin objects are the hard ones."""
    return _grouped(records, lambda r: fill_class(r.fill), FILLS)


SIZES = ("under 32x32 px", "32x32 to 96x96 px", "from 96x96 px")
FILLS = ("under 0.35", "0.35 to 0.55", "from 0.55")


def size_class(area: int) -> str:
    """Which of SIZES an area in pixels belongs to."""
    return SIZES[(area >= 32**2) + (area >= 96**2)]


def fill_class(fill: float) -> str:
    """Which of FILLS a share belongs to."""
    return FILLS[(fill >= 0.35) + (fill >= 0.55)]


def mean_curve(records: Iterable[Record], segmenter: str) -> dict[int, float]:
    """Mean IoU after 3, 4, ... clicks, as far as all objects have been given that many."""
    tracks = _tracks(records, segmenter)
    length = min((len(track.ious) for track in tracks), default=0)
    length = min(length, COUNTS[-1] - 2)
    return {3 + i: float(np.mean([track.ious[i] for track in tracks])) for i in range(length)}


def setbacks(records: Iterable[Record], segmenter: str) -> dict[int, float]:
    """The further clicks that lower the mean IoU, and by how much.

    An annotator who has no further click to make, because the last of GOALS is reached, keeps the mask.
    """
    tracks = [track.ious for track in _tracks(records, segmenter)]
    longest = max(map(len, tracks), default=0)
    lasting = np.array([[*ious, *ious[-1:] * (longest - len(ious))] for ious in tracks]).reshape(len(tracks), longest)
    changes = np.diff(lasting.mean(axis=0)) if tracks else np.empty(0)
    return {count: float(-change) for count, change in enumerate(changes, 4) if change < 0}


def reached_curve(records: Iterable[Record], segmenter: str, goal: float, clicks: int) -> dict[int, float]:
    """The share of objects whose IoU was `goal` by 3, 4, ... `clicks` clicks."""
    numbers = [clicks_to(track, goal) or clicks + 1 for track in _tracks(records, segmenter)]
    if not numbers:
        return {}
    return {count: float(np.mean([n <= count for n in numbers])) for count in range(3, clicks + 1)}


def sweep_means(records: Iterable[Record], labels: Iterable[str]) -> dict[str, float]:
    """Mean IoU by condition, over the objects that were measured under it."""
    records = list(records)
    found = {label: [record.sweep[label] for record in records if label in record.sweep] for label in labels}
    return {label: float(np.mean(values)) for label, values in found.items() if values}


def _tracks(records: Iterable[Record], segmenter: str) -> list[Track]:
    return [record.tracks[segmenter] for record in records if segmenter in record.tracks]


def _grouped(
    records: Iterable[Record], key: Callable[[Record], str], order: Sequence[str] = ()
) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {name: [] for name in order}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return {name: members for name, members in groups.items() if members}
