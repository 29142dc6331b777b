import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from iog_export.training import cli, norms
from iog_export.training.cli import train
from iog_export.training.snapshot import Snapshot

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

LAUNCHED = Path(__file__).parent / "launched.py"
TINY = ["--size", "128", "--batch", "2", "--width", "8", "--threads", "1"]


@pytest.fixture
def folder(shapes):
    root, names = shapes
    (root / "train.txt").write_text("\n".join(names[:6]))
    (root / "val.txt").write_text("\n".join(names[6:]))
    return root


def test_train_writes_a_checkpoint_shows_figures_beside_baselines_and_starts_from_what_it_wrote(folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    arguments = [str(folder), "--out", str(first), "--minutes", "0.005", *TINY, "--workers", "2", "--device", "cpu"]
    arguments += ["--augmentation", "0.8"]
    result = CliRunner().invoke(train, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    for word in ("network", "ellipse", "filled box", "shapes"):
        assert word in result.output
    assert result.output.index(f"wrote {first / 'final.pt'}") < result.output.index("filled box")
    assert "on 2 of 2 objects; for all" in result.output
    contents = torch.load(first / "final.pt", weights_only=True)
    assert contents["spec"] == {"backbone": "resnet18", "refine": True, "width": 8, "normalize": True}
    assert contents["crop"]["relax_fraction"] == 0.12
    assert contents["guidance"] == {"size": 128, "fwhm": 2.5}
    assert contents["provenance"]["data"] == {"shapes": 6}
    assert contents["provenance"]["init"] is None
    assert [stage[-1] for stage in contents["provenance"]["stages"]] == pytest.approx([0.8, 0.6, 0.4])
    assert list((first / "tensorboard").iterdir())

    options = ["--minutes", "0.001", "--threads", "1", "--batch", "2", "--width", "10", "--last-augmentation", "0"]
    options += ["--init", str(first / "final.pt")]
    result = CliRunner().invoke(train, [str(folder), "--out", str(second), *options], catch_exceptions=False)
    assert result.exit_code == 0
    snapshot = Snapshot.read(second / "final.pt")
    assert (snapshot.spec.width, snapshot.geometry.crop.size) == (10, 128)
    assert [stage[1] for stage in snapshot.provenance["stages"]] == [64, 128]
    assert [stage[-1] for stage in snapshot.provenance["stages"]] == [0.4, 0.0]
    assert snapshot.provenance["init"].startswith("final.pt, sha256 ")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--resume"], "no last.pt to go on from"),
        (["--size", "200"], "200 is no multiple of 64"),
        (["--minutes", "0"], "--minutes"),
        (["--width", "33"], "33 is odd"),
        (["--seed", "-1"], "-1 is not in the range x>=0"),
        (["--settled", "1.5"], "1.5 is not in the range 0<=x<=1"),
        (["--init", "default", "--width", "32"], "width is 96 there and 32 here: a network grows to more"),
        (["--init", "default", "--backbone", "resnet50"], "backbone is resnet30 there and resnet50 here"),
    ],
)
def test_wrong_options_are_refused_with_a_reason(folder, tmp_path, options, expected):
    result = CliRunner().invoke(train, [str(folder), "--out", str(tmp_path / "run"), "--minutes", "1", *options])
    assert result.exit_code == 2
    assert expected in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("held", "option", "advice"),
    [
        (["last.pt"], [], "pass --resume"),
        (["final.pt"], [], "with --init"),
        (["last.pt", "final.pt"], [], "with --init"),
        (["last.pt", "final.pt"], ["--resume"], "with --init"),
    ],
)
def test_a_started_or_finished_run_is_not_overwritten(folder, tmp_path, held, option, advice):
    (tmp_path / "run").mkdir()
    for name in held:
        (tmp_path / "run" / name).write_bytes(b"")
    result = CliRunner().invoke(train, [str(folder), "--out", str(tmp_path / "run"), "--minutes", "1", *option])
    assert result.exit_code == 2
    assert advice in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("moment", ["while the norms are measured", "while it evaluates"])
def test_interrupted_at_the_end_it_keeps_what_it_wrote_and_evaluates_no_more(folder, tmp_path, monkeypatch, moment):
    evaluated = []

    def summarized(segment, targets):
        evaluated.append(len(list(targets)))
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli, "summarize", summarized)
    if moment == "while the norms are measured":
        monkeypatch.setattr(norms, "reestimate", lambda *arguments: signal.raise_signal(signal.SIGINT))
    out = tmp_path / "[run]"  # no markup
    options = ["--out", str(out), "--minutes", "0.0001", *TINY, "--workers", "0", "--device", "cpu"]
    result = CliRunner().invoke(train, [str(folder), *options])
    assert result.exit_code == 130
    assert f"wrote {out / 'final.pt'}" in result.output
    assert evaluated == ([] if moment == "while the norms are measured" else [2])
    assert (f"{out / 'final.pt'} is complete" in result.output) == bool(evaluated)
    assert Snapshot.read(out / "final.pt").resume is None


