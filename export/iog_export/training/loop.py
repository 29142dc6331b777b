"""The training loop: a schedule in wall-clock time, iterative clicks (section 3.3 of the paper), averaged weights.

The learning rate, the size of the crops and the number of simulated clicks are functions of the share of the training
time that has passed: a busy machine makes fewer passes, never an unfinished schedule.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from iog.arrays import UInt8Array
from iog.guidance import GuidanceSpec, draw
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from iog_export.networks import IOG, NetworkSpec, Outputs

from .annotator import correction
from .data import Target
from .evaluation import Protocol, Summary, evaluate, summarize, torch_segmenter
from .losses import loss
from .samples import Batch, Batches, Geometry, Stage
from .snapshot import Snapshot, SnapshotError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A training.

    minutes: its time, the only bound.
    stages: (share of the time at which it begins, what the network then sees); small crops first: early on, passes
        teach more than pixels. clicks_from: the share at which correction clicks begin.
    learning_rate, weight_decay: of AdamW, at the peak and on weights alone; clip: of the gradient's norm.
    average: decay, per step, of the averaged weights, which are the ones that are kept.
    """

    spec: NetworkSpec
    geometry: Geometry
    minutes: float
    stages: tuple[tuple[float, Stage], ...] = (
        (0.0, Stage(128, 20)),
        (0.55, Stage(192, 14)),
        (0.78, Stage(256, 10)),
    )
    learning_rate: float = 2e-3
    warm_up: float = 0.04
    weight_decay: float = 0.02
    clip: float = 2.0
    average: float = 0.997
    clicks_from: float = 0.20
    seed: int = 0
    save_every_s: float = 180.0
    validate_every_s: float = 600.0
    bfloat16: bool = True
    provenance: dict[str, Any] = field(default_factory=dict)

    def stage(self, progress: float) -> int:
        """The index of the stage at this share of the time."""
        return max(i for i, (start, _) in enumerate(self.stages) if start <= max(progress, 0.0))

    def rate(self, progress: float) -> float:
        """One cycle: a linear rise, then half a cosine down to a thousandth."""
        if progress < self.warm_up:
            return self.learning_rate * (0.05 + 0.95 * progress / self.warm_up)
        fall = min((progress - self.warm_up) / (1 - self.warm_up), 1.0)
        return self.learning_rate * (0.001 + 0.999 * (1 + math.cos(math.pi * fall)) / 2)

    def corrections(self, progress: float, rng: np.random.Generator) -> int:
        """How many correction clicks to simulate on the next batch."""
        if progress < self.clicks_from:
            return 0
        if progress < 0.5:
            return int(rng.random() < 0.4)
        return int(rng.choice(5, p=(0.35, 0.35, 0.17, 0.08, 0.05)))


