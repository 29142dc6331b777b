"""Memory for what is kept long: of its own, so that it goes back to the system when it is forgotten."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence

import numpy as np

from iog.arrays import Array
from iog.bundle import TensorInfo
from iog.errors import OutOfMemory

PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
ALIGNMENT = 64  # bytes, of a cache line
LARGE = 1 << 22  # bytes; below, the faults of new pages cost more than the copy that is saved


def arrays(tensors: Sequence[TensorInfo], batch: int) -> list[Array]:
    """Uninitialised arrays of these dtypes and shapes, for a batch, in one mapping that ends with the last of them.

    Raises OutOfMemory.

    NB: between the short-lived arrays of clicks on the heap, features leave holes that fit no others: a server with
    1 GiB of them grew to 1.9.
    """
    shapes = [(batch, *(d for d in t.shape[1:] if isinstance(d, int))) for t in tensors]
    sizes = [int(np.prod(shape)) * np.dtype(t.dtype).itemsize for t, shape in zip(tensors, shapes, strict=True)]
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
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