def test_the_figures_at_the_end_are_of_a_bounded_number_of_objects(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "EVALUATED", 1)
    options = ["--out", str(tmp_path / "run"), "--minutes", "0.0001", *TINY, "--workers", "0", "--device", "cpu"]
    result = CliRunner().invoke(train, [str(folder), *options], catch_exceptions=False)
    assert "on 1 of 2 objects; for all, and more figures: iog export --checkpoint" in result.output


def test_the_figures_at_the_end_count_what_was_measured_and_name_sets_as_they_are(folder, tmp_path):
    (folder / "shapes").rename(folder / "[shapes]")
    for name in ("train", "val"):
        listed = folder / f"{name}.txt"
        listed.write_text(listed.read_text().replace("shapes", "[shapes]"))
    image = folder / "[shapes]" / "images" / "7.jpg"
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    options = ["--out", str(tmp_path / "run"), "--minutes", "0.0001", *TINY, "--workers", "0", "--device", "cpu"]
    result = CliRunner().invoke(train, [str(folder), *options], catch_exceptions=False)
    assert "on 1 of 2 objects; for all" in result.output
    assert "[shapes]" in result.output


def started(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "iog.cli", "train", *arguments], stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_stopped_and_then_killed_it_keeps_its_last_checkpoint(folder, tmp_path):
    out = tmp_path / "run"
    arguments = [str(folder), "--out", str(out), "--minutes", "1000", *TINY]
    with started(arguments) as process:
        wait_for(process, lambda: (out / "tensorboard").exists())
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate()
    assert process.returncode == 130
    assert "go on with --resume" in " ".join(shown.split())
    before = Snapshot.read(out / "last.pt").resume
    assert before is not None

    with started([*arguments, "--resume"]) as process:
        wait_for(process, lambda: len(list((out / "tensorboard").iterdir())) == 2)
        process.kill()
    after = Snapshot.read(out / "last.pt").resume
    assert after is not None
    assert after["steps"] == before["steps"] >= 1


def launched(folder: Path, out: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(LAUNCHED), str(out)]
    arguments = [str(folder), "--device", "cpu", *TINY, *options]
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, *launch, *arguments], capture_output=True, text=True, env=environment)


def test_two_processes_of_torchrun_train_one_network(folder, tmp_path):
    out = tmp_path / "run"
    done = launched(folder, out, "--minutes", "5.5", "--accumulate", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("filled box") == 1
    assert "2 processes" in " ".join(done.stderr.split())
    one, other = (torch.load(out / f"{rank}.pt") for rank in (0, 1))
    for view in (one, other):
        assert (view["processes"], view["steps"], view["seconds"]) == (2, 11, 330.0)
        assert 2 * 2 * 11 * 2 < view["passes"] <= 2 * 2 * 11 * 4  # processes, accumulated batches, steps, samples
    assert one["passes"] == other["passes"]
    for shared in ("parameters", "statistics"):  # of batch norms, which keep what the first process measured at the end
        assert all(torch.equal(a, b) for a, b in zip(one[shared], other[shared], strict=True))
    assert not torch.equal(one["first_batch"], other["first_batch"])
    assert len(list((out / "tensorboard").iterdir())) == 1
    provenance = Snapshot.read(out / "final.pt").provenance
    assert (provenance["passes"], provenance["processes"]) == (one["passes"], 2)


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        ("stop", "Stopped: stopped after 0.5 of 5 minutes; {last} holds the training: go on with --resume"),
        ("starve", "Starved: no batch can be prepared: .*DataLoader worker .*; {last} holds the training: go on with"),
        ("die", "ProcessLost: a process of the training ended: .*; {last} holds the training: go on with --resume"),
    ],
    ids=["stop", "starve", "die"],
)
def test_what_befalls_one_process_ends_all_of_them_with_a_checkpoint(folder, tmp_path, trouble, expected):
    out = tmp_path / "run"
    done = launched(folder, out, "--minutes", "5", TROUBLE=trouble)
    assert done.returncode != 0
    message = re.compile("True " + expected.format(last=re.escape(str(out / "last.pt"))))
    for rank in (0,) if trouble == "die" else (0, 1):
        assert message.match((out / f"{rank}.txt").read_text()), done.stderr
    resume = Snapshot.read(out / "last.pt").resume
    assert resume is not None
    assert (resume["steps"], resume["settings"]["processes"]) == (1, 2)
    assert not (out / "final.pt").exists()


@pytest.mark.parametrize("name", ["shapes/2", "shapes/2-2"])
def test_validating_on_what_is_trained_on_is_refused(folder, tmp_path, name):
    """Under whatever name: a second annotation is of the same photograph."""
    (folder / "mixed.txt").write_text(f"shapes/7\n{name}\n")
    options = ["--minutes", "1", "--val-list", str(folder / "mixed.txt")]
    result = CliRunner().invoke(train, [str(folder), "--out", str(tmp_path / "run"), *options])
    assert result.exit_code == 2
    assert f"1 of its photographs, such as {name}, are trained on" in " ".join(result.output.replace("│", " ").split())
