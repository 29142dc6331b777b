"""Memory for what is kept long: of its own, so that it goes back to the system when it is forgotten."""

from __future__ import annotations

import contextlib
import itertools
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
        self._large = _ends(tensors, 1)[-1] >= LARGE
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
            if not self._large or self._preparing or self._next is not None:
                return
            self._preparing = True
        timer = threading.Timer(pause, self._touch)
        timer.daemon = True
        timer.start()

    def _touch(self) -> None:
        touched = None
        try:
            if sys.platform == "linux":  # elsewhere it is the whole process's
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
            touched = arrays(self._tensors, 1)
            for array in touched:
                array.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE] = 0
        except OutOfMemory:
            touched = None  # whoever needs it will be told
        finally:
            with self._lock:
                self._next, self._preparing = touched, False


def arrays(tensors: Sequence[TensorInfo], batch: int) -> list[Array]:
    """Uninitialised arrays of these dtypes and shapes, for a batch, in one mapping that ends with the last of them.

    Raises OutOfMemory.

    NB: between the short-lived arrays of clicks on the heap, features leave holes that fit no others: a server with
    1 GiB of them grew to 1.9.
    """
    shapes = [_shape(t, batch) for t in tensors]
    starts = _ends(tensors, batch)
    try:
        if starts[-1] < LARGE:
            return [np.empty(shape, t.dtype) for t, shape in zip(tensors, shapes, strict=True)]
        pages = mmap.mmap(-1, starts[-1], **PRIVATE)
    except (MemoryError, OSError) as e:
        raise OutOfMemory(f"no memory for features of {starts[-1]:,} bytes: {e}") from e
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # kernels may be built without
            pages.madvise(mmap.MADV_HUGEPAGE)  # a page fault for 2 MiB instead of one for 4 KiB
    return [
        np.frombuffer(pages, t.dtype, int(np.prod(shape)), start).reshape(shape)
        for t, shape, start in zip(tensors, shapes, starts, strict=False)
    ]


def _shape(t: TensorInfo, batch: int) -> tuple[int, ...]:
    return (batch, *(d for d in t.shape[1:] if isinstance(d, int)))


def _ends(tensors: Sequence[TensorInfo], batch: int) -> list[int]:
    """0, and where each one ends, aligned: where the next one begins. The last is what all take, in bytes."""
    sizes = (int(np.prod(_shape(t, batch))) * np.dtype(t.dtype).itemsize for t in tensors)
    return list(itertools.accumulate(sizes, lambda end, size: end + -(-size // ALIGNMENT) * ALIGNMENT, initial=0))
