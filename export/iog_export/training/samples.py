"""From objects to training batches: augmented, prompted as an annotator would, cropped as the runtime crops."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from iog.arrays import UInt8Array
from iog.crop import Crop, CropSpec
from iog.guidance import GuidanceSpec, heatmap
from iog.prompt import Box
from torch.utils.data import IterableDataset, get_worker_info

from iog_export.annotator import inside_point, loosened, tight_box
from iog_export.datasets import DataError, DataSet, Item, Target

from . import augment

# Collections differ in how much their masks teach: people and salient objects most, regions of bsds least.
WEIGHTS = {"ecssd": 1.6, "coco": 1.4, "coco-person": 2.2, "penn-fudan": 0.6, "balloon": 0.4, "bsds": 0.2}
TRANSPLANTED, OCCLUDED = 0.15, 0.25  # shares of the scenes, with all of the augmentation
MIN_TARGET = 24  # pixels of a target in the network's frame
UNREADABLE_IN_A_ROW = 20  # photographs; then the data folder is gone rather than a file broken
VANISHED_IN_A_ROW = 1000  # objects; then hardly any is left to train on
INSIDE_RADIUS = 30 / 512  # of the network's side: table 7 of the paper

log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """One object in the network's frame, of side S.

    inputs: (5, S, S) uint8: red, green, blue, foreground heat, background heat; target, known: (S, S) uint8, 0 or 1.
    """

    inputs: UInt8Array
    target: UInt8Array
    known: UInt8Array


class Batch(NamedTuple):
    """`Sample`s, stacked: (B, 5, S, S) uint8, (B, 1, S, S) uint8 and (B, 1, S, S) uint8."""

    inputs: torch.Tensor
    target: torch.Tensor
    known: torch.Tensor


class Stage(NamedTuple):
    """What the network sees at one time of training: crops of this side, so many at once.

    strength: of the augmentation, 0..1. Few passes over the data need little, and the last ones show photographs much
    as annotators will.
    """

    size: int
    batch: int
    strength: float


@dataclass(frozen=True)
class Geometry:
    """How the trained model crops and draws, at its deployed size; `at` scales both to another side of the frame."""

    crop: CropSpec
    guidance: GuidanceSpec

    @property
    def settings(self) -> dict[str, Any]:
        """All that it consists of, by name."""
        return {**asdict(self.crop), "fwhm": self.guidance.fwhm}

    def at(self, size: int) -> Geometry:
        """The same model in a frame of this side."""
        crop = CropSpec(
            size, self.crop.relax_pixels, self.crop.relax_fraction, self.crop.interpolation, self.crop.corner_offset
        )
        return Geometry(crop, GuidanceSpec(size, self.guidance.fwhm * size / self.guidance.size))


class Batches(IterableDataset[Batch]):
    """Endless batches of the current stage: an index in shared memory, which the training loop sets.

    The stream is a function of the seed and of the loading process that reads it.
    """

    def __init__(
        self,
        data: DataSet,
        geometry: Geometry,
        stages: Sequence[Stage],
        current: torch.Tensor,
        seed: tuple[int, ...],
    ) -> None:
        super().__init__()
        self._data = data
        self._geometries = [geometry.at(stage.size) for stage in stages]
        self._stages = stages
        self._current = current
        self._seed = seed
        weights = np.array([_weight(item) for item in data.items])
        self._cumulative = np.cumsum(weights / weights.sum())

    def __iter__(self) -> Iterator[Batch]:
        cv2.setNumThreads(0)  # the cores belong to the network
        worker = get_worker_info()
        rng = np.random.default_rng((*self._seed, worker.id if worker else 0))
        while True:
            stage, geometry = self._stages[int(self._current)], self._geometries[int(self._current)]
            samples = [self._sample(geometry, stage.strength, rng) for _ in range(stage.batch)]
            inputs, target, known = (torch.from_numpy(np.stack(parts)) for parts in zip(*samples, strict=True))
            yield Batch(inputs, target[:, None], known[:, None])

    def _draw(self, rng: np.random.Generator) -> Target:
        unreadable = 0
        while True:
            try:
                return self._data[int(np.searchsorted(self._cumulative, rng.random()))]
            except DataError as e:
                log.warning("passed over: %s", e)
                unreadable += 1
                if unreadable == UNREADABLE_IN_A_ROW:
                    raise

    def _sample(self, geometry: Geometry, strength: float, rng: np.random.Generator) -> Sample:
        def seen(target: Target, strength: float = strength) -> augment.Scene:
            return augment.scene(target, geometry.crop.size, rng, strength)

        for _ in range(VANISHED_IN_A_ROW):
            scene = seen(target := self._draw(rng))
            if not scene.target.any():
                continue
            if rng.random() < TRANSPLANTED * strength:
                scene = augment.transplanted(scene, seen(self._draw(rng), 0.0))
            if rng.random() < OCCLUDED * strength:
                other = seen(self._draw(rng))
                if other.target.any():
                    scene = augment.occluded(scene, other, rng)
            if (sample := prompted(scene, geometry, rng, strength)) is not None:
                return sample
        name, id = target.item.key
        raise DataError(
            f"{VANISHED_IN_A_ROW} objects drawn in a row, the last of them {name} object {id}, have fewer than "
            f"{MIN_TARGET} pixels in crops of side {geometry.crop.size}: they are too thin to train on; "
            "take others, or a larger --size"
        )


def prompted(
    scene: augment.Scene, geometry: Geometry, rng: np.random.Generator, strength: float = 1.0
) -> Sample | None:
    """Box and click an object as people do, then crop and draw as the runtime does; None if too little is visible.

    strength: of the changes to its colours, 0..1.
    """
    if not scene.target.any():
        return None
    box = loosened(tight_box(scene.target), looseness(rng), scene.size)
    limit = scene.photograph
    if limit.x0 < box.x1 and limit.y0 < box.y1 and box.x0 < limit.x1 and box.y0 < limit.y1:  # as the runtime clips
        box = Box(max(box.x0, limit.x0), max(box.y0, limit.y0), min(box.x1, limit.x1), min(box.y1, limit.y1))
    crop = Crop.around(box, geometry.crop)
    interpolation = geometry.crop.interpolation
    layers = np.dstack([scene.target, scene.known, scene.inside]).astype(np.uint8) * 255
    layers = crop.extract(layers, interpolation)
    target, known, inside = layers[:, :, 0] >= 128, layers[:, :, 1] >= 250, layers[:, :, 2] >= 128
    (left, top), _, _, (right, bottom) = corners = crop.corners(box, geometry.crop.corner_offset)
    boxed = np.zeros_like(target)
    boxed[top : bottom + 1, left : right + 1] = target[top : bottom + 1, left : right + 1]
    if boxed.sum() < MIN_TARGET:
        return None
    if rng.random() < 0.5:
        point = inside_point(boxed, rng, share=1.0, radius=INSIDE_RADIUS * geometry.crop.size)
    else:
        point = inside_point(boxed, rng, share=0.3)
    pixels = augment.recoloured(crop.extract(scene.pixels, interpolation), inside, rng, strength)
    heat = [
        heatmap(np.array([(point.x, point.y)], np.int32), geometry.guidance),
        heatmap(corners, geometry.guidance),
    ]
    inputs = np.concatenate([pixels.transpose(2, 0, 1), np.stack(heat)])
    return Sample(inputs, target.astype(np.uint8), known.astype(np.uint8))


def looseness(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """By which share of its width or height a box leaves each side of its object: left, top, right, bottom.

    A careful hand, a careless one, and one that keeps the same distance all around: with independent sides alone, a box
    that is loose on all four, as many people draw them, is so rare that networks fail on it.
    """
    kind = rng.random()
    if kind < 0.36:
        sides = rng.uniform(-0.02, 0.08, 4)
    elif kind < 0.50:
        sides = rng.uniform(-0.02, 0.20, 4)
    else:
        sides = (rng.uniform(0.0, 0.24) + rng.normal(0, 0.02, 4)).clip(-0.02, 0.24)
    left, top, right, bottom = sides.tolist()
    return left, top, right, bottom


def _weight(item: Item) -> float:
    """How often to draw an object: thin and hollow objects, the hard ones, more often; tiny ones less."""
    weight = WEIGHTS.get(item.collection, 1.0)
    if item.fill < 0.35:
        weight *= 1.8
    elif item.fill < 0.55:
        weight *= 1.4
    if item.area < 48 * 48:
        weight *= 0.4
    return weight
