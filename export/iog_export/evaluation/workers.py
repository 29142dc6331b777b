"""Objects measured in this process, or side by side in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import cv2
from iog.errors import IogError

from iog_export.datasets import Item

from .measure import Bench
from .records import Record

OpenBench = Callable[[], Bench]


def measured(open_bench: OpenBench, items: Sequence[Item], workers: int = 1) -> Generator[Record]:
    """The objects' records as they are done, in no particular order if there are several workers.

    open_bench: called in each worker; can be pickled. Close the iterator to stop the workers: each finishes its object.
    Raises BackendError, IogError.
    """
    if workers == 1 or len(items) < 2:
        if items:
            yield from map(open_bench().measure, items)
        return
    spawn = multiprocessing.get_context("spawn")  # engines do not survive a fork
    pool = ProcessPoolExecutor(min(workers, len(items)), spawn, initializer=_start, initargs=(open_bench,))
    try:
        with _workers_deaf_to_interrupts():
            jobs = [pool.submit(_measure, item) for item in items]
        for job in as_completed(jobs):
            yield job.result()
    except BrokenProcessPool as e:
        raise IogError(
            "a worker process died, perhaps for lack of memory; what was measured is kept: "
            "run the command again, with fewer --workers"
        ) from e
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _workers_deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal; workers, which inherit this, leave it to the one they work for."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


_open_bench: OpenBench
_bench: Bench | None = None


def _start(open_bench: OpenBench) -> None:
    global _open_bench
    _open_bench = open_bench
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """One that was killed cannot stop its workers, which would wait for more objects for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _measure(item: Item) -> Record:
    global _bench
    if _bench is None:  # not in the initializer, whose errors the pool would hide
        _bench = _open_bench()
    return _bench.measure(item)
