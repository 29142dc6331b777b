"""How many cores a container may keep busy."""

import os
from pathlib import Path

import pytest
from iog import cores
from iog.backends.openvino import OpenVinoBackend
from iog.backends.ort import OrtBackend, OrtGraph
from iog.bundle import Bundle


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a control group, on a computer of 16 cores."""
    monkeypatch.setattr(cores, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(cores, "PROCESSORS", tmp_path / "none")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("quota", "allowed"), [("max", 16), ("200000", 2), ("375000", 4), ("50000", 1), ("6400000", 16), ("nonsense", 16)]
)
def test_a_quota_counts_as_cores_rounded_up(group: Path, quota: str, allowed: int) -> None:
    (group / "cpu.max").write_text(f"{quota} 100000\n")
    assert cores.allowed() == allowed
    assert cores.engine_threads(0) == (allowed if allowed < 16 else 0)
    assert cores.engine_threads(5) == 5


@pytest.mark.parametrize(("quota", "allowed"), [("-1", 16), ("300000", 3)])
def test_control_groups_of_version_1_too(group: Path, quota: str, allowed: int) -> None:
    (group / "cpu").mkdir()
    (group / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (group / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores.allowed() == allowed


def test_without_control_groups_all_cores_of_the_process_are_allowed(
    group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (cores.allowed(), cores.engine_threads(0)) == (16, 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert (cores.allowed(), cores.engine_threads(0)) == (2, 2)


def test_where_cores_run_two_threads_each_an_engine_keeps_its_choice_until_fewer_are_allowed(
    group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "PROCESSORS", group)
    for i in range(16):
        (group / f"cpu{i}" / "topology").mkdir(parents=True)
        (group / f"cpu{i}" / "topology" / "thread_siblings_list").write_text(f"{i % 8},{i % 8 + 8}\n")
    for quota, threads in ((12, 0), (8, 0), (7, 7)):
        (group / "cpu.max").write_text(f"{quota}00000 100000\n")
        assert cores.allowed() == quota
        assert cores.engine_threads(0) == threads


def test_an_engine_has_no_more_threads_than_the_quota_lasts_for(group: Path, split_bundle: Path) -> None:
    (group / "cpu.max").write_text("100000 100000\n")
    bundle = Bundle.open(split_bundle)
    graph = OrtBackend().open("head", bundle.graphs["head"], bundle.manifest.graphs["head"])
    assert isinstance(graph, OrtGraph)
    assert graph._session.get_session_options().intra_op_num_threads == 1
    assert OpenVinoBackend()._options["INFERENCE_NUM_THREADS"] == 1
