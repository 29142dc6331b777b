"""What every engine can do; what one cannot do is not in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from iog.arrays import Array
from iog.bundle import Bundle, GraphInfo
from iog.errors import OutOfMemory


class FeaturesFull(OutOfMemory):
    """No place is left where an engine keeps features; there is one once another object is forgotten."""


class Graph(Protocol):
    """One opened graph. Thread-safe."""

    @property
    def info(self) -> GraphInfo:
        """Declared inputs and outputs."""

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """All outputs, in the declared order. Blocks. Raises BackendError, OutOfMemory.

        Values are arrays; an encoder may return `iog.arrays.Held` features, which its head takes.
        """

    def close(self) -> None:
        """Free the engine's memory."""


class Backend(Protocol):
    """An engine on one device.

    heads: how many heads of different objects, at most, are worth running as one batch; 1 where a batch gains nothing.
    """

    name: str
    heads: int

    def open(self, name: str, model: bytes, info: GraphInfo) -> Graph:
        """Prepare an ONNX graph. Raises BackendError if the graph is not what `info` declares."""


@runtime_checkable
class BundleBackend(Backend, Protocol):
    """An engine that wants a bundle's graphs together, because they share the device's memory."""

    def load(self, bundle: Bundle) -> Mapping[str, Graph]:
        """All graphs of a bundle. An encoder or click graph may take `points`: see `iog.backends.surgery.pad`."""


def open_graphs(backend: Backend, bundle: Bundle) -> Mapping[str, Graph]:
    """All graphs of a bundle. Raises BackendError."""
    if isinstance(backend, BundleBackend):
        return backend.load(bundle)
    return {name: backend.open(name, bundle.graphs[name], info) for name, info in bundle.manifest.graphs.items()}


def stack(values: Sequence[Any]) -> Any:
    """One batch of several values of one input: arrays, or what an encoder of this backend returned."""
    first, *rest = values
    if not rest:
        return first
    return np.concatenate(values) if isinstance(first, np.ndarray) else first.joined(rest)


def zeros(info: GraphInfo, sizes: Mapping[str, int] | None = None) -> list[Array]:
    """Outputs of the declared dtypes and shapes, a batch of one unless `sizes` says otherwise."""
    return [
        np.zeros([d if isinstance(d, int) else (sizes or {}).get(d, 1) for d in t.shape], t.dtype) for t in info.outputs
    ]
