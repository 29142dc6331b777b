import pytest
import torch
from iog_export.training.machine import (
    DeviceError,
    Machine,
    default_annotators,
    default_threads,
    default_workers,
    find_device,
    joined,
    native_arithmetic,
)
from torch import distributed

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "arithmetic"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),  # where bfloat16 is emulated
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": True}, torch.bfloat16),
        ({"neon": True}, torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_only_if_it_has_it_in_hardware(monkeypatch, capabilities, arithmetic):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert native_arithmetic(CPU) == arithmetic


@pytest.mark.parametrize(("native", "arithmetic"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_computes_in_sixteen_bits(monkeypatch, native, arithmetic):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert native_arithmetic(torch.device("cuda:0")) == arithmetic


def test_the_device_is_found_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cpu", 1) == CPU
    assert [str(find_device(name, 1)) for name in ("auto", "cuda", "cuda:0")] == ["cuda:1", "cuda:1", "cuda:0"]
    with pytest.raises(DeviceError, match=r"cuda:2 is not there: .* finds 2 GPUs"):
        find_device("cuda", 2)  # more processes than GPUs
    with pytest.raises(DeviceError, match="'tpu'; expected auto, cpu, cuda or cuda:NUMBER"):
        find_device("tpu")


def test_without_a_gpu_auto_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == CPU
    with pytest.raises(DeviceError, match="finds 0 GPUs"):
        find_device("cuda")


def test_a_gpu_takes_what_the_cores_prepare(monkeypatch):
    monkeypatch.setattr("iog_export.training.machine.allowed", lambda: 16)
    assert default_workers(torch.device("cuda:0"), 1) == 15
    assert default_workers(torch.device("cuda:0"), 4) == 3
    assert default_workers(CPU, 1) == 1
    assert [default_annotators(torch.device("cuda:0"), n) for n in (1, 4, 16)] == [8, 2, 1]
    assert default_annotators(CPU, 1) == 1


def test_cores_are_divided_among_the_processes_of_one_computer(monkeypatch):
    monkeypatch.setattr("iog_export.training.machine.allowed", lambda: 16)
    for name, value in {"WORLD_SIZE": 4, "RANK": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "init_process_group", lambda *arguments, **options: None)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    with joined("cpu", None, None) as machine:
        assert (machine.rank, machine.processes, machine.neighbours) == (2, 4, 2)
        assert default_threads(machine.neighbours) == 8
    assert default_threads(32) == 1


def test_an_error_of_ones_own_is_no_lost_process():
    closed = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer")
    assert Machine(processes=2).lost_by(closed)
    assert Machine(processes=2).lost_by(distributed.DistBackendError("NCCL error"))
    assert not Machine(processes=2).lost_by(torch.OutOfMemoryError("out of memory"))
    assert not Machine().lost_by(closed)


def test_one_process_agrees_with_itself():
    assert Machine().agreed(1.5, True) == (1.5, True)
    assert Machine().any(True)
    assert not Machine().any(False)
    assert Machine().told("nothing new") == ["nothing new"]
