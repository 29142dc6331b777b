"""How a training is watched: lines of a log, a progress bar."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from iog.arrays import UInt8Array
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from iog_export.evaluation.figures import ALL, Figures

log = logging.getLogger(__name__)

LOG_EVERY_S = 30.0


@dataclass(frozen=True, slots=True)
class Status:
    """A training after a step.

    seconds, total_seconds: passed, and planned. passes: samples that the network has seen; passes_per_s: lately.
    size: side of the crops. loss: of this step, after the initial clicks.
    """

    seconds: float
    total_seconds: float
    steps: int
    passes: int
    passes_per_s: float
    size: int
    learning_rate: float
    loss: float


class Monitor(Protocol):
    """Is told what happens, in the process that leads."""

    def stepped(self, status: Status) -> None:
        """Follow a step."""

    def validated(self, status: Status, figures: Mapping[str, Figures], pictures: UInt8Array) -> None:
        """Follow a validation. figures: by data set; pictures: (h, w, 3) uint8 RGB, see `.pictures`."""


class Recent:
    """The mean of what came lately: `add` returns it whenever so many seconds of the training have passed."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._since: float | None = None
        self._values: list[float] = []

    def add(self, seconds: float, value: float) -> float | None:
        """The mean of all values since it was last returned, or None."""
        since = self._since = seconds if self._since is None else self._since
        self._values.append(value)
        if seconds - since < self._every_s:
            return None
        mean = float(np.mean(self._values))
        self._since, self._values = seconds, []
        return mean


class LogLines:
    """A line every half minute, and one for each validation."""

    def __init__(self) -> None:
        self._losses = Recent(LOG_EVERY_S)

    def stepped(self, status: Status) -> None:
        """Log the mean loss since the last line."""
        if (loss := self._losses.add(status.seconds, status.loss)) is not None:
            log.info("%s loss %.4f, %.0f passes/s", _when(status), loss, status.passes_per_s)

    def validated(self, status: Status, figures: Mapping[str, Figures], pictures: UInt8Array) -> None:
        """Log mean IoU by data set."""
        log.info("%s %s", _when(status), described(figures))


class ProgressBar:
    """One live line: time, speed, loss, stage, and what the last validation said. Use it in a `with` statement."""

    def __init__(self, console: Console) -> None:
        columns = BarColumn(bar_width=24), TextColumn("{task.description}")
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("waiting for the first batch", total=None)
        self._losses = Recent(5.0)
        self._loss: float | None = None
        self._iou = ""

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def stepped(self, status: Status) -> None:
        """Redraw the line; the loss is the mean of a few seconds."""
        mean = self._losses.add(status.seconds, status.loss)
        self._loss = mean if mean is not None else self._loss if self._loss is not None else status.loss
        line = f"{_when(status)} loss {self._loss:.3f}, {status.passes_per_s:.0f} passes/s{self._iou}"
        self._progress.update(self._task, total=status.total_seconds, completed=status.seconds, description=line)

    def validated(self, status: Status, figures: Mapping[str, Figures], pictures: UInt8Array) -> None:
        """Remember the mean IoU for the line."""
        overall = figures.get(ALL) or next(iter(figures.values()))
        self._iou = f", IoU {' '.join(f'{value:.3f}' for value in overall.iou.values())}"


def described(figures: Mapping[str, Figures]) -> str:
    """Mean IoU by data set, on one line."""
    parts = (f"{name} {' '.join(f'{value:.3f}' for value in each.iou.values())}" for name, each in figures.items())
    return "IoU after 3, 4, 5 clicks: " + "; ".join(parts)


def _when(status: Status) -> str:
    minutes = f"{status.seconds / 60:.1f}/{status.total_seconds / 60:g} min"
    return f"{minutes}, {status.passes} passes, {status.size} px:"
