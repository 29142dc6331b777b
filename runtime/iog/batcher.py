"""Requests that wait for the device at the same time run as one batch."""

from __future__ import annotations

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
        place = _Place[T, R](item)
        with self._lock:
            self._line.append(place)
            self._call_first()
        try:
            while not place.called.wait(deadline.remaining()):
                deadline.check("waiting for the device")
            if not place.answered:
                with self._lane.turn(Priority.HEAD, deadline):
                    self._answer(self._take())
        finally:
            with self._lock:
                if place in self._line:  # given up
                    self._line.remove(place)
                    self._call_first()
        return place.result()

    def _take(self) -> list[_Place[T, R]]:
        with self._lock:
            batch, self._line = self._line[: self._limit], self._line[self._limit :]
            self._call_first()
        return batch

    def _call_first(self) -> None:
        if self._line:
            self._line[0].called.set()

    def _answer(self, batch: Sequence[_Place[T, R]]) -> None:
        try:
            for place, result in zip(batch, self._run([place.item for place in batch]), strict=True):
                place.answer(result)
        except Exception as e:
            if len(batch) == 1:
                batch[0].fail(e)
                return
            for place in batch:
                self._answer([place])
        except BaseException:  # an interrupt of the caller whose turn it was: the others go on
            with self._lock:
                self._line[:0] = [place for place in batch[1:] if not place.answered]
                self._call_first()
            raise


class _Place(Generic[T, R]):
    """Of one request in the line. called: it is first, or answered."""

    def __init__(self, item: T) -> None:
        self.item = item
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
