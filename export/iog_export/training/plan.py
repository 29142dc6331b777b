"""What a training is to do: its network, and a schedule in shares of its time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np

from iog_export.networks import NetworkSpec

from .samples import Geometry, Stage

# (share of the time from which it holds, probabilities of 0, 1, 2, ... correction clicks on a batch)
ClickSchedule: TypeAlias = tuple[tuple[float, tuple[float, ...]], ...]

# (share of the time from which it holds, what the network then sees)
StageSchedule: TypeAlias = tuple[tuple[float, Stage], ...]

# A network that knows nothing learns most from the first mask; one that segments already is corrected from the start,
# and late by as many clicks as a patient annotator makes, so that none of them spoils a mask.
CLICKS_FROM_SCRATCH: ClickSchedule = ((0.0, (1.0,)), (0.2, (0.6, 0.4)), (0.5, (0.35, 0.35, 0.17, 0.08, 0.05)))
CLICKS_FROM_TRAINED: ClickSchedule = (
    (0.0, (0.5, 0.35, 0.1, 0.05)),
    (0.5, (0.32, 0.3, 0.14, 0.08, 0.05, 0.04, 0.03, 0.02, 0.02)),
)

LEARNING_RATE_FROM_SCRATCH = 2e-3
LEARNING_RATE_FROM_TRAINED = 5e-4


def growing(size: int, batch: int, augmentation: float, last: float) -> StageSchedule:
    """Crops that grow to the side `size`, of which `batch` go at once, with augmentation that falls to the strength
    `last`. Small crops first: early on, passes teach more than pixels.
    """
    return (
        (0.0, Stage(size // 2, 2 * batch, augmentation)),
        (0.55, Stage(size * 3 // 4 // 32 * 32, 3 * batch // 2, (augmentation + last) / 2)),
        (0.78, Stage(size, batch, last)),
    )


def settling(size: int, batch: int, augmentation: float, last: float) -> StageSchedule:
    """For a network that segments already: crops of two thirds of the side `size`, then of all of it, with augmentation
    of the strength `last`.
    """
    return (
        (0.0, Stage(max(size * 2 // 3 // 32 * 32, 64), 3 * batch // 2, augmentation)),
        (0.45, Stage(size, batch, last)),
    )


@dataclass(frozen=True)
class Plan:
    """A training.

    minutes: its time, the only bound.
    stages, clicks: see StageSchedule, ClickSchedule. Both begin at 0.
    accumulate: batches a step.
    learning_rate, weight_decay: of AdamW, at the peak and on weights alone; clip: of the gradient's norm.
    average: decay, per step, of the averaged weights, which are the ones that are kept.
    settled: the share of the time from which the averaged network is trained, in which batch norms keep the statistics
        that they are then given, for every number of clicks the same, as when it is deployed, and in the last stage;
        settled_rate: the learning rate from there, as a share of its peak; norm_crops: over how many crops the
        statistics are measured.
    save_every_s, validate_every_s: of the training's time, in seconds.
    """

    spec: NetworkSpec
    geometry: Geometry
    minutes: float
    stages: StageSchedule
    clicks: ClickSchedule = CLICKS_FROM_SCRATCH
    accumulate: int = 1
    learning_rate: float = LEARNING_RATE_FROM_SCRATCH
    warm_up: float = 0.04
    weight_decay: float = 0.04
    clip: float = 2.0
    average: float = 0.997
    settled: float = 0.9
    settled_rate: float = 0.25
    norm_crops: int = 320
    seed: int = 0
    save_every_s: float = 180.0
    validate_every_s: float = 600.0
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what the training gives, by name: what a checkpoint to go on from must agree with."""
        named = ("spec", "geometry", "stages", "clicks", "save_every_s", "validate_every_s", "provenance")
        return {
            **asdict(self.spec),
            **self.geometry.settings,
            **{name: value for name, value in vars(self).items() if name not in named},
            "stages": [[start, *stage] for start, stage in self.stages],
            "clicks": [[start, *shares] for start, shares in self.clicks],
        }

    def stage(self, progress: float) -> int:
        """The index of the stage at this share of the time; of the last one for the settled network."""
        if progress >= self.settled:
            return len(self.stages) - 1
        return max(i for i, (start, _) in enumerate(self.stages) if start <= max(progress, 0.0))

    def rate(self, progress: float) -> float:
        """One cycle, a linear rise, then half a cosine down to a thousandth; half a cosine for the settled network."""
        start, end, peak = self.warm_up, min(self.settled, 1.0), self.learning_rate
        if progress >= self.settled:
            start, end, peak = max(end, start), 1.0, peak * self.settled_rate
        if progress < self.warm_up:
            return peak * (0.05 + 0.95 * progress / self.warm_up)
        fall = min((progress - start) / max(end - start, 1e-9), 1.0)
        return peak * (0.001 + 0.999 * (1 + math.cos(math.pi * fall)) / 2)

    def corrections(self, progress: float, rng: np.random.Generator) -> int:
        """How many correction clicks to simulate on the next batch."""
        shares = next(p for start, p in reversed(self.clicks) if start <= max(progress, 0.0))
        return int(rng.choice(len(shares), p=shares))


def differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """Where two settings disagree, for people; what only one of them names is not compared."""
    unlike = [name for name in mine if name in theirs and theirs[name] != mine[name]]
    return [f"{name} is {theirs[name]} there and {mine[name]} here" for name in unlike]