class Trainer:
    """A network in training. `run` trains until the plan's time has passed; `resumed` goes on with a killed one.

    clock: seconds; what it shows between two steps is the time that passes.
    """

    def __init__(self, plan: Plan, out: Path, clock: Callable[[], float] = time.monotonic) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.out = out
        self.clock = clock
        self.network = IOG(plan.spec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged: IOG = copy.deepcopy(self.network).eval().requires_grad_(False)
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.99), fused=True)
        self.seconds = 0.0
        self.steps = 0
        self.passes = 0
        self.history: list[dict[str, Any]] = []

    @property
    def progress(self) -> float:
        """The share of the plan's time that has passed."""
        return self.seconds / (60 * self.plan.minutes)

    def resumed(self, path: Path) -> Trainer:
        """Load a checkpoint of the same plan. Raises SnapshotError if it is of another architecture or finished."""
        snapshot = Snapshot.read(path)
        if snapshot.spec != self.plan.spec:
            raise SnapshotError(f"{path} holds {snapshot.spec}; this training is of {self.plan.spec}")
        if snapshot.resume is None:
            raise SnapshotError(f"{path} is the end of a training and cannot be continued")
        self.network.load_state_dict(snapshot.resume["network"])
        self.optimizer.load_state_dict(snapshot.resume["optimizer"])
        self.averaged.load_state_dict(snapshot.weights)
        self.seconds, self.steps, self.passes = (snapshot.resume[k] for k in ("seconds", "steps", "passes"))
        self.history = list(snapshot.resume["history"])
        return self

    def run(
        self, targets: Sequence[Target], validation: Sequence[Target] = (), report: Callable[[str], None] = log.info
    ) -> Snapshot:
        """Train to the end of the schedule; checkpoints go to `last.pt` and, at the end, `final.pt`."""
        plan = self.plan
        current = torch.tensor(plan.stage(self.progress)).share_memory_()  # type: ignore[no-untyped-call]
        stages = [stage for _, stage in plan.stages]
        batches = Batches(targets, plan.geometry, stages, current, seed=plan.seed + self.steps)
        loader = DataLoader(
            batches, batch_size=None, num_workers=1, prefetch_factor=6, multiprocessing_context="fork", pin_memory=False
        )
        source: Iterator[Batch] = iter(loader)
        rng = np.random.default_rng(plan.seed + self.steps)
        saved, validated, noted = self.seconds, self.seconds, self.seconds
        recent: list[float] = []
        before = self.clock()
        while self.progress < 1:
            current.fill_(plan.stage(self.progress))
            recent.append(self.step(next(source), rng))
            now = self.clock()
            self.seconds, before = self.seconds + now - before, now
            if self.seconds - noted >= 30 or self.progress >= 1:
                report(f"{self._line()} loss {np.mean(recent):.4f}")
                noted, recent = self.seconds, []
            if self.seconds - saved >= plan.save_every_s:
                self.snapshot().write(self.out / "last.pt")
                saved = self.seconds
            if validation and self.seconds - validated >= plan.validate_every_s:
                report(f"{self._line()} {_describe(self.validate(validation))}")
                validated = self.seconds
        del source, loader
        final = self.snapshot(finished=True)
        final.write(self.out / "final.pt")
        return final

    def step(self, batch: Batch, rng: np.random.Generator) -> float:
        """One update: the initial clicks, then a chain of corrections whose last mask counts again."""
        plan = self.plan
        for group in self.optimizer.param_groups:
            group["lr"] = plan.rate(self.progress)
        self.network.train()
        inputs = batch.inputs.float().contiguous(memory_format=torch.channels_last)
        target, known = batch.target.float(), batch.known.float()
        clicks = batch.inputs[:, 3:].numpy().copy()
        guidance = plan.geometry.at(inputs.shape[-1]).guidance
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.bfloat16):
            features = self.network.encode(inputs)
            outputs = self.network.decode(features, _heat(clicks))
        first = total = loss(outputs, target, known)
        corrections = plan.corrections(self.progress, rng)
        for i in range(corrections):
            add_corrections(clicks, outputs, batch, guidance, rng)
            last = i == corrections - 1
            with torch.set_grad_enabled(last), torch.autocast("cpu", torch.bfloat16, enabled=plan.bfloat16):
                outputs = self.network.decode(features, _heat(clicks))
            if last:
                total = 0.5 * total + 0.5 * loss(outputs, target, known)
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), plan.clip)
        self.optimizer.step()
        self.steps += 1
        self.passes += len(inputs)
        self._average()
        return float(first.detach())

    @torch.no_grad()
    def _average(self) -> None:
        """Exponential average of the weights; the statistics of the batch norms are averaged alike."""
        decay = min(self.plan.average, (1 + self.steps) / (10 + self.steps))
        averages, values = [], []
        mine, theirs = self.averaged.state_dict(), self.network.state_dict()
        for name, value in theirs.items():
            if value.dtype.is_floating_point:
                averages.append(mine[name])
                values.append(value)
            else:
                mine[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)

    def validate(self, targets: Sequence[Target]) -> dict[str, Summary]:
        """The averaged network in the current stage's frame; the figures are kept in the history."""
        geometry = self.plan.geometry.at(self.plan.stages[self.plan.stage(self.progress)][1].size)
        segment = torch_segmenter(self.averaged, geometry.crop, geometry.guidance)
        summaries = summarize(evaluate(segment, targets, Protocol()))
        figures = {name: asdict(summary) for name, summary in summaries.items()}
        self.history.append(
            {"minutes": self.seconds / 60, "passes": self.passes, "size": geometry.crop.size, **figures}
        )
        return summaries

    def snapshot(self, *, finished: bool = False) -> Snapshot:
        """The averaged weights with their provenance, and the state to go on with unless it is finished."""
        plan = self.plan
        provenance = {
            **plan.provenance,
            "minutes": round(self.seconds / 60, 1),
            "passes": self.passes,
            "steps": self.steps,
            "seed": plan.seed,
            "stages": [[start, *stage] for start, stage in plan.stages],
        }
        weights = {name: value.clone().contiguous() for name, value in self.averaged.state_dict().items()}
        resume = None
        if not finished:
            resume = {
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "seconds": self.seconds,
                "steps": self.steps,
                "passes": self.passes,
                "history": self.history,
            }
        return Snapshot(plan.spec, plan.geometry, weights, provenance, resume)

    def _line(self) -> str:
        stage = self.plan.stages[self.plan.stage(self.progress)][1]
        return f"{self.seconds / 60:.1f}/{self.plan.minutes:g} min, {self.passes} passes, {stage.size} px:"


def add_corrections(
    clicks: UInt8Array,
    outputs: Outputs,
    batch: Batch,
    guidance: GuidanceSpec,
    rng: np.random.Generator,
) -> None:
    """Draw into `clicks`, (B, 2, S, S) uint8 heat, one click per sample on the largest error of `outputs`."""
    side = clicks.shape[-1]
    with torch.no_grad():
        logits = functional.interpolate(outputs.logits.float(), size=(side, side), mode="bilinear", align_corners=True)
    predicted = (logits[:, 0] > 0).numpy()
    target, known = batch.target[:, 0].numpy() > 0, batch.known[:, 0].numpy() > 0
    for i in range(len(clicks)):
        fix = correction(predicted[i], target[i], known[i], rng)
        if fix is not None:
            point = np.array([(fix.click.x, fix.click.y)], np.int32)
            draw(clicks[i, 0 if fix.click.positive else 1], point, guidance)


def _heat(clicks: UInt8Array) -> Tensor:
    return torch.from_numpy(clicks).float().contiguous(memory_format=torch.channels_last)


def _describe(summaries: dict[str, Summary]) -> str:
    parts = (f"{name} {' '.join(f'{v:.3f}' for v in s.mean_iou)}" for name, s in summaries.items())
    return "IoU after 3, 4, 5 clicks: " + "; ".join(parts)
