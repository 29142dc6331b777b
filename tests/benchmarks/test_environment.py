"""The libraries that figures belong to."""

from pathlib import Path

import pytest
from harness.environment import environment


def test_installed_engines_are_listed_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment()["libraries"]
    engines = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime-gpu")
    for name in engines:
        about = tmp_path / f"{name.replace('-', '_')}-99.0.dist-info" / "METADATA"
        about.parent.mkdir()
        about.write_text(f"Name: {name}\nVersion: 99.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert environment()["libraries"] == {**before, **dict.fromkeys(engines, "99.0")}
