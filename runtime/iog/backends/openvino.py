"""OpenVINO on the CPU: features stay in its own layout, and what it compiles is kept between runs of the program."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from functools import cache, cached_property
from typing import Any

import numpy as np

from iog.arrays import Array
from iog.backends import pages
from iog.backends.base import Graph
from iog.backends.cache import cache_directory
from iog.backends.ort import check, failure
from iog.bundle import FROM_CHANNELS_LAST, TO_CHANNELS_LAST, GraphInfo, TensorInfo, is_map
from iog.cores import engine_threads
from iog.errors import BackendError, BackendUnavailable, OutOfMemory


class OpenVinoBackend:
    """Opens graphs as compiled OpenVINO models.

    Maps among the features are (B, H, W, C) in memory, as its kernels want them; seen from outside they are
    views of shape (B, C, H, W), unless the bundle has them channels last. Arrays in another order are accepted and
    copied.
    Compiled models are kept in `cache_directory("openvino")`, if that can be written.
    """

    name = "openvino"
    heads = 1  # a batch takes as long as its members one by one

    def __init__(self, device: str = "cpu", threads: int = 0) -> None:
        try:
            import openvino  # noqa: F401
        except ImportError as e:
            raise BackendUnavailable("OpenVINO is not installed; install iog-runtime[openvino]") from e
        if device != "cpu":
            raise BackendUnavailable(f"backend openvino runs on device cpu, not {device!r}; use backend ort for a GPU")
        self._core = _core()
        if "CPU" not in self._core.available_devices:
            raise BackendUnavailable(
                f"OpenVINO has no CPU device here (it has {', '.join(self._core.available_devices) or 'none'}); "
                "install iog-runtime[openvino] again, or use backend ort"
            )
        self._threads = threads

    @cached_property
    def _options(self) -> dict[str, Any]:
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": engine_threads(self._threads),
            "INFERENCE_PRECISION_HINT": "f32",  # NB: where it can, it would round to bfloat16 unasked
        }
        cache = cache_directory("openvino")
        return options if cache is None else {**options, "CACHE_DIR": str(cache)}

    def open(self, name: str, model: bytes, info: GraphInfo) -> Graph:
        """Compile a graph; raises BackendError if that fails or its inputs and outputs are not the declared ones."""
        from openvino import Tensor

        try:
            read = self._core.read_model(model, Tensor(np.zeros(0, np.uint8)))
        except Exception as e:
            raise BackendError(f"graph {name!r} cannot be opened by OpenVINO: {e}") from e
        for declared, found in ((info.inputs, read.inputs), (info.outputs, read.outputs)):
            check(name, declared, [(p.get_any_name(), p.get_element_type().to_dtype().name, _shape(p)) for p in found])
        turned = {t.name for t in (*info.inputs, *info.outputs) if _is_turned(t)}
        return OpenVinoGraph(name, lambda batch: self._compile(name, read, batch, turned), info)

    def _compile(self, name: str, model: Any, batch: int | None, turned: Collection[str]) -> Any:
        """For this batch, which is faster, or for any."""
        from openvino import Layout
        from openvino.preprocess import PrePostProcessor

        model = model.clone()
        if batch is not None:
            model.reshape({p.get_any_name(): [batch, *_shape(p)[1:]] for p in model.inputs})
        steps = PrePostProcessor(model)
        for ports, step in ((model.inputs, steps.input), (model.outputs, steps.output)):
            for tensor in (p.get_any_name() for p in ports if p.get_any_name() in turned):
                step(tensor).model().set_layout(Layout("NCHW"))
                step(tensor).tensor().set_layout(Layout("NHWC"))
        try:
            return self._core.compile_model(steps.build(), "CPU", self._options)
        except Exception as e:
            raise BackendError(f"graph {name!r} cannot be compiled by OpenVINO: {e}") from e


class OpenVinoGraph:
    """A graph compiled for a batch of one, and, when another one comes, for any.

    The click graph is compiled for both at once: each first click has five windows, and would wait for it.
    """

    def __init__(self, name: str, compile_for: Callable[[int | None], Any], info: GraphInfo) -> None:
        self.info = info
        self._name = name
        self._compile_for = compile_for
        self._lock = threading.Lock()
        self._free: dict[int | None, list[Any]] = {}  # requests that no thread uses, by batch
        batches: tuple[int | None, ...] = (1, None) if name == "click" else (1,)
        self._models: dict[int | None, Any] = {batch: compile_for(batch) for batch in batches}
        self._turned = {t.name for t in (*info.inputs, *info.outputs) if _is_turned(t)}
        self._pages = pages.Ahead([_in_memory(t) for t in info.outputs]) if name == "encoder" else None

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """All outputs, in the declared order."""
        from openvino import Tensor

        sizes = {len(value) for value in inputs.values()}
        if len(sizes) != 1 or 0 in sizes:  # NB: of one thread, it would say nothing and compute nothing
            raise BackendError(f"graph {self._name!r}: batches of {sorted(sizes)}; expected one size, at least 1")
        (size,) = sizes
        batch = 1 if size == 1 else None
        request = self._request(batch)
        try:
            arrays = {
                name: np.ascontiguousarray(
                    value.transpose(TO_CHANNELS_LAST) if name in self._turned and value.ndim == 4 else value
                )
                for name, value in inputs.items()
            }
            if self._pages is None:
                found = request.infer(arrays, share_inputs=True)
                outputs = [found[t.name] for t in self.info.outputs]
            else:
                with self._pages.outputs(size) as outputs:
                    for t, array in zip(self.info.outputs, outputs, strict=True):
                        request.set_tensor(t.name, Tensor(array, shared_memory=True))  # NB: holds no reference
                    request.infer(arrays, share_inputs=True, share_outputs=True)
        except OutOfMemory:
            raise
        except Exception as e:
            raise failure(self._name, e) from e
        with self._lock:
            if self._models:  # else it was closed meanwhile: a request keeps its model
                self._free.setdefault(batch, []).append(request)
        return [
            value.transpose(FROM_CHANNELS_LAST) if t.name in self._turned else value
            for t, value in zip(self.info.outputs, outputs, strict=True)
        ]

    def close(self) -> None:
        """Drop the models; requests that are running finish first."""
        with self._lock:
            self._models.clear()
            self._free.clear()
        if self._pages is not None:
            self._pages.close()

    def _request(self, batch: int | None) -> Any:
        with self._lock:
            if not self._models:
                raise BackendError(f"graph {self._name!r} is closed; open the bundle again")
            if free := self._free.get(batch):
                return free.pop()
            if batch not in self._models:
                self._models[batch] = self._compile_for(batch)
            return self._models[batch].create_infer_request()


@cache
def _core() -> Any:
    """The one Core of the process.

    Its CPU plugin gives the thread a stack for signal handlers and takes it away at its end: of several, one that ends
    out of turn leaves the next signal without a stack, which kills the process.
    """
    import openvino

    return openvino.Core()


def _is_turned(t: TensorInfo) -> bool:
    """Whether it lies in memory in another order than in the bundle."""
    return is_map(t) and not t.channels_last


def _in_memory(t: TensorInfo) -> TensorInfo:
    """Of an output, as it lies in memory."""
    return t.model_copy(update={"shape": tuple(t.shape[i] for i in TO_CHANNELS_LAST)}) if _is_turned(t) else t


def _shape(port: Any) -> tuple[int | str, ...]:
    return tuple("?" if d.is_dynamic else d.get_length() for d in port.get_partial_shape())
