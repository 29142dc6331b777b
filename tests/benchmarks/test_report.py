"""What the report says of records, which are made up here."""

import json
from pathlib import Path
from typing import Any

import report
from harness.ratios import against_eager
from harness.record import DEFAULT_MODEL, EAGER

HERE = {
    "date": "2030-01-02T03:04+00:00",
    "cpu": "Abacus",
    "instructions": ["avx2"],
    "cores": 2,
    "memory_bytes": 8 << 30,
    "system": "Linux",
    "python": "3.11",
    "libraries": {"onnxruntime": "1.20"},
    "load_before": 0.5,
    "load_after": 1.5,
}
THERE = {**HERE, "cpu": "Difference Engine", "libraries": {"onnxruntime-gpu": "1.21", "tensorrt": "10.0"}}
TIMES = {"median": 2.0, "p25": 1.5, "p75": 2.5, "minimum": 1.25}
GPU = {
    "settings": {"model": "mine", "backend": "trt", "clicks": 300, "gpu": {"name": "RTX 1"}, "bundle": "0123456789ab"},
    "results": {
        "clicks": {"first click": TIMES, "first click: encoder": TIMES, "correction": TIMES},
        "heads": [{"batch": 4, "heads_per_second": 2000.0, **TIMES}],
    },
}
SCALING = {"settings": {"model": "default"}, "results": {"objects": {"correction": {"1": 1.0, "10": 1.25}}}}

ALONE = {"first": 10.0, "encoder": 5.0, "correction": 2.0, "head": 1.0}
BURST = {
    "alone": ALONE,
    "burst": {
        "annotators": 2,
        "bursts": 1,
        "encoder_runs": 2,
        "encoder_runs_for_corrections": 0,
        "rejected": 0,
        "failed": 0,
        "corrections_while_encoding": {"count": 0},
        "of_these_on_the_server": {},
        "two_heads_and_an_encoder_ms": {"alone": 9.0, "in the burst": 9.0},
    },
}


def written(folder: Path, **records: dict[str, Any]) -> str:
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record))
    report.main.main([str(folder)], standalone_mode=False)
    return (folder / "report.md").read_text()


def test_a_gpu_has_its_section(tmp_path: Path) -> None:
    text = written(tmp_path, gpu={**GPU, "environment": THERE})
    assert "## On a GPU: RTX 1" in text
    assert "Measured 2030-01-02T03:04+00:00, load 0.5 before and 1.5 after, bundle 0123456789ab." in text
    assert "| first click: encoder | 2.00 | 1.50 | 2.50 | 1.25 |  |" in text
    assert "| head, batch 4 | 2.00 | 1.50 | 2.50 | 1.25 | 2000 |" in text


def test_each_machine_is_described_with_what_was_measured_on_it(tmp_path: Path) -> None:
    later = {**HERE, "date": "2030-01-03T03:04+00:00", "load_before": 0.25}
    burst = {"environment": later, "settings": {"model": "default"}, "results": BURST}
    text = written(tmp_path, scaling={**SCALING, "environment": HERE}, burst=burst, gpu={**GPU, "environment": THERE})
    assert text.count("cores of") == 2
    assert "A burst of 2 annotators; How it scales: 2 cores of Abacus (avx2)" in text
    assert "On a GPU: RTX 1: 2 cores of Difference Engine (avx2)" in text
    assert "onnxruntime-gpu 1.21, tensorrt 10.0." in text


def test_one_machine_needs_no_list(tmp_path: Path) -> None:
    text = written(tmp_path, scaling={**SCALING, "environment": HERE})
    assert "# Benchmarks\n\n2 cores of Abacus (avx2), 8 GiB" in text


def test_ratios_are_given_to_the_same_network() -> None:
    def row(name: str, network: str, milliseconds: float) -> dict[str, Any]:
        return {"name": name, "competitor": name, "network": network, "milliseconds": [milliseconds]}

    eager = row(EAGER, "ResNet-101 at 512", 100.0)
    others = [row("split", "ResNet-101 at 512", 40.0), row("ours", DEFAULT_MODEL, 2.0), row("GrabCut", "no network", 9)]
    assert against_eager([eager, *others]) == {
        EAGER: "1.0x",
        "split": "2.5x",
        "ours": "50.0x (another, smaller network)",
        "GrabCut": "-",
    }
    assert set(against_eager(others).values()) == {"-"}


def test_a_load_is_given_as_offered_clicked_and_answered(tmp_path: Path) -> None:
    load = {
        "share": 1.2,
        "offered_per_second": 12.0,
        "clicked_per_second": 11.5,
        "answered_per_second": 9.9,
        "resident_bytes": 1e6,
        "correction_milliseconds": [3.0, 4.0],
        "rejected": 0,
        "failed": 0,
        "hit_rate": 0.8,
        "first": {},
        "correction": {"p50": 3.5, "p95": 4.0, "p99": 4.0, "max": 4.0},
    }
    settings = {"model": "default", "corrections": 4, "think": 1.0, "busy": 4}
    results = {"capacity": 10.0, "alone": ALONE, "loads": [load]}
    text = written(tmp_path, server_load={"environment": HERE, "settings": settings, "results": results})
    assert "4 annotators who never pause get 10.0 clicks a second" in text
    assert "| load | offered/s | clicked/s | answered/s |" in text
    assert "| 120% | 12.0 | 11.5 | 9.9 | 80% |" in text
