"""What an export costs in mean IoU: bundles as they are deployed, and the torch network, with a simulated annotator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from iog.backends.ort import OrtBackend
from iog.bundle import Bundle

from .datasets import DataError, DataSet, Layout
from .evaluation import protocol
from .evaluation.measure import Deployed, predictor_of
from .evaluation.objects import representative, spread, uncounted
from .evaluation.protocol import Segmenter
from .evaluation.session import annotate

CLICKS = (3, 5)  # after which masks are judged


class Items(Protocol):
    """A sequence or a data set."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...


@dataclass(frozen=True, slots=True)
class MeanIoU:
    """After each of CLICKS clicks, over so many objects: those whose photographs could be decoded."""

    objects: int
    iou: dict[int, float]

    def lost_by(self, other: MeanIoU) -> float:
        """How much lower the other one's are, at most."""
        return max(self.iou[count] - other.iou[count] for count in self.iou)


class Track(Protocol):
    """Passes on items and shows how far it is."""

    def __call__(self, items: Items, what: str) -> Iterable[Any]: ...  # noqa: D102


def untracked(items: Items, what: str) -> Iterable[Any]:
    """Shows nothing."""
    return items


def open_objects(layout: Layout, count: int | None, warn: Callable[[str], None] = lambda line: None) -> DataSet:
    """The objects that evaluations count and whose photographs can be decoded: at most `count`, evenly.

    warn: is told what is left out. Raises DataError.
    """
    found = DataSet.open(layout)
    for line in (*found.warnings(), *uncounted(found.items)):
        warn(line)
    items = representative(found.items)
    chosen = found.only(spread(items, count or len(items)))
    readable = chosen.readable()
    for name in sorted(readable.skipped.keys() - found.skipped.keys()):
        warn(f"skipped {name}: {readable.skipped[name]}")
    if len(readable) < len(chosen):
        warn(f"objects left, of {len(chosen)} chosen: {len(readable)}")
    return readable


def mean_ious(segment: Segmenter, objects: DataSet, track: Track = untracked, what: str = "mean IoU") -> MeanIoU:
    """Mean IoU of a segmenter's masks after each of CLICKS clicks; the box is two of them.

    Raises DataError if no photograph can be decoded.
    """
    draw = protocol.Protocol(clicks=CLICKS[-1])
    tracks = [annotate(segment, target, draw.opening(target), draw.clicks).ious for target in track(objects, what)]
    if not tracks:
        objects.readable()  # says why
        raise DataError(f"none of {len(objects)} objects could be measured: their photographs were out of reach")
    return MeanIoU(len(tracks), {count: float(np.mean([ious[count - 3] for ious in tracks])) for count in CLICKS})


def deployed_ious(bundle: Bundle, objects: DataSet, track: Track = untracked, what: str = "mean IoU") -> MeanIoU:
    """The same of a bundle, on ONNX Runtime."""
    with predictor_of(bundle, OrtBackend()) as predictor:
        return mean_ious(Deployed(predictor), objects, track, what)
