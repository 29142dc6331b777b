"""What an export costs in mean IoU: bundles as they are deployed, and the torch network, with a simulated annotator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from iog.arrays import BoolArray, UInt8Array
from iog.bundle import Bundle
from iog.crop import Crop
from iog.image import Image
from iog.prompt import Prompt

from .datasets import DataSet
from .datasets.formats import open_layout
from .evaluation import protocol
from .evaluation.objects import representative, spread
from .evaluation.protocol import Segmenter
from .evaluation.session import annotate
from .networks import IOG
from .verify import reference_logits

CLICKS = (3, 5)  # after which masks are judged


class Items(Protocol):
    """A sequence or a data set."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...


class Track(Protocol):
    """Passes on items and shows how far it is."""

    def __call__(self, items: Items, what: str) -> Iterable[Any]: ...  # noqa: D102


def untracked(items: Items, what: str) -> Iterable[Any]:
    """Shows nothing."""
    return items


def open_objects(data: Path, split: str, count: int | None) -> DataSet:
    """The objects of a data folder's split that evaluations count, at most `count`, evenly. Raises DataError."""
    found = DataSet.open(open_layout(data, split))
    items = representative(found.items)
    return found.only(spread(items, min(count or len(items), len(items))))


def mean_ious(
    segment: Segmenter, objects: DataSet, track: Track = untracked, what: str = "mean IoU"
) -> dict[int, float]:
    """Mean IoU of a segmenter's masks after each of CLICKS clicks; the box is two of them."""
    draw = protocol.Protocol(clicks=CLICKS[-1])
    tracks = [annotate(segment, target, draw.opening(target), draw.clicks).ious for target in track(objects, what)]
    return {count: float(np.mean([ious[count - 3] for ious in tracks])) for count in CLICKS}


def torch_segmenter(network: IOG, bundle: Bundle) -> Segmenter:
    """The torch network in fp32, with a bundle's crop, guidance and threshold."""

    def segment(pixels: UInt8Array, prompt: Prompt) -> BoolArray:
        image = Image.from_array(pixels)
        logits = reference_logits(network, bundle, image, prompt)
        crop = Crop.around(prompt.within(image.size).box, bundle.crop)
        mask = np.zeros(pixels.shape[:2], bool)
        x0, y0, x1, y1 = crop.visible(image.size)
        mask[y0:y1, x0:x1] = crop.scores(logits, image.size) > bundle.manifest.threshold
        return mask

    return segment
