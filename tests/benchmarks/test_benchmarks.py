"""Each benchmark runs, small, on real networks and a real server; what it writes makes a report."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from harness.load import Reply, answered_within

ROOT = Path(__file__).parents[2]
EAGER = "PyTorch eager, whole network"
DEFAULT = "iog-runtime, default model"
LOAD = ("server_load.py", "--think", "0.02", "--corrections", "2")
RUNS = {
    "click_latency": (
        *("click_latency.py", "--rounds", "2", "--only", "eager, whole|default model"),
        *("--backbone", "resnet18", "--size", "64", "--width", "8"),
    ),
    "server_load": (*LOAD, "--seconds", "1", "--load", "0.3", "--load", "0.6"),
    "burst": (*LOAD, "--burst", "3"),
    "soak": (*LOAD, "--soak", "0.02", "--objects", "3", "--features-budget", "2MB"),
    "scaling": ("scaling.py", "--points", "2", "--rounds", "1", "--seconds", "0.2"),
}


def start(script: str, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=280)
    return process.returncode, out + err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


def measured(name: str, folder: Path) -> dict[str, Any]:
    """The results of a benchmark, which runs the first time it is asked for."""
    path = folder / f"{name}.json"
    if not path.exists():
        code, output = finish(start(*RUNS[name], "--json", str(path), cwd=folder))
        assert code == 0, output
    record = json.loads(path.read_text())
    assert record["benchmark"]
    assert record["environment"]["cores"] >= 1
    assert {"cpu", "libraries", "load_before", "load_after"} <= record["environment"].keys()
    results: dict[str, Any] = record["results"]
    return results


def test_competitors_take_turns_and_show_where_the_time_goes(folder: Path) -> None:
    results = measured("click_latency", folder)
    rows = {row["name"]: row["milliseconds"] for row in results["rows"]}
    ours = (
        f"{name}: {kind}" for name in (DEFAULT, f"{DEFAULT}, through gRPC") for kind in ("first click", "correction")
    )
    assert set(rows) == {f"{EAGER}: any click", *ours}
    assert all(len(times) == 2 and min(times) > 0 for times in rows.values())
    assert results["noise"] >= 0
    assert results["missing"] == {}
    for stages in results["stages"].values():
        assert 0 < stages["head"] < stages["all"]
        assert "encoder" not in stages  # corrections are timed


@pytest.mark.slow
def test_competitors_that_run_the_same_network_compute_the_same_logits(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    names = (
        EAGER,
        "platform function",
        "naive split",
        "ONNX Runtime, whole",
        "OpenVINO, whole",
        "OpenVINO fp32",
        "none",
    )
    small = ("--rounds", "1", "--backbone", "resnet18", "--size", "64", "--width", "8")
    code, output = finish(
        start("click_latency.py", *small, "--only", "|".join(names), "--json", str(path), cwd=tmp_path)
    )
    assert code == 0, output
    results = json.loads(path.read_text())["results"]
    assert len(results["deviations"]) == 5 - len(results["missing"])  # a platform function's answers are masks
    assert max(results["deviations"].values()) < 1e-3
    assert {"whole network", "naive backbone", "naive rest"} <= results["graphs"].keys()


def test_open_loop_load_reaches_the_server_and_every_click_is_accounted_for(folder: Path) -> None:
    results = measured("server_load", folder)
    assert [load["share"] for load in results["loads"]] == [0.3, 0.6]
    for load in results["loads"]:
        assert load["offered_per_second"] == pytest.approx(load["share"] * results["capacity"], abs=1.5)  # half a visit
        assert load["clicks"] > 0
        assert load["rejected"] == load["failed"] == 0
        assert load["hit_rate"] == load["corrections"] / load["clicks"]  # of new objects: only first clicks miss
        assert load["answered_per_second"] > 0
        for latencies in filter(None, (load["first"], load["correction"])):
            assert 0 < latencies["p50"] <= latencies["p95"] <= latencies["p99"] <= latencies["max"]


def test_only_answers_that_come_in_time_count_for_the_rate() -> None:
    replies = [
        Reply(due, latency, True, outcome, {})
        for due, latency, outcome in [
            (0.0, 0.5, "hit"),  # before the window
            (0.5, 1.0, "miss"),  # asked for before it
            (1.5, 0.1, "hit"),
            (2.0, 0.1, "rejected"),
            (2.0, 5.0, "hit"),  # too late
        ]
    ]
    assert answered_within(replies, 1.0, 2.0) == 2


def test_in_a_burst_each_object_is_encoded_once(folder: Path) -> None:
    burst = measured("burst", folder)["burst"]
    assert burst["clicks"] == 2 * 3 * burst["bursts"]
    assert burst["encoder_runs"] == 3 * burst["bursts"]
    assert burst["encoder_runs_for_corrections"] == 0
    bound = burst["two_heads_and_an_encoder_ms"]
    assert bound["in the burst"] > 0
    alone = measured("burst", folder)["alone"]
    assert bound["alone"] == pytest.approx(2 * alone["head"] + alone["encoder"])
    assert alone["head"] < alone["correction"] < alone["first"]


def test_a_soak_visits_all_objects_and_watches_the_memory(folder: Path) -> None:
    results = measured("soak", folder)
    soak = results["soak"]
    assert soak["objects"] == 3
    assert soak["rejected"] == soak["failed"] == 0
    assert soak["hit_rate"] > 0
    if sys.platform == "linux":
        assert results["peak_resident_bytes"] >= max(soak["resident_bytes"]) > 10e6
        assert results["peak_resident_bytes"] >= soak["resident_before_bytes"] > 10e6


def test_each_dimension_is_scaled(folder: Path) -> None:
    results = measured("scaling", folder)
    positions = {name: {tuple(points) for points in series.values()} for name, series in results.items()}
    assert positions == {
        "image height": {("480", "720")},
        "clicks": {("1", "2")},
        "objects": {("1", "10")},
        "annotators": {("1", "2")},
        "batch": {("1", "2")},
    }
    assert all(min(points.values()) > 0 for series in results.values() for points in series.values())


def test_the_report_shows_all_and_the_readme_gets_its_table(folder: Path) -> None:
    for name in RUNS:
        measured(name, folder)
    readme = Path(shutil.copy(ROOT / "README.md", folder))
    before = readme.read_text()
    code, output = finish(start("report.py", str(folder), "--readme", str(readme), cwd=folder))
    assert code == 0, output
    report = (folder / "report.md").read_text()
    assert f"| {EAGER}: any click | ResNet-18 at 64, width 8 |" in report
    assert "Noise" in report
    assert "GTX 1080" in report
    pictures = {line[line.index("(") + 1 : -1] for line in report.splitlines() if line.startswith("![")}
    assert pictures >= {"latency.png", "latency_cdf.png", "load.png", "memory.png", "scaling.png", "roofline.png"}
    assert all((folder / picture).stat().st_size > 5000 for picture in pictures)
    after = readme.read_text()
    assert f"| ResNet-18 at 64, width 8 | {EAGER}: any click |" in after
    assert after.count("x (another, smaller network) |") == 4  # default model, in process and through gRPC
    assert after.splitlines()[:3] == before.splitlines()[:3]
    assert after.splitlines()[-3:] == before.splitlines()[-3:]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the server by /proc")
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_server_too(number: signal.Signals, expected: int, tmp_path: Path) -> None:
    process = start("server_load.py", "--soak", "5", cwd=tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (servers := children.read_text().split()):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)  # while it starts, or when it has: both must do
    process.send_signal(number)
    code, output = finish(process)
    assert code == expected, output
    for server in servers:
        with pytest.raises(ProcessLookupError):
            os.kill(int(server), 0)
