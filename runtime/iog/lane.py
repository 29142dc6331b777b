"""Turns on the device: one inference at a time, refinement clicks before first clicks."""

from __future__ import annotations

import enum
import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from iog.deadline import Deadline


class Priority(enum.IntEnum):
    """Who goes first when several wait."""

    HEAD = 0
    ENCODER = 1


class Lane:
    """Lets `width` inferences run at a time: each uses all cores, so more at a time only makes every one slower.

    A running encoder is not interrupted: a head waits for one encoder at most, however many are queued. Each turn
    wakes the next one alone: to wake all of 64 takes longer than a small head.
    """

    def __init__(self, width: int = 1) -> None:
        if width < 1:
            raise ValueError(f"lane of width {width}; expected 1 or more")
        self._width = width
        self._waiting: list[_Ticket] = []
        self._running: set[_Ticket] = set()
        self._order = itertools.count()
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, priority: Priority, deadline: Deadline) -> Iterator[Callable[[], None]]:
        """Wait for a turn and hold it. Raises DeadlineExceeded if the deadline passes first.

        Yields a function that lets the heads that wait by now go first and holds the turn again when it returns; no
        encoder comes between.
        """
        ticket = _Ticket(priority, next(self._order))

        def give_way() -> None:
            nonlocal ticket
            with self._lock:
                self._running.discard(ticket)
                ticket = _Ticket(Priority.HEAD, next(self._order))
                heapq.heappush(self._waiting, ticket)
                self._call_next()
            ticket.called.wait()

        try:  # one block from the queue to the end: an interrupt anywhere in it leaves neither ticket nor turn behind
            with self._lock:
                heapq.heappush(self._waiting, ticket)
                self._call_next()
            while not ticket.called.wait(deadline.pause()):
                deadline.check("waiting for the device")
            deadline.check("waiting for the device")
            yield give_way
        finally:
            with self._lock:
                self._running.discard(ticket)
                if ticket in self._waiting:  # given up
                    self._waiting.remove(ticket)
                    heapq.heapify(self._waiting)
                self._call_next()

    def _call_next(self) -> None:
        while self._waiting and len(self._running) < self._width:
            ticket = self._waiting[0]
            self._running.add(ticket)
            ticket.called.set()
            heapq.heappop(self._waiting)  # last: if an interrupt comes before it, the next call does all again


@dataclass(frozen=True, order=True)
class _Ticket:
    priority: Priority
    number: int
    called: threading.Event = field(default_factory=threading.Event, compare=False)
