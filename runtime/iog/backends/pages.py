"""Memory for what is kept long: of its own, so that it goes back to the system when it is forgotten."""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from iog.arrays import Array
from iog.bundle import TensorInfo
from iog.errors import OutOfMemory

PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
ALIGNMENT = 64  # bytes, of a cache line
LARGE = 1 << 22  # bytes; below, the faults of new pages cost more than the copy that is saved
LOWEST = 19  # niceness


class Ahead:
    """Memory for the features of one object after another, as from `arrays`, touched before it is asked for.

    A system gives memory page by page, at the first touch, and the host of a virtual machine does so once more: for
    the 16 MB of ResNet-101 at 512 pixels up to 35 ms, a quarter of a first click in int8. The price is to hold what
    one more object takes. Thread-safe.
    """

    def __init__(self, tensors: Sequence[TensorInfo]) -> None:
        self._tensors = tensors
        self._wanted = _ends(tensors, 1)[-1] >= LARGE
        self._lock = threading.Lock()
        self._next: list[Array] | None = None
        self._preparing = False
        self._prepare(0.0)

    @contextmanager
    def outputs(self, batch: int) -> Iterator[list[Array]]:
        """Uninitialised arrays for the run in this context; those of a batch of one were touched, if there was time.

        Raises OutOfMemory.
        """
        taken = None
        if batch == 1:
            with self._lock:
                taken, self._next = self._next, None
        if taken is None:
            taken = arrays(self._tensors, batch)
        start = time.perf_counter()
        yield taken
        self._prepare((time.perf_counter() - start) / 2)  # first comes the head, which takes less than that

    def _prepare(self, pause: float) -> None:
        """After `pause` seconds, in a thread that leaves the cores to whoever else has work."""
        with self._lock:
            if not self._wanted or self._preparing or self._next is not None:
                return
            self._preparing = True
        timer = threading.Timer(pause, self._touch)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # no thread to be had: the next object does without
            with self._lock:
                self._preparing = False

    def close(self) -> None:
        """Hold nothing, from now on."""
        with self._lock:
            self._wanted, self._next = False, None

    def _touch(self) -> None:
        touched = None
        try:
            pages, touched = _mapped(self._tensors, 1)
            if sys.platform == "linux":  # elsewhere it is the whole process's
                with contextlib.suppress(OSError):  # sandboxes may forbid it
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
            # NB: at once, for which numpy lets other Python threads run; for some hundred pages it would not.
            np.frombuffer(pages, np.uint8)[:: mmap.PAGESIZE] = 0
        except OutOfMemory:
            pass  # whoever needs it will be told
        finally:
            with self._lock:
                self._next, self._preparing = touched if self._wanted else None, False


def arrays(tensors: Sequence[TensorInfo], batch: int) -> list[Array]:
    """Uninitialised arrays of these dtypes and shapes, for a batch, in one mapping that ends with the last of them.

    Raises OutOfMemory.

    NB: between the short-lived arrays of clicks on the heap, features leave holes that fit no others: a server with
    1 GiB of them grew to 1.9.
    """
    size = _ends(tensors, batch)[-1]
    if size >= LARGE:
        return _mapped(tensors, batch)[1]
    try:
        return [np.empty(_shape(t, batch), t.dtype) for t in tensors]
    except MemoryError as e:
        raise _lacking(size, e) from e


def _mapped(tensors: Sequence[TensorInfo], batch: int) -> tuple[mmap.mmap, list[Array]]:
    starts = _ends(tensors, batch)
    try:
        pages = mmap.mmap(-1, starts[-1], **PRIVATE)
    except (MemoryError, OSError) as e:
        raise _lacking(starts[-1], e) from e
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # kernels may be built without
            pages.madvise(mmap.MADV_HUGEPAGE)  # a page fault for 2 MiB instead of one for 4 KiB
    return pages, [
        np.frombuffer(pages, t.dtype, math.prod(_shape(t, batch)), start).reshape(_shape(t, batch))
        for t, start in zip(tensors, starts, strict=False)
    ]


def _lacking(size: int, error: Exception) -> OutOfMemory:
    return OutOfMemory(f"no memory for features of {size:,} bytes: {error}")


def _shape(t: TensorInfo, batch: int) -> tuple[int, ...]:
    return (batch, *(d for d in t.shape[1:] if isinstance(d, int)))


def _ends(tensors: Sequence[TensorInfo], batch: int) -> list[int]:
    """0, and where each one ends, aligned: where the next one begins. The last is what all take, in bytes."""
    sizes = (batch * t.nbytes for t in tensors)
    return list(itertools.accumulate(sizes, lambda end, size: end + -(-size // ALIGNMENT) * ALIGNMENT, initial=0))
