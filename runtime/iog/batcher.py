"""Requests that wait for the device at the same time run as one batch."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from iog.deadline import Deadline
from iog.lane import Lane, Priority

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Nobody waits for company: whoever is first in line takes along, when its turn comes, all that have come by then.

    run: items to results, in their order; limit: most items of a batch, 1 for none.
    """

    def __init__(self, run: Callable[[Sequence[T]], Sequence[R]], lane: Lane, limit: int) -> None:
        self._run = run
        self._lane = lane
        self._limit = limit
        self._line: list[_Place[T, R]] = []
        self._lock = threading.Lock()

    def run(self, item: T, deadline: Deadline) -> R:
        """The result for one item; what fails for a batch is tried again for each of its members alone.

        Raises DeadlineExceeded if the deadline passes first; the others of the batch do not notice.
        """
        if self._limit == 1:  # a second line would only keep heads out of the lane, where they go before encoders
            with self._lane.turn(Priority.HEAD, deadline):
                return self._run([item])[0]
        place = _Place[T, R](item, deadline)
        batch: list[_Place[T, R]] = []
        try:
            with self._lock:
                self._line.append(place)
                self._call_first()
            while not place.called.wait(deadline.pause()):
                deadline.check("waiting for the device")
            if not place.answered:
                with self._lane.turn(Priority.HEAD, deadline):
                    self._take(place, batch)
                    self._answer(batch)
        finally:  # wherever an interrupt has come: who is not answered waits in the line, but for this one
            with self._lock:
                left = [other for other in batch if not (other.answered or other in self._line)]
                self._line = [other for other in (*left, *self._line) if other is not place]
                self._call_first()
        return place.result()

    def _take(self, caller: _Place[T, R], batch: list[_Place[T, R]]) -> None:
        """Move the caller and those behind it to `batch`; who no longer waits is left in the line, to notice it."""
        with self._lock:
            others = (place for place in self._line if place is not caller and not place.deadline.passed)
            batch += caller, *itertools.islice(others, self._limit - 1)
            self._line = [place for place in self._line if place not in batch]
            self._call_first()

    def _call_first(self) -> None:
        if self._line:
            self._line[0].called.set()

    def _answer(self, batch: Sequence[_Place[T, R]]) -> None:
        try:
            results = self._run([place.item for place in batch])
        except Exception as e:
            if len(batch) == 1:
                batch[0].fail(e)
                return
            for place in batch:
                self._answer([place])
            return
        for place, result in zip(batch, results, strict=True):
            place.answer(result)


class _Place(Generic[T, R]):
    """Of one request in the line. called: it is first, or answered."""

    def __init__(self, item: T, deadline: Deadline) -> None:
        self.item = item
        self.deadline = deadline
        self.called = threading.Event()
        self.answered = False
        self._results: list[R] = []
        self._error: Exception | None = None

    def answer(self, result: R) -> None:
        self._results.append(result)
        self.answered = True
        self.called.set()

    def fail(self, error: Exception) -> None:
        self._error = error
        self.answered = True
        self.called.set()

    def result(self) -> R:
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # by way of this frame it would keep itself and all callers alive
        return self._results[0]
