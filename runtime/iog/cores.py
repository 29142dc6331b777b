"""Turns at work that takes a core, such as decoding an image."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from iog.deadline import Deadline


class Cores:
    """No more of one kind of work at a time than there are cores.

    More at a time take longer together, memory for each, and the cores from the engine.
    """

    def __init__(self) -> None:
        self._free = threading.Semaphore(os.cpu_count() or 1)

    @contextmanager
    def one(self, deadline: Deadline, waiting_to: str) -> Iterator[None]:
        """Wait for a core and hold it. Raises DeadlineExceeded if the deadline passes first.

        waiting_to: what it is for, to complete "the deadline passed while waiting to ...".
        """
        while not self._free.acquire(timeout=deadline.remaining()):
            deadline.check(f"waiting to {waiting_to}")
        try:
            deadline.check(f"waiting to {waiting_to}")
            yield
        finally:
            self._free.release()
