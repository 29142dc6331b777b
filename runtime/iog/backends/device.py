"""Graphs on a device with memory of its own, whatever engine runs them there.

An object's features never leave the device: the encoder writes them into one slot of an arena, and the head gathers the
slots of any objects as one batch. What crosses is the crop, the clicks' points, click maps and logits.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from iog.arrays import Array
from iog.backends.base import FeaturesFull, Graph
from iog.backends.surgery import SLOTS, draw_inside, power_of_two, take_from_slots
from iog.bundle import Bundle, GraphInfo, TensorInfo
from iog.errors import BackendError
from iog.prompt import MAX_CLICKS

MOST = 64  # members of a batch; larger ones run in pieces
MOST_SLOTS = 1 << 16  # of an arena
ALIGNMENT = 256  # of every tensor, in bytes, as devices want it


class Buffer(NamedTuple):
    """A dense array in device memory."""

    address: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes from `address` on."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def row(self, index: int) -> Buffer:
        """One member, as a batch of one."""
        member = self._replace(shape=(1, *self.shape[1:]))
        return member._replace(address=self.address + index * member.nbytes)


class Memory(Protocol):
    """Memory of one device, and copies in the order of its work."""

    def allocate(self, nbytes: int) -> int:
        """Address of new memory, which stays until `close`. Raises OutOfMemory."""

    def write(self, buffer: Buffer, array: Array) -> None:
        """Copy a dense array of the buffer's dtype and shape to the device."""

    def read(self, buffer: Buffer) -> Array:
        """Copy to the host, after all work that was begun before."""

    def copy(self, source: Buffer, to: Buffer) -> None:
        """Copy within the device, of the same size."""

    def close(self) -> None:
        """Free everything."""


class Program(Protocol):
    """A graph compiled for the device."""

    @property
    def info(self) -> GraphInfo:
        """Inputs and outputs."""

    def run(self, tensors: Mapping[str, Buffer]) -> None:
        """Compute outputs in place from inputs in place. Buffers of one shape are always the same ones.

        Raises BackendError, OutOfMemory.
        """

    def close(self) -> None:
        """Free the engine's memory."""


class Slots:
    """Places of objects in an arena, of one or of a batch. They are free again when nothing refers to them."""

    def __init__(self, places: tuple[_Place, ...], member_nbytes: int) -> None:
        self._places = places
        self._member_nbytes = member_nbytes

    @property
    def nbytes(self) -> int:
        """Of the features that they hold."""
        return self._member_nbytes * len(self)

    def joined(self, others: Sequence[Slots]) -> Slots:
        """One batch of these and others."""
        return Slots(self._places + tuple(p for other in others for p in other._places), self._member_nbytes)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, part: slice) -> Slots:
        return Slots(self._places[part], self._member_nbytes)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """(B, 1) int32 indices."""
        return np.array([[place.index] for place in self._places], dtype or np.int32)


class _Place:
    def __init__(self, index: int, free: deque[int]) -> None:
        self.index = index
        weakref.finalize(self, free.append, index).atexit = False


