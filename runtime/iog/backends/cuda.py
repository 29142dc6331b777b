"""Memory of an NVIDIA GPU, through NVIDIA's own bindings."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from iog.arrays import Array, UInt8Array
from iog.backends.device import Buffer
from iog.errors import BackendError, BackendUnavailable, OutOfMemory

logger = logging.getLogger(__name__)

# Held while ONNX Runtime records, and while memory comes or goes: it records in CUDA's global mode, which another
# thread's allocation breaks. `CudaMemory.record` does so in the relaxed mode, which bears that.
RECORDING = threading.RLock()


class CudaMemory:
    """Memory and one stream of the first GPU (CUDA_VISIBLE_DEVICES chooses another).

    Copies go through page-locked buffers, in the order of the stream. Raises BackendUnavailable: no bindings, no GPU.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as e:
            raise BackendUnavailable("NVIDIA's CUDA bindings are not installed; install iog-runtime[gpu]") from e
        self._cuda: Any = runtime
        self._device: list[int] = []
        self._recordings: list[Any] = []
        self._host: dict[int, UInt8Array] = {}  # page-locked, by the device address that it mirrors
        try:
            # others' work in the default stream neither waits for it nor breaks into what is recorded
            self._stream: Any = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
            properties = self._call("cudaGetDeviceProperties", 0)
        except BackendError as e:
            raise BackendUnavailable(
                f"no GPU can be used here: {e}; check the driver, or use backend ort with device cpu"
            ) from e
        self.name = bytes(properties.name).split(b"\0")[0].decode()
        self.compute_capability = f"sm{properties.major}{properties.minor}"

    @property
    def stream(self) -> int:
        """The stream's handle: engines that put their work into it need not wait for copies."""
        return int(self._stream)

    def allocate(self, nbytes: int) -> int:
        """Address of new memory, which stays until `close`. Raises OutOfMemory."""
        with RECORDING:
            address = int(self._call("cudaMalloc", nbytes))
        self._device.append(address)
        return address

    def write(self, buffer: Buffer, array: Array) -> None:
        """Copy a dense array of the buffer's dtype and shape to the device."""
        host = self._mirror(buffer)
        host[:] = array.reshape(-1).view(np.uint8)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", buffer.address, host.ctypes.data, buffer.nbytes, kind, self._stream)

    def read(self, buffer: Buffer) -> Array:
        """Copy to the host, after all work that was begun before."""
        host = self._mirror(buffer)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host.ctypes.data, buffer.address, buffer.nbytes, kind, self._stream)
        self.wait()
        return host.view(buffer.dtype).reshape(buffer.shape).copy()

    def copy(self, source: Buffer, to: Buffer) -> None:
        """Copy on the device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", to.address, source.address, source.nbytes, kind, self._stream)

    def wait(self) -> None:
        """Until the stream's work is done. Raises BackendError if it failed."""
        self._call("cudaStreamSynchronize", self._stream)

    def record(self, work: Callable[[], None]) -> Any:
        """The stream's work of one call, as a CUDA graph for `replay`: the same work on the same addresses.

        It stays until `close`. Raises BackendError, or what `work` raises; the stream can be used on.
        """
        self._call(
            "cudaStreamBeginCapture", self._stream, self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        )
        try:
            work()
        except BaseException:
            with contextlib.suppress(BackendError):  # a failed one has nothing to give
                self._call("cudaGraphDestroy", self._call("cudaStreamEndCapture", self._stream))
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            self._recordings.append(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)
        return self._recordings[-1]

    def replay(self, recorded: Any) -> None:
        """Do recorded work again."""
        self._call("cudaGraphLaunch", recorded, self._stream)

    def close(self) -> None:
        """Free everything; once. What cannot be freed any more, on a GPU that failed, is told to the log."""
        work = [
            *(("cudaGraphExecDestroy", recording) for recording in self._recordings),
            *(("cudaFreeHost", host.ctypes.data) for host in self._host.values()),
            *(("cudaFree", address) for address in self._device),
            ("cudaStreamDestroy", self._stream),
        ]
        self._recordings.clear()
        self._host.clear()
        self._device.clear()
        with RECORDING:
            for function, what in work:
                try:
                    self._call(function, what)
                except BackendError as e:
                    logger.warning("%s", e)

    def _mirror(self, buffer: Buffer) -> UInt8Array:
        host = self._host.get(buffer.address)
        if host is None:
            with RECORDING:
                address = int(self._call("cudaHostAlloc", buffer.nbytes, self._cuda.cudaHostAllocDefault))
            host = np.ctypeslib.as_array((ctypes.c_uint8 * buffer.nbytes).from_address(address))
            self._host[buffer.address] = host
        return host

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *results = getattr(self._cuda, function)(*arguments)
        if status != self._cuda.cudaError_t.cudaSuccess:
            _, text = self._cuda.cudaGetErrorString(status)
            out_of_memory = status == self._cuda.cudaError_t.cudaErrorMemoryAllocation
            raise (OutOfMemory if out_of_memory else BackendError)(f"{function}: {text.decode()}")
        return results[0] if results else None
