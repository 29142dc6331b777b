"""Inference engines, imported only when they are asked for."""

from __future__ import annotations

from iog.backends.base import Backend as Backend
from iog.backends.base import Graph as Graph
from iog.errors import BackendUnavailable

ENGINES = ("ort", "openvino", "trt")
NAMES = (*ENGINES, "fake")
DEVICES = ("cpu", "cuda", "tensorrt")
FEATURES_BUDGET = 1 << 30


def open_backend(
    name: str = "ort",
    *,
    device: str = "cpu",
    threads: int = 0,
    features_budget: int = FEATURES_BUDGET,
    fall_back: bool = True,
) -> Backend:
    """An engine by name.

    name: "ort" (ONNX Runtime), "openvino" (on the CPU), "trt" (TensorRT engines that the bundle has for this GPU, ONNX
        Runtime for the rest) or "fake" (deterministic, no engine: for tests). device: of ONNX Runtime, "cpu", "cuda"
        or "tensorrt".
    threads: per graph, on the CPU; 0 for one per core, as far as a container's quota lasts (`iog.cores.allowed`).
    features_budget: bytes of a GPU's memory for features.
    fall_back: whether "trt" runs the graphs of a bundle without engines for this GPU on ONNX Runtime, and says so, or
        refuses that bundle: for measurements, which name the engine.
    Raises BackendUnavailable if the name is not known, the engine is not installed or the device is not there.
    """
    if name == "ort" and device != "cpu":
        from iog.backends.ort_cuda import OrtDeviceBackend

        return OrtDeviceBackend(device, threads, budget=features_budget)
    if name == "ort":
        from iog.backends.ort import OrtBackend

        return OrtBackend(device=device, threads=threads)
    if name == "openvino":
        from iog.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(device=device, threads=threads)
    if name == "trt":
        from iog.backends.trt import TrtBackend

        return TrtBackend(budget=features_budget, fall_back=fall_back)
    if name == "fake":
        from iog.backends.fake import FakeBackend

        return FakeBackend()
    raise BackendUnavailable(f"unknown backend {name!r}; expected one of: {', '.join(NAMES)}")
