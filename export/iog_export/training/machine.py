"""What a training runs on: it decides how fast, and but for rounding not what it gives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from iog.errors import IogError
from torch import distributed

CPU = torch.device("cpu")
TIMEOUT = timedelta(hours=1)  # the others wait for the first process, which validates alone


class DeviceError(IogError):
    """A device that is not there."""


@dataclass(frozen=True)
class Machine:
    """A device, and the place of this process among those that `torchrun` started.

    arithmetic: of the convolutions: torch.float32, torch.bfloat16, or torch.float16 with scaled gradients.
    workers: processes that prepare batches. rank: from 0 to `processes` - 1; the first one writes files and validates.
    """

    device: torch.device = CPU
    arithmetic: torch.dtype = torch.float32
    workers: int = 1
    rank: int = 0
    processes: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files, validates and tells the user."""
        return self.rank == 0

    def agreed(self, *values: float) -> tuple[float, ...]:
        """The first process's values, in all processes: each has a clock of its own, and one alone must count."""
        if self.processes == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.broadcast(tensor, src=0)
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


def default_workers(device: torch.device, processes: int) -> int:
    """As many as keep the device busy: a GPU takes what all cores prepare; a CPU's cores belong to the network."""
    return max((os.cpu_count() or 1) // processes - 1, 1) if device.type == "cuda" else 1


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
        rank=rank,
        processes=processes,
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
