"""Names for the arrays that pass between modules. Images and maps are [y, x], points (x, y)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
UInt8Array: TypeAlias = npt.NDArray[np.uint8]
FloatArray: TypeAlias = npt.NDArray[np.float32]
PointArray: TypeAlias = npt.NDArray[np.int32]  # (n, 2) network pixels (x, y)


class Held(Protocol):
    """Features that stay on a device, of one or more objects."""

    @property
    def nbytes(self) -> int:
        """In device memory."""

    def joined(self, others: Sequence[Any]) -> Held:
        """One batch of these and others of the same kind."""
