"""The training loop: a schedule in wall-clock time, iterative clicks (section 3.3 of the paper), averaged weights.

The learning rate, the size of the crops and the number of simulated clicks are functions of the share of the training
time that has passed: a busy machine makes fewer passes, never an unfinished schedule. What validations take, and what
measuring batch norms takes, is no part of that time: however long, they leave the steps between them.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from iog.errors import IogError
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from iog_export.datasets import DataSet, Target
from iog_export.evaluation.figures import Figures
from iog_export.networks import IOG
from iog_export.segmenter import torch_segmenter

from . import norms
from .clicking import Clicking
from .growth import grown, obstacles
from .initial import Initial
from .interrupt import deaths_of_children_unheard, left_to_the_parent
from .machine import Machine, ProcessLost
from .monitor import Monitor, Status
from .pictures import pictures
from .plan import Plan, differences
from .samples import Batch, Batches, Stage
from .snapshot import Snapshot, SnapshotError
from .validation import summarize

DIVERGED = 20  # steps in a row without a finite gradient
REBASE_BATCHES = 6  # over which a network from a bundle gets its batch norms' statistics
# What random numbers are for: seeds begin with it, so that no two streams are alike.
SHARED, OWN, TRAINING, MEASURING = range(4)


class Stopped(IogError):
    """A training that was asked to stop before its end; its checkpoint is written."""


class Diverged(IogError):
    """The loss of a training is not finite any more; its last checkpoint is from before."""


class Starved(IogError):
    """No batch could be prepared any more; what was trained until then is kept."""


class _StopAsked(Exception):
    """A validation is cut short."""


class Trainer:
    """A network in training. `run` trains until the plan's time has passed; `resumed` goes on with a killed one.

    clock: seconds; what it shows between two steps is the time that passes, but for validations and batch norms.
    """

    def __init__(
        self, plan: Plan, out: Path, machine: Machine | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.out = out
        self.machine = machine or Machine()
        self.clock = clock
        network = IOG(plan.spec).to(self.machine.device)
        self.network: IOG = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network.Coarse_net.upsamples[0].requires_grad_(False)  # unused, and DistributedDataParallel waits for all
        self.averaged: IOG = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.model: nn.Module = Clicking(self.network, plan.geometry, self.machine.arithmetic, self.machine.annotators)
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.99), fused=True)
        half = self.machine.arithmetic == torch.float16
        self.scaler = torch.amp.GradScaler(self.machine.device.type, enabled=half)
        self.seconds = 0.0
        self.steps = 0
        self.passes = 0
        self._settled = False  # whether batch norms keep their statistics
        self._lost = 0  # steps in a row whose gradient was not finite
        self.history: list[dict[str, Any]] = []
        self._lately: deque[tuple[float, int]] = deque(maxlen=30)  # seconds and passes after the last steps

    @property
    def progress(self) -> float:
        """The share of the plan's time that has passed."""
        return self.seconds / (60 * self.plan.minutes)

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the plan, and the number of processes: each has batches of its own."""
        return {**self.plan.settings, "processes": self.machine.processes}

    def started_from(self, initial: Initial, data: DataSet) -> Trainer:
        """Take a trained network's weights, grown to the plan's. data: what it will be trained on.

        Raises SnapshotError if it cannot go on as the plan's network: that is smaller, or of another kind.
        """
        if unlike := obstacles(initial.network.spec, self.plan.spec):
            raise SnapshotError(f"{initial.source} is another network: {'; '.join(unlike)}")
        network = copy.deepcopy(initial.network).to(self.machine.device)
        if initial.folded:  # before it grows: new channels keep the batch norms that they begin with
            batches = islice(self._batches(data, [self.plan.stages[0][1]], rank=0), REBASE_BATCHES)  # all alike
            norms.rebase(network, (batch.inputs.to(self.machine.device) for batch in batches))
        self.network.load_state_dict(grown(network, self.plan.spec).state_dict())
        self.averaged.load_state_dict(self.network.state_dict())
        return self

    def resumed(self, path: Path) -> Trainer:
        """Load a checkpoint of the same plan. Raises SnapshotError if it is of another one, or finished."""
        snapshot = Snapshot.read(path)
        if snapshot.resume is None:
            raise SnapshotError(
                f"{path} is the end of a training and cannot be continued; start another from it: --init"
            )
        theirs = {**snapshot.provenance, **snapshot.settings, **snapshot.resume.get("settings", {})}
        if unlike := differences(theirs, {**self.plan.provenance, **self.settings}):
            raise SnapshotError(
                f"{path} is of another training: {'; '.join(unlike)}. Go on with the options that it was started with"
            )
        try:
            self.network.load_state_dict(snapshot.resume["network"])
            self.optimizer.load_state_dict(snapshot.resume["optimizer"])
            if state := snapshot.resume.get("scaler"):  # of float16; a training may go on in other arithmetic
                self.scaler.load_state_dict(state)
            self.averaged.load_state_dict(snapshot.weights)
            self.seconds, self.steps, self.passes = (snapshot.resume[k] for k in ("seconds", "steps", "passes"))
            self._settled = bool(snapshot.resume.get("settled", False))
            self.history = list(snapshot.resume["history"])
        except (KeyError, RuntimeError, ValueError) as e:
            raise SnapshotError(f"{path} holds no training to go on with: {e}") from e
        return self

    def run(
        self,
        data: DataSet,
        validation: DataSet | None = None,
        monitors: Sequence[Monitor] = (),
        stop: Callable[[], bool] = lambda: False,
    ) -> Snapshot:
        """Train to the end of the schedule; checkpoints go to `last.pt` and, at the end, `final.pt`.

        stop: whether to end after this step with a checkpoint; the wish of one of several processes is enough. Raises
        Stopped then, Starved and ProcessLost with a checkpoint too; SnapshotError if a checkpoint cannot be written.
        NB: on GPUs, NCCL may hang or end this process instead of telling that another one was killed; then there is the
        last regular checkpoint.
        """
        try:
            self._scheduled(data, validation, monitors, stop)
        except RuntimeError as e:
            if not self.machine.lost_by(e):
                raise
            self._save()
            raise ProcessLost(
                f"a process of the training ended: {_last_line(e)}; {self._way_on(sure=self.machine.leads)}"
            ) from e
        return self._finished(data)

    def _scheduled(
        self, data: DataSet, validation: DataSet | None, monitors: Sequence[Monitor], stop: Callable[[], bool]
    ) -> None:
        plan, leads = self.plan, self.machine.leads
        current = torch.tensor(plan.stage(self.progress)).share_memory_()  # type: ignore[no-untyped-call]
        source = self._loaded(self._batches(data, [stage for _, stage in plan.stages], self.machine.rank, current))
        if self.machine.processes > 1:
            self.model = DistributedDataParallel(self.model)
        saved = validated = self.seconds
        before = self.clock()
        while self.progress < 1:
            current.fill_(plan.stage(self.progress))
            if not self._settled and self.progress >= plan.settled:
                self._save()  # to measure takes long on a slow machine
                self._settle(data)
                self._save()
                before, saved = self.clock(), self.seconds
            batches = self._next(source)
            loss = self.step(batches)
            now = self.clock()
            passed, stopped = self.machine.agreed(now - before, stop())
            before, self.seconds = now, self.seconds + passed
            if leads:
                status = self._status(loss, batches[0].inputs.shape[-1])
                for monitor in monitors:
                    monitor.stepped(status)
            if stopped or self.seconds - saved >= plan.save_every_s:
                self._save()
                saved = self.seconds
            if stopped:
                self.machine.wait()  # torchrun ends all processes when the first one has ended
                raise Stopped(f"stopped after {self.seconds / 60:.1f} of {plan.minutes:g} minutes; {self._way_on()}")
            if leads and validation and self.seconds - validated >= plan.validate_every_s:
                with contextlib.suppress(_StopAsked):
                    figures = self.validate(_until(stop, validation))
                    shown = pictures(self.averaged, batches[0])
                    for monitor in monitors:
                        monitor.validated(status, figures, shown)
                validated, before = self.seconds, self.clock()

    def step(self, batches: Sequence[Batch]) -> float:
        """One update, and the batches' loss after the initial clicks. A gradient that is not finite changes nothing.

        Raises Diverged after too many of these in a row.
        """
        plan, machine = self.plan, self.machine
        for group in self.optimizer.param_groups:
            group["lr"] = plan.rate(self.progress)
        # Functions of the step, so that a resumed training draws what the killed one would have drawn.
        common = np.random.default_rng((SHARED, plan.seed, self.steps))
        own = np.random.default_rng((OWN, plan.seed, self.steps, machine.rank))
        self.network.train()
        if self._settled:
            norms.keep(self.network)
        self.optimizer.zero_grad()
        firsts = []
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            with contextlib.nullcontext() if last else self._without_exchange():
                losses = self.model(batch, plan.corrections(self.progress, common), own)
                self.scaler.scale(losses.total / len(batches)).backward()
            firsts.append(losses.first)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), plan.clip)
        finite = bool(norm.isfinite())
        if finite or self.scaler.is_enabled():  # the scaler looks itself, and learns from what it skips
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.steps += 1
        self.passes += machine.processes * sum(len(batch.inputs) for batch in batches)
        self._lost = 0 if finite else self._lost + 1
        if self._lost == DIVERGED:
            raise Diverged(
                f"{DIVERGED} steps in a row had no finite gradient; {self.out / 'last.pt'}, if it was written, is from "
                "before: go on from it with --init and a lower --learning-rate"
            )
        if finite:
            self._average()
        else:  # what the forward pass has left in the batch norms may not be finite either
            for mine, kept in zip(self.network.buffers(), self.averaged.buffers(), strict=True):
                mine.copy_(kept)
        return float(torch.stack(firsts).mean())

    def validate(self, targets: Iterable[Target]) -> dict[str, Figures]:
        """The averaged network in the current stage's frame; the figures are kept in the history."""
        geometry = self.plan.geometry.at(self.plan.stages[self.plan.stage(self.progress)][1].size)
        figures = summarize(torch_segmenter(self.averaged, geometry.crop, geometry.guidance), targets)
        sets = {name: asdict(each) for name, each in figures.items()}
        self.history.append({"minutes": self.seconds / 60, "passes": self.passes, "size": geometry.crop.size, **sets})
        return figures

    def snapshot(self, *, finished: bool = False) -> Snapshot:
        """The averaged weights with their provenance, and the state to go on with unless it is finished."""
        plan = self.plan
        provenance = {
            **plan.provenance,
            "minutes": round(self.seconds / 60, 1),
            "passes": self.passes,
            "steps": self.steps,
            "seed": plan.seed,
            "processes": self.machine.processes,
            "stages": [[start, *stage] for start, stage in plan.stages],
        }
        weights = {name: value.clone().contiguous() for name, value in self.averaged.state_dict().items()}
        resume = None
        if not finished:
            resume = {
                "settings": self.settings,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "seconds": self.seconds,
                "steps": self.steps,
                "passes": self.passes,
                "settled": self._settled,
                "history": self.history,
            }
        return Snapshot(plan.spec, plan.geometry, weights, provenance, resume)

    def _finished(self, data: DataSet) -> Snapshot:
        """The end of the training; if no step came in its last part, batch norms are measured only now."""
        if self.machine.leads and not self._settled:
            self.averaged.load_state_dict(self._measured(self.averaged, data).state_dict())
        final = self.snapshot(finished=True)
        if self.machine.leads:
            final.write(self.out / "final.pt")
        return final

    def _settle(self, data: DataSet) -> None:
        """From now on, train the averaged network with the statistics of batch norms that it will be deployed with.

        It is better than the one that it is the average of, but its batch norms lag behind.
        """
        if self.machine.leads:  # the others get them from DistributedDataParallel
            self.averaged.load_state_dict(self._measured(self.averaged, data).state_dict())
        self.network.load_state_dict(self.averaged.state_dict())
        self._settled = True

    def _measured(self, network: IOG, data: DataSet) -> IOG:
        """A copy, as a checkpoint may be written meanwhile, with batch norms measured at the deployed size."""
        plan = self.plan
        stage = plan.stages[-1][1]._replace(size=plan.geometry.crop.size)
        count = -(-plan.norm_crops // stage.batch)
        measured = copy.deepcopy(network)
        batches = islice(self._fed(iter(self._batches(data, [stage], rank=0))), count)
        norms.reestimate(Clicking(measured, plan.geometry), batches, plan.seed)
        return measured

    def _batches(
        self, data: DataSet, stages: Sequence[Stage], rank: int, current: torch.Tensor | None = None
    ) -> Batches:
        """A stream that no process of another rank, and no earlier part of this training, has seen.

        current: the index of the stage, for batches to train on; None for the first stage and batches to measure.
        """
        seed = (MEASURING if current is None else TRAINING, self.plan.seed, self.steps, rank)
        return Batches(data, self.plan.geometry, stages, torch.tensor(0) if current is None else current, seed)

    def _loaded(self, batches: Batches) -> Iterator[Batch]:
        """The batches, prepared by other processes, which share the photographs' memory."""
        workers = self.machine.workers
        if not workers:
            return iter(batches)
        loader = DataLoader(
            batches,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=max(6 // workers, 2),  # of each worker; what is ahead when a stage ends is of that stage
            multiprocessing_context="fork",
            pin_memory=self.machine.device.type == "cuda",
            worker_init_fn=left_to_the_parent,
        )
        with deaths_of_children_unheard():
            return iter(loader)

    def _next(self, source: Iterator[Batch]) -> list[Batch]:
        """The batches of a step. Raises Starved in all processes if one of them has none: a worker of it was killed,
        the photographs are out of its reach.
        """
        batches: list[Batch] = []
        failure: Exception | None = None
        try:
            batches = [next(source) for _ in range(self.plan.accumulate)]
        except Exception as e:  # of photographs, of decoders, of memory, of worker processes
            failure = e
        if self.machine.any(failure is not None):
            problem = next(filter(None, self.machine.told(_last_line(failure) if failure else "")))
            self._save()
            self.machine.wait()
            raise self._starved(problem) from failure
        return batches

    def _fed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, for the first process alone. Raises Starved if there are no more."""
        while True:
            try:
                batch = next(batches)
            except Exception as e:
                self._save()
                raise self._starved(_last_line(e)) from e
            yield batch

    def _starved(self, problem: str) -> Starved:
        return Starved(f"no batch can be prepared: {problem}; {self._way_on()}")

    def _save(self) -> None:
        """Write a checkpoint, in the process that writes, if there is anything to keep."""
        if self.machine.leads and self.steps:
            self.snapshot().write(self.out / "last.pt")

    def _way_on(self, *, sure: bool = True) -> str:
        """For people, what is left of a training that ends now. sure: that its checkpoint was written."""
        if not self.steps:
            return "nothing was trained yet"
        holds = "holds the training" if sure else "may hold the training"
        return f"{self.out / 'last.pt'} {holds}: go on with --resume and the same options"

    def _without_exchange(self) -> contextlib.AbstractContextManager[None]:
        """Gradients of all but a step's last batch stay in their process."""
        if isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _status(self, loss: float, size: int) -> Status:
        self._lately.append((self.seconds, self.passes))
        (seconds, passes), *_ = self._lately
        return Status(
            seconds=self.seconds,
            total_seconds=60 * self.plan.minutes,
            steps=self.steps,
            passes=self.passes,
            passes_per_s=(self.passes - passes) / max(self.seconds - seconds, 1e-9),
            size=size,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            loss=loss,
        )

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


def _last_line(error: Exception) -> str:
    *_, line = (str(error).strip() or type(error).__name__).splitlines()
    return line


def _until(stop: Callable[[], bool], targets: Iterable[Target]) -> Iterator[Target]:
    for target in targets:
        if stop():
            raise _StopAsked
        yield target
