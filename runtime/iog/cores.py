"""How many cores this process may keep busy, and turns at work that takes one, such as decoding an image."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iog.deadline import Deadline

CONTROL_GROUP = Path("/sys/fs/cgroup")  # where a container finds its own
PROCESSORS = Path("/sys/devices/system/cpu")


class Cores:
    """No more of one kind of work at a time than there are cores.

    More at a time take longer together, memory for each, and the cores from the engine.
    """

    def __init__(self) -> None:
        self._free = threading.Semaphore(allowed())

    @contextmanager
    def one(self, deadline: Deadline, waiting_to: str) -> Iterator[None]:
        """Wait for a core and hold it. Raises DeadlineExceeded if the deadline passes first.

        waiting_to: what it is for, to complete "the deadline passed while waiting to ...".
        """
        while not self._free.acquire(timeout=deadline.pause()):
            deadline.check(f"waiting to {waiting_to}")
        try:
            deadline.check(f"waiting to {waiting_to}")
            yield
        finally:
            self._free.release()


def allowed() -> int:
    """Cores that this process may keep busy: those it may run on, as many as its container's quota lasts for.

    With many more threads than the quota lasts for (`docker run --cpus`, limits of Kubernetes) a process uses it up
    early in each tenth of a second, and is stopped for the rest.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(cores, _quota()), 1)


def engine_threads(asked: int) -> int:
    """Threads to tell an engine. asked: 0 for its own choice, one for each physical core of the computer, unless
    fewer are allowed.
    """
    siblings = {file.read_text() for file in PROCESSORS.glob("cpu[0-9]*/topology/thread_siblings_list")}
    cores = allowed()
    return asked or (cores if cores < (len(siblings) or os.cpu_count() or 1) else 0)


def _quota() -> int:
    """Cores that the control group's quota lasts for, rounded up; very many if there is none."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # of version 2, of version 1
        try:
            quota, period = " ".join((CONTROL_GROUP / file).read_text() for file in files).split()
            if quota.isdecimal():  # else "max", or -1
                return -(-int(quota) // int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return sys.maxsize
