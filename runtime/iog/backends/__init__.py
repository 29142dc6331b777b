"""Inference engines, imported only when they are asked for."""

from __future__ import annotations

from iog.backends.base import Backend as Backend
from iog.backends.base import Graph as Graph
from iog.errors import BackendUnavailable

NAMES = ("ort", "fake")


def open_backend(name: str = "ort", *, device: str = "cpu", threads: int = 0) -> Backend:
    """An engine by name.

    name: "ort" (ONNX Runtime) or "fake" (deterministic, no engine: for tests). device: "cpu" or "cuda".
    threads: per graph, on the CPU; 0 for one per core.
    Raises BackendUnavailable if the name is not known, the engine is not installed or the device is not there.
    """
    if name == "ort":
        from iog.backends.ort import OrtBackend

        return OrtBackend(device=device, threads=threads)
    if name == "fake":
        from iog.backends.fake import FakeBackend

        return FakeBackend()
    raise BackendUnavailable(f"unknown backend {name!r}; expected one of: {', '.join(NAMES)}")
