"""Turns on the device: one inference at a time, refinement clicks before first clicks."""

from __future__ import annotations

import enum
import heapq
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from iog.deadline import Deadline


class Priority(enum.IntEnum):
    """Who goes first when several wait."""

    HEAD = 0
    ENCODER = 1


class Lane:
    """Lets `width` inferences run at a time: each uses all cores, so more at a time only makes every one slower.

    A running encoder is not interrupted: a head waits for one encoder at most, however many are queued.
    """

    def __init__(self, width: int = 1) -> None:
        if width < 1:
            raise ValueError(f"lane of width {width}; expected 1 or more")
        self._free = width
        self._waiting: list[tuple[Priority, int]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, priority: Priority, deadline: Deadline) -> Iterator[None]:
        """Wait for a turn and hold it. Raises DeadlineExceeded if the deadline passes first."""
        ticket = (priority, next(self._order))
        taken = 0
        try:  # one block from the queue to the end: an interrupt anywhere in it leaves neither ticket nor turn behind
            with self._changed:
                heapq.heappush(self._waiting, ticket)
                try:
                    while not (self._free and self._waiting[0] == ticket):
                        if not self._changed.wait(deadline.remaining()):
                            deadline.check("waiting for the device")
                    deadline.check("waiting for the device")
                    self._free -= 1
                    taken = 1
                finally:
                    self._waiting.remove(ticket)
                    heapq.heapify(self._waiting)
                    self._changed.notify_all()
            yield
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()
