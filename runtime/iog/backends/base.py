"""What every engine can do; what one cannot do is not in here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from iog.arrays import Array
from iog.bundle import GraphInfo


class Graph(Protocol):
    """One opened graph. Thread-safe."""

    @property
    def info(self) -> GraphInfo:
        """Declared inputs and outputs."""

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """All outputs, in the declared order. Blocks. Raises BackendError, OutOfMemory."""

    def close(self) -> None:
        """Free the engine's memory."""


class Backend(Protocol):
    """An engine on one device."""

    name: str

    def open(self, name: str, model: bytes, info: GraphInfo) -> Graph:
        """Prepare an ONNX graph. Raises BackendError if the graph is not what `info` declares."""


def zeros(info: GraphInfo, sizes: Mapping[str, int] | None = None) -> list[Array]:
    """Outputs of the declared dtypes and shapes, a batch of one unless `sizes` says otherwise."""
    return [
        np.zeros([d if isinstance(d, int) else (sizes or {}).get(d, 1) for d in t.shape], t.dtype) for t in info.outputs
    ]
