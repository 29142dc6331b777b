import os
import resource
from pathlib import Path

import pytest
import torch
from iog_export.networks import NetworkSpec
from iog_export.training.snapshot import Snapshot, SnapshotError

SPEC = NetworkSpec("resnet18", width=8)


@pytest.fixture
def snapshot(geometry):
    def make(value: float, count: int = 10) -> Snapshot:
        return Snapshot(SPEC, geometry, {"weights": torch.full((count,), value)})

    return make


def test_a_snapshot_comes_back(snapshot, tmp_path):
    snapshot(3.0).write(tmp_path / "run" / "last.pt")
    found = Snapshot.read(tmp_path / "run" / "last.pt")
    assert (found.spec, found.geometry, found.resume) == (SPEC, snapshot(3.0).geometry, None)
    assert found.weights["weights"][0] == 3
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.pt"]


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_other_files_are_no_checkpoints(tmp_path, content):
    path = tmp_path / "last.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SnapshotError, match=r"last\.pt"):
        Snapshot.read(path)


def test_a_checkpoint_with_parts_missing_is_refused(tmp_path):
    torch.save({"format": 1, "state_dict": {}}, tmp_path / "last.pt")
    with pytest.raises(SnapshotError, match="no checkpoint of `iog train`: KeyError"):
        Snapshot.read(tmp_path / "last.pt")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("count", [10, 1_000_000], ids=["small", "large"])
def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_to_do(snapshot, tmp_path, count):
    path = tmp_path / "last.pt"
    snapshot(1.0).write(path)
    os.symlink("/dev/full", path.with_suffix(".partial"))  # where the new one is written first
    with pytest.raises(SnapshotError, match=r"No space left on device; the one of \d\d:\d\d is as it was.*--resume"):
        snapshot(2.0, count).write(path)
    assert Snapshot.read(path).weights["weights"][0] == 1
    assert list(tmp_path.iterdir()) == [path]
    snapshot(3.0).write(path)
    assert Snapshot.read(path).weights["weights"][0] == 3


def test_a_disk_that_fills_up_half_way_leaves_the_last_checkpoint(snapshot, tmp_path):
    path = tmp_path / "last.pt"
    snapshot(1.0).write(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # what a quota does
    try:
        with pytest.raises(SnapshotError, match=r"last\.pt cannot be written: File too large; the one of"):
            snapshot(2.0, 1_000_000).write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Snapshot.read(path).weights["weights"][0] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_that_cannot_be_made_is_an_error_of_ours(snapshot, tmp_path):
    (tmp_path / "run").write_bytes(b"")
    with pytest.raises(SnapshotError, match=r"cannot be written: .*; there is none yet"):
        snapshot(1.0).write(tmp_path / "run" / "last.pt")
