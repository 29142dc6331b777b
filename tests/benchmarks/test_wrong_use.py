"""What users get wrong is answered in one line, with the exit codes of `iog`."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from harness.record import run
from iog.errors import Internal, Unavailable

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_else_is_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("harness.record.signal.signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)


def ended(monkeypatch: pytest.MonkeyPatch, command: click.Command, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run(command)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("click_latency", ("--only", "("), "'(' is no regular expression"),
        ("click_latency", ("--only", "no such"), "'no such' matches none that can run here of: PyTorch eager"),
        ("click_latency", ("--backbone", "foo"), "'foo' is not one of"),
        ("click_latency", ("--width", "9"), "9 is no multiple of 2; next ones: 8, 10"),
        ("click_latency", ("--size", "100"), "100 is no multiple of 32; next ones: 96, 128"),
        ("scaling", ("--model", "nope"), "nope is no model bundle"),
        ("scaling", ("--rounds", "0"), "--rounds"),
        ("server_load", ("--load", "0"), "0.01<=x<=100"),
        ("server_load", ("--burst", "2", "--soak", "1"), "different runs"),
        ("server_load", ("--model", "nope"), "'nope' is neither a bundle directory nor a packaged model"),
        ("report", (), "missing argument 'FOLDER'"),
        ("report", (".",), "run them first"),
    ],
)
def test_wrong_input_is_answered_in_a_line(
    script: str,
    arguments: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ended(monkeypatch, importlib.import_module(script).main, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench.py: ")
    assert said in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"benchmark": "burst", "resul', "cut short"),
        ("[1, 2]", "environment, results, settings"),
        ('{"environment": {}, "settings": {}, "results": {}}', "has no"),
    ],
)
def test_a_file_that_is_no_record_is_named(
    text: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("burst.json").write_text(text)
    assert ended(monkeypatch, importlib.import_module("report").main, ".") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "burst.json is no record of a benchmark" in line
    assert said in line
    assert not Path("report.md").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [(Unavailable("no server at here"), 2), (Internal("a defect"), 1), (FileNotFoundError(2, "No such file", "x"), 2)],
)
def test_errors_end_as_those_of_iog(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def main() -> None:
        raise error

    assert ended(monkeypatch, main) == code
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("error", [ValueError("ours"), OSError("ours")])
def test_our_own_defects_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def main() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["bench.py"])
    with pytest.raises(type(error), match="ours"):
        run(main)


def test_without_a_gpu_its_benchmark_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--json", "gpu.json"],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpu.py: ")
    assert "no GPU can be used here" in line or "CUDA bindings are not installed" in line
    assert not (tmp_path / "gpu.json").exists()
