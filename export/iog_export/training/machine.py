"""What a training runs on: it decides how fast, and but for rounding not what it gives.

The number of processes is more than that: each has batches of its own, and a step learns from all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from iog.cores import allowed
from iog.errors import IogError
from torch import distributed

CPU = torch.device("cpu")
TIMEOUT = timedelta(hours=1)  # the others wait for the first process, which validates alone


class DeviceError(IogError):
    """A device that is not there."""


class ProcessLost(IogError):
    """One of the processes of a training has ended, and the others cannot go on without it."""


@dataclass(frozen=True)
class Machine:
    """A device, and the place of this process among those that `torchrun` started.

    arithmetic: of the convolutions: torch.float32, torch.bfloat16, or torch.float16 with scaled gradients.
    workers: processes that prepare batches. annotators: threads that click, for whom the device waits.
    rank: from 0 to `processes` - 1; the first one writes files and validates.
    neighbours: how many of these processes share the computer with this one, itself among them.
    """

    device: torch.device = CPU
    arithmetic: torch.dtype = torch.float32
    workers: int = 1
    annotators: int = 1
    rank: int = 0
    processes: int = 1
    neighbours: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files, validates and tells the user."""
        return self.rank == 0

    def agreed(self, seconds: float, wish: bool) -> tuple[float, bool]:
        """In all processes, the first one's seconds (each has a clock of its own) and whether any of them has a wish.

        seconds: not negative.
        """
        seconds, wished = self._largest(seconds if self.leads else 0.0, wish)
        return seconds, bool(wished)

    def any(self, wish: bool) -> bool:
        """Whether one of the processes has this wish; they wait for each other."""
        return bool(*self._largest(wish))

    def wait(self) -> None:
        """Until all processes are here."""
        self._largest(0.0)

    def told(self, text: str) -> list[str]:
        """What the processes have to say to each other, in their order."""
        if self.processes == 1:
            return [text]
        texts: list[str] = [""] * self.processes
        distributed.all_gather_object(texts, text)
        return texts

    def lost_by(self, error: RuntimeError) -> bool:
        """Whether it says that another process does not answer any more: gloo's errors have no type of their own."""
        return self.processes > 1 and (isinstance(error, distributed.DistError) or "gloo" in str(error).lower())

    def _largest(self, *values: float) -> tuple[float, ...]:
        if self.processes == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return tuple(tensor.tolist())


def find_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of a name: "cpu", "cuda", "cuda:1", or "auto", a GPU if there is one; "cuda" is this process's own.

    Raises DeviceError if it is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    if name in ("auto", "cuda"):
        name = f"cuda:{local_rank}"
    kind, _, index = name.partition(":")
    if kind != "cuda" or not index.isdecimal():
        raise DeviceError(f"device {name!r}; expected auto, cpu, cuda or cuda:NUMBER")
    if int(index) >= count:
        raise DeviceError(
            f"device {name} is not there: torch {torch.__version__} finds {count} GPUs; choose another, or start no "
            "more processes than there are"
        )
    return torch.device(name)


def native_arithmetic(device: torch.device) -> torch.dtype:
    """The fastest arithmetic that a device has in hardware: bfloat16 emulated takes twice as long as float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.10
        return torch.float32
    has = torch.cpu.get_capabilities()
    return torch.bfloat16 if has.get("amx_bf16") or has.get("avx512_bf16") else torch.float32


def default_workers(device: torch.device, neighbours: int) -> int:
    """As many as keep the device busy: a GPU takes what all cores prepare; a CPU's cores belong to the network."""
    return max(default_threads(neighbours) - 1, 1) if device.type == "cuda" else 1


def default_annotators(device: torch.device, neighbours: int) -> int:
    """With those that prepare batches more than there are cores: those have batches ahead while the device waits."""
    return max(default_threads(neighbours) // 2, 1) if device.type == "cuda" else 1


def default_threads(neighbours: int) -> int:
    """A process's share of the computer's cores. neighbours: processes of the training on it."""
    return max(allowed() // neighbours, 1)


@contextmanager
def joined(device: str, arithmetic: torch.dtype | None, workers: int | None) -> Iterator[Machine]:
    """The machine of this process, in the group of those that `torchrun` started, if it did.

    arithmetic, workers: None for what suits the device.
    """
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local_rank, neighbours = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    found = find_device(device, local_rank)
    if found.type == "cuda":
        torch.cuda.set_device(found)
        torch.backends.cudnn.benchmark = True  # few shapes, each seen thousands of times
    machine = Machine(
        device=found,
        arithmetic=arithmetic or native_arithmetic(found),
        workers=workers if workers is not None else default_workers(found, neighbours),
        annotators=default_annotators(found, neighbours),
        rank=rank,
        processes=processes,
        neighbours=neighbours,
    )
    if processes == 1:
        yield machine
        return
    backend = "nccl" if found.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield machine
    finally:
        distributed.destroy_process_group()
