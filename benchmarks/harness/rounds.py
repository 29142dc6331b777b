"""All competitors take turns, round after round, so that ratios hold on a machine whose speed varies."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .record import console

# Between competitors, until idle threads of the last one have stopped spinning, and have the next object's memory.
PAUSE_S = 0.2

Run = Callable[[], object]


@dataclass(frozen=True)
class Summary:
    """Of the times of one competitor, in milliseconds."""

    median: float
    p25: float
    p75: float
    minimum: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Summary:
        """Of one value a round."""
        p25, median, p75 = np.percentile(milliseconds, (25, 50, 75))
        return cls(float(median), float(p25), float(p75), min(milliseconds))

    @property
    def spread(self) -> float:
        """Between the quartiles, as a share of the median."""
        return (self.p75 - self.p25) / self.median


def interleaved(
    runs: Mapping[str, Run], rounds: int, before: Mapping[str, Run] = MappingProxyType({})
) -> dict[str, list[float]]:
    """Milliseconds by competitor, one value a round; a first round warms up and is not counted.

    Each round has an order of its own, the same ones every time. before: what is run first, untimed.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, shuffle = list(runs), random.Random(0).shuffle
    with progress() as bar:
        task = bar.add_task("rounds", total=(rounds + 1) * len(runs))
        for number in range(rounds + 1):
            shuffle(order)
            for name in order:
                bar.update(task, description=f"round {number} of {rounds}: {name}")
                if name in before:
                    before[name]()
                time.sleep(PAUSE_S)
                start = time.perf_counter()
                runs[name]()
                if number:
                    times[name].append((time.perf_counter() - start) * 1e3)
                bar.advance(task)
    return times


def progress() -> Progress:
    """A bar on the terminal; nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