class Arena:
    """One allocation that holds the features of up to `capacity` objects."""

    def __init__(self, memory: Memory, tensors: Sequence[TensorInfo], capacity: int) -> None:
        self.capacity = capacity
        self.buffers: dict[str, Buffer] = {}
        end = 0
        for t in tensors:
            self.buffers[t.name] = buffer = Buffer(end, (capacity, *_member(t)), t.dtype)
            end += -(-buffer.nbytes // ALIGNMENT) * ALIGNMENT
        start = memory.allocate(end)
        self.buffers = {name: b._replace(address=start + b.address) for name, b in self.buffers.items()}
        self._free = deque(range(capacity))

    def take(self) -> Slots:
        """A free slot. Raises FeaturesFull if there is none."""
        try:
            index = self._free.popleft()
        except IndexError:
            raise FeaturesFull(f"all {self.capacity} slots for features on the device are taken") from None
        return Slots((_Place(index, self._free),), sum(b.row(index).nbytes for b in self.buffers.values()))


class Device:
    """Memory, and the fixed buffers through which inputs and outputs pass. One graph runs at a time.

    graphs: how many share it; the memory is freed when the last one is closed.
    """

    def __init__(self, memory: Memory, graphs: int) -> None:
        self.memory = memory
        self.lock = threading.Lock()
        self._graphs = graphs
        self._buffers: dict[tuple[str, tuple[int, ...]], Buffer] = {}

    def buffer(self, t: TensorInfo, shape: tuple[int, ...]) -> Buffer:
        """The buffer of a tensor in that shape: always the same, so that recorded runs can be repeated."""
        known = self._buffers.get((t.name, shape))
        if known is None:
            known = Buffer(0, shape, t.dtype)
            known = self._buffers[t.name, shape] = known._replace(address=self.memory.allocate(known.nbytes))
        return known

    def closed(self) -> None:
        """One graph is."""
        self._graphs -= 1
        if not self._graphs:
            self.memory.close()


class DeviceGraph:
    """Inputs go to the device, outputs come back. Batches are filled up to powers of two: engines meet few shapes.

    info: what callers see of the graph, if that is not what the program has.
    """

    def __init__(self, name: str, program: Program, device: Device, info: GraphInfo | None = None) -> None:
        self.info = info or program.info
        self._name = name
        self._program: Program | None = program
        self._device = device

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """All outputs, in the declared order."""
        count = len(next(iter(inputs.values())))
        pieces = [
            self._piece({name: value[i : i + MOST] for name, value in inputs.items()}, min(count - i, MOST))
            for i in range(0, count, MOST)
        ]
        return pieces[0] if len(pieces) == 1 else [np.concatenate(parts) for parts in zip(*pieces, strict=True)]

    def _piece(self, inputs: Mapping[str, Any], count: int) -> list[Any]:
        rows = power_of_two(count)
        with self._device.lock:
            program = self._opened()
            tensors = self._uploaded(inputs, rows)
            for t in program.info.outputs:
                tensors[t.name] = self._device.buffer(t, (rows, *_member(t)))
            program.run(tensors)
            return [self._device.memory.read(tensors[t.name])[:count] for t in program.info.outputs]

    def close(self) -> None:
        """Free the engine's memory, after a run that is under way."""
        with self._device.lock:
            program, self._program = self._program, None
            if program:
                program.close()
                self._device.closed()

    def _opened(self) -> Program:
        if self._program is None:
            raise BackendError(f"graph {self._name!r} is closed; open the bundle again")
        return self._program

    def _uploaded(self, inputs: Mapping[str, Any], rows: int) -> dict[str, Buffer]:
        tensors = {}
        for t in self.info.inputs:
            value = inputs[t.name]
            array = np.ascontiguousarray(value, t.dtype)
            if rows > len(array):
                array = np.concatenate([array, array[-1:].repeat(rows - len(array), axis=0)])
            tensors[t.name] = self._device.buffer(t, array.shape)
            self._device.memory.write(tensors[t.name], array)
        return tensors


class DeviceEncoder(DeviceGraph):
    """Leaves its outputs in slots of the arena and returns these."""

    def __init__(self, name: str, program: Program, device: Device, arena: Arena) -> None:
        super().__init__(name, program, device, program.info.model_copy(update={"outputs": (SLOTS,)}))
        self._arena = arena

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The objects' slots; a batch is encoded one by one. Raises FeaturesFull if no slot is free."""
        taken = []
        for i in range(len(next(iter(inputs.values())))):
            slot = self._arena.take()
            with self._device.lock:
                program = self._opened()
                tensors = self._uploaded({name: value[i : i + 1] for name, value in inputs.items()}, 1)
                features = {t.name: self._device.buffer(t, (1, *_member(t))) for t in program.info.outputs}
                program.run({**tensors, **features})
                # A recorded run writes where it wrote before: copying takes microseconds, launching hundreds of kernels
                # one by one a millisecond.
                for name, arena in self._arena.buffers.items():
                    self._device.memory.copy(features[name], arena.row(int(np.asarray(slot)[0, 0])))
            taken.append(slot)
        return [taken[0].joined(taken[1:])]


class DeviceHead(DeviceGraph):
    """Takes slots in place of features."""

    def __init__(self, name: str, program: Program, device: Device, arena: Arena) -> None:
        inputs = tuple(t for t in program.info.inputs if t.name not in arena.buffers)
        super().__init__(name, program, device, program.info.model_copy(update={"inputs": inputs}))
        self._arena = arena

    def _uploaded(self, inputs: Mapping[str, Any], rows: int) -> dict[str, Buffer]:
        return {**super()._uploaded(inputs, rows), **self._arena.buffers}


def adapted(bundle: Bundle) -> dict[str, tuple[bytes, GraphInfo]]:
    """The bundle's graphs as a device runs them: see `iog.backends.surgery`."""
    return {
        name: take_from_slots(bundle.graphs[name], info)
        if name == "head"
        else draw_inside(bundle.graphs[name], info, bundle.guidance)
        for name, info in bundle.manifest.graphs.items()
    }


def on_device(compiled: Iterable[tuple[str, Program]], memory: Memory, budget: int) -> dict[str, Graph]:
    """A bundle's graphs, compiled from what `adapted` returns, with one arena for features.

    compiled: each when it is asked for. budget: bytes of the arena; two objects have room at least, and at most as many
    as engines can address.

    Raises OutOfMemory if the device has not so much, and what compiling raises; then nothing is left of either.
    """
    programs: dict[str, Program] = {}
    try:
        programs.update(compiled)
        return _sharing(programs, memory, budget)
    except BaseException:
        for program in programs.values():  # before the memory and the stream that they work with
            program.close()
        memory.close()
        raise


def _sharing(programs: Mapping[str, Program], memory: Memory, budget: int) -> dict[str, Graph]:
    device = Device(memory, len(programs))
    if "network" in programs:
        return {"network": DeviceGraph("network", programs["network"], device)}
    features = programs["encoder"].info.outputs
    member = sum(t.nbytes for t in features)
    # NB: in a single slot, an object that waits for its head would keep all others' encoders out.
    arena = Arena(memory, features, max(2, min(budget // member, _most_slots(features))))
    return {
        "encoder": DeviceEncoder("encoder", programs["encoder"], device, arena),
        "click": DeviceGraph("click", programs["click"], device),
        "head": DeviceHead("head", programs["head"], device, arena),
    }


def _most_slots(features: Sequence[TensorInfo]) -> int:
    """Engines count the values of a tensor with 32 bits: in a larger one they would read anywhere."""
    return min(MOST_SLOTS, (2**31 - 1) // max(math.prod(_member(t)) for t in features))


Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def shapes(name: str, info: GraphInfo) -> dict[str, Range]:
    """Of every input of an adapted graph: the smallest shape, the one to optimise for, the largest."""
    # A single head is what an annotator feels, a full batch what a busy server needs: between them.
    rows = {"encoder": (1, 1, 1), "network": (1, 1, MOST), "click": (1, 1, MOST), "head": (1, 8, MOST)}[name]
    ranges = {}
    for t in info.inputs:
        first = (1, MOST, MOST_SLOTS) if t.shape[0] == "capacity" else rows
        smallest, usual, largest = ((n, *_member(t)) for n in first)
        if t.name == "points":
            largest = (*largest[:2], power_of_two(MAX_CLICKS + 5), 2)
        ranges[t.name] = smallest, usual, largest
    return ranges


def _member(t: TensorInfo) -> tuple[int, ...]:
    """A tensor's shape but for the batch."""
    return tuple(d for d in t.shape[1:] if isinstance(d, int))
