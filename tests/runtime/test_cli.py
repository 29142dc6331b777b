import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner, Result
from iog import Predictor, Prompt
from iog.arrays import BoolArray, UInt8Array
from iog.cli import Commands, LazyCommand, main
from iog.cli.values import byte_count, in_bytes
from iog.errors import Internal
from iog.mask import Bounds, Ring, from_rings, from_rle, full_frame
from iog.prompt import Size

Iog = Callable[..., Result]


@pytest.fixture
def iog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: UInt8Array) -> Iog:
    """Runs `iog` in a directory with photo.png."""
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(photo).save("photo.png")

    def run(*args: object, **environment: str) -> Result:
        return CliRunner().invoke(main, [str(a) for a in args], prog_name="iog", env=environment)

    return run


@pytest.fixture
def segment(iog: Iog, split_bundle: Path) -> Iog:
    """Runs `iog segment` on the disc in photo.png."""

    def run(*args: object, **environment: str) -> Result:
        where = () if "--server" in args else ("--model", split_bundle)
        given = [*where, "--box", "80,50,220,190", "--inside", "150,120", *args]
        if not {"-o", "--output"} & set(args):
            given += ["-o", "mask.png"]
        return iog("segment", "photo.png", *given, **environment)

    return run


@pytest.fixture
def expected(split_bundle: Path, photo: UInt8Array, prompt: Prompt) -> BoolArray:
    with Predictor.open(split_bundle) as predictor:
        mask = predictor.segment(photo, prompt).mask
    assert mask.any()
    return mask


def read(path: str | Path) -> UInt8Array:
    return np.asarray(PIL.Image.open(path))


def assert_refused(result: Result, *words: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("iog: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_help_lists_all_commands_and_loads_none_of_them() -> None:
    heavy = ("torch", "grpc", "onnxruntime", "numpy", "cv2", "rich", "pydantic")
    code = (
        "import sys; from iog.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: assert not set({heavy}) & set(sys.modules), set({heavy}) & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    for command in ("segment", "serve", "inspect", "models", "export", "train"):
        assert re.search(rf"^  {command}  ", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", ["segment", "serve", "inspect", "models"])
def test_every_command_shows_examples_on_lines_of_their_own(iog: Iog, command: str) -> None:
    result = iog(command, "--help")
    assert result.exit_code == 0
    assert f"Examples:\n    iog {command}" in result.stdout


@pytest.mark.parametrize("command", ["segment", "serve"])
def test_help_says_what_coordinates_are(iog: Iog, command: str) -> None:
    assert "pixels of the upright image" in iog(command, "--help").stdout


def test_version(iog: Iog) -> None:
    assert re.fullmatch(r"iog \d+\.\d+\.\d+\n", iog("--version").stdout)


def test_segment_writes_a_full_frame_mask_of_0_and_255(segment: Iog, expected: BoolArray) -> None:
    result = segment()
    assert result.exit_code == 0, result.output
    assert np.array_equal(read("mask.png"), np.where(expected, 255, 0))


def test_segment_reports_in_one_line(segment: Iog, expected: BoolArray) -> None:
    line = segment().stdout
    assert line.count("\n") == 1
    assert line.startswith(f"mask.png: {np.count_nonzero(expected)} px")
    for words in ("% of 320x240", "x ", "y ", "features miss", "encoder", "head", " ms "):
        assert words in line


def test_corners_may_come_in_any_order(segment: Iog, iog: Iog, split_bundle: Path) -> None:
    segment()
    result = iog(
        *("segment", "photo.png", "--model", split_bundle, "--box", "220,50,80,190", "--inside", "150,120"),
        *("-o", "turned.png"),
    )
    assert result.exit_code == 0, result.output
    assert Path("mask.png").read_bytes() == Path("turned.png").read_bytes()


def test_clicks_reach_the_model(segment: Iog, split_bundle: Path, photo: UInt8Array, prompt: Prompt) -> None:
    assert segment("--click", "90,60,fg", "--click", "150.5,120,bg").exit_code == 0
    with Predictor.open(split_bundle) as predictor:
        corrected = prompt.with_click(90, 60, True).with_click(150.5, 120, False)
        mask = predictor.segment(photo, corrected).mask
    assert np.array_equal(read("mask.png") > 0, mask)


def test_other_formats_hold_the_same_mask(segment: Iog, expected: BoolArray) -> None:
    frame = Bounds(0, 0, 320, 240)
    assert segment("--format", "rle", "-o", "rle.json").exit_code == 0
    rle = json.loads(Path("rle.json").read_text())
    assert np.array_equal(from_rle(rle["counts"].encode(), frame, Size(*rle["size"])), expected)
    assert segment("--format", "polygons", "-o", "rings.json").exit_code == 0
    document = json.loads(Path("rings.json").read_text())
    bounds = Bounds(**document["bounds"])
    rings = [Ring(np.array(ring["points"], np.int32), ring["hole"]) for ring in document["rings"]]
    assert np.array_equal(full_frame(from_rings(rings, bounds), bounds, Size(240, 320)), expected)


def test_a_mask_on_standard_output_leaves_the_report_to_stderr(segment: Iog) -> None:
    segment()
    result = segment("-o", "-")
    assert result.stdout_bytes == Path("mask.png").read_bytes()
    assert result.stderr.startswith("-: ")


def test_json_reports_for_machines(segment: Iog, expected: BoolArray) -> None:
    report = json.loads(segment("--json").stdout)
    assert report["area"] == np.count_nonzero(expected)
    assert report["image_size"] == {"height": 240, "width": 320}
    assert report["cache"] == {"image": False, "features": "miss", "windows": 5}
    assert report["model"] == "small-split"
    assert {"image", "encoder", "head", "mask"} <= set(report["stages_ms"])
    assert sum(report["stages_ms"].values()) <= report["total_ms"]


def test_timings_are_a_table_on_request(segment: Iog) -> None:
    assert re.search(r"^encoder +\d+\.\d$", segment("--timings").stdout, re.MULTILINE)


def test_overlay_is_a_picture_of_the_result(segment: Iog) -> None:
    assert segment("--overlay", "look.jpg").exit_code == 0
    picture = read("look.jpg")
    assert picture.shape[1:] == (640, 3)
    assert picture.shape[0] > 480  # with a caption


def test_two_names_of_one_file_are_not_written_over_each_other(segment: Iog) -> None:
    Path("sub").mkdir()
    Path("link.png").symlink_to("mask.png")
    for other in ("sub/../mask.png", "link.png"):
        assert_refused(segment("--overlay", other), "--overlay", "--output")


def test_files_are_written_as_others_are(segment: Iog) -> None:
    Path("plain").touch()
    segment()
    assert Path("mask.png").stat().st_mode == Path("plain").stat().st_mode
    Path("mask.png").chmod(0o640)
    segment()
    assert Path("mask.png").stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir()) == ["mask.png", "photo.png", "plain"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("CLICK", "3,4", "x,y,fg"), ("FORMAT", "gif", "polygons")],
)
def test_options_are_read_from_the_environment_by_their_names(segment: Iog, name: str, value: str, words: str) -> None:
    assert_refused(segment(**{f"IOG_SEGMENT_{name}": value}), words)
    assert "area" in json.loads(segment(IOG_SEGMENT_JSON="1").stdout)


def test_the_fake_backend_needs_no_engine(segment: Iog) -> None:
    assert segment("--backend", "fake").exit_code == 0
    assert read("mask.png").any()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--box", "1,2,3"], ["--box", "'1,2,3'", "x0,y0,x1,y1"]),
        (["--box", "1,2,3,x"], ["--box", "4 numbers"]),
        (["--box", "1,2,3,nan"], ["--box", "nan", "finite"]),
        (["--inside", "5"], ["--inside", "x,y"]),
        (["--inside", "300,10"], ["inside", "not in the box"]),
        (["--click", "3,4"], ["--click", "x,y,fg"]),
        (["--click", "3,4,yes"], ["--click", "fg", "bg"]),
        (["--click", "999,999,fg"], ["clicks[0]", "320x240"]),
        (["-o", "missing/mask.png"], ["--output", "'missing'", "does not exist"]),
        (["-o", "."], ["--output"]),
        (["-o", "mask.jpg"], ["--output", ".png"]),
        (["-o", "photo.png"], ["--output", "image itself"]),
        (["--overlay", "missing/look.png"], ["--overlay", "does not exist"]),
        (["--overlay", "look.gif"], ["--overlay", ".png or .jpg"]),
        (["--overlay", "mask.png"], ["--overlay", "--output"]),
        (["--format", "gif"], ["--format", "polygons"]),
        (["--device", "cuda"], ["CUDAExecutionProvider"]),
        (["--server", "localhost:1", "--backend", "fake"], ["--backend", "server"]),
        (["--threads", "-1"], ["--threads"]),
        (["--threads", "1000000"], ["--threads", "1024"]),
        (["--timeout", "nan"], ["--timeout", "nan"]),
        (["--timeout", "inf"], ["--timeout", "inf"]),
        (["--no-such-option"], ["--no-such-option", "iog segment --help"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("-") else "",
)
def test_wrong_input_is_refused_in_one_line(segment: Iog, args: list[str], words: list[str]) -> None:
    assert_refused(segment(*args), *words)
    assert not Path("mask.png").exists()


def test_a_file_that_is_no_image_is_named(segment: Iog, iog: Iog) -> None:
    Path("photo.png").write_bytes(b"no image")
    assert_refused(segment(), "photo.png", "no image")


def test_a_missing_image_is_named(iog: Iog) -> None:
    args = ("--box", "0,0,5,5", "--inside", "3,3", "-o", "mask.png")
    assert_refused(iog("segment", "none.jpg", *args), "none.jpg", "does not exist")


def test_an_output_that_cannot_be_written_is_named(segment: Iog) -> None:
    Path("mask.png").mkdir()
    assert_refused(segment(), "mask.png", "directory")


def test_a_full_disk_leaves_the_file_that_was_there(segment: Iog, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mask.png").write_bytes(b"earlier")
    before = set(Path().iterdir())
    write = Path.write_bytes

    def write_half(path: Path, data: bytes) -> int:
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_half)
    assert_refused(segment(), "mask.png: No space left on device")
    assert Path("mask.png").read_bytes() == b"earlier"
    assert set(Path().iterdir()) == before


def test_a_link_as_output_stays_one_and_a_device_is_written_to(segment: Iog) -> None:
    Path("link.png").symlink_to("mask.png")
    Path("full.png").symlink_to("/dev/full")
    assert segment("-o", "link.png").exit_code == 0
    assert Path("link.png").is_symlink()
    assert read("mask.png").any()
    assert_refused(segment("-o", "full.png"), "full.png: No space left on device")


@pytest.mark.parametrize(("output", "code"), [("-", 2), ("mask.png", 0)])
def test_a_closed_standard_output_is_noticed_where_the_mask_should_go(
    iog: Iog, split_bundle: Path, output: str, code: int
) -> None:
    iog("--version")  # makes photo.png
    given = ["photo.png", "--box", "80,50,220,190", "--inside", "150,120", "--model", str(split_bundle), "-o", output]
    command = [sys.executable, "-m", "iog.cli", "segment", *given]
    result = subprocess.run(["bash", "-c", '"$@" >&-', "bash", *command], stderr=subprocess.PIPE, text=True)
    assert result.returncode == code
    assert ("standard output is closed" in result.stderr) == (code == 2)
    assert "internal error" not in result.stderr


def test_unknown_models_and_commands_are_refused(iog: Iog) -> None:
    args = ("--box", "0,0,5,5", "--inside", "3,3", "-o", "mask.png")
    assert_refused(iog("segment", "photo.png", *args, "--model", "nope"), "'nope'", "neither a bundle directory")
    assert_refused(iog("segmnt"), "no such command 'segmnt'")


def test_a_server_that_is_not_there_is_noticed_soon(segment: Iog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iog.cli.models.REACH_S", 0.3)
    assert_refused(segment("--server", "localhost:1"), "no server answers at localhost:1", "iog serve", code=75)


@pytest.mark.parametrize("address", ["localhost", "http://localhost:50051", "localhost:0", "::1:50051", "a b:80", ""])
def test_what_is_no_address_is_not_dialled(segment: Iog, address: str) -> None:
    assert_refused(segment("--server", address), f"{address!r} is no server's address", "such as localhost:50051")


def test_too_little_time_is_no_wrong_input(segment: Iog) -> None:
    assert_refused(segment("--timeout", "0.001"), "deadline", code=75)


def test_a_larger_image_is_taken_if_it_is_allowed(segment: Iog) -> None:
    assert_refused(segment("--max-image-pixels", "70000"), "at most 70,000", "unless --max-image-pixels")
    assert segment("--max-image-pixels", "76800").exit_code == 0
    assert_refused(segment("--server", "localhost:1", "--max-image-pixels", "9"), "--max-image-pixels is the server's")


def test_a_click_that_changes_nothing_is_noted(segment: Iog) -> None:
    plain = segment()
    mask = Path("mask.png").read_bytes()
    noted = segment("--click", "319,239,bg")
    assert (plain.exit_code, noted.exit_code) == (0, 0)
    assert Path("mask.png").read_bytes() == mask
    assert noted.stderr.startswith("note: the click at (319, 239) changes nothing: the network sees x ")
    assert plain.stderr == ""
    at_the_edge = segment("--click", "319,239,bg", "--click", "150,120,fg")
    assert at_the_edge.stderr.count("note: ") == 1


def test_a_crop_may_reach_beyond_what_a_prompt_can_say(segment: Iog) -> None:
    PIL.Image.new("RGB", (960_000, 4)).save("photo.png")
    assert segment("--box", "0,0,959999,3", "--inside", "5,2", "--backend", "fake").exit_code == 0


def test_the_engine_for_tests_is_not_offered(iog: Iog) -> None:
    for command in ("segment", "serve"):
        shown = iog(command, "--help").stdout
        assert "[ort|openvino|trt]" in shown
        assert "fake" not in shown


def _fail(*_: Any) -> bytes:
    raise RuntimeError("a defect")


def test_defects_show_a_traceback_only_if_asked(segment: Iog, iog: Iog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iog.cli.segment.encoded", _fail)
    plain = segment()
    assert plain.exit_code == 1
    assert plain.stderr.count("\n") == 1
    for words in ("iog: internal error", "RuntimeError: a defect", "--debug"):
        assert words in plain.stderr
    debug = segment(IOG_DEBUG="1")
    assert debug.exit_code == 1
    assert "Traceback" in debug.stderr


def _fail_there(*_: Any) -> bytes:
    raise Internal("a defect of the server; its log has the traceback under incident 123")


def test_a_defect_of_the_server_is_not_taken_for_wrong_input(segment: Iog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iog.cli.segment.encoded", _fail_there)
    result = segment()
    assert result.exit_code == 1
    assert result.stderr == "iog: a defect of the server; its log has the traceback under incident 123\n"


def _interrupt(*_: Any) -> bytes:
    raise KeyboardInterrupt


def test_ctrl_c_ends_quietly_with_130(segment: Iog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iog.cli.segment.encoded", _interrupt)
    result = segment()
    assert result.exit_code == 130
    assert result.output.strip() == ""


def test_a_command_whose_extra_is_missing_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_torch.py").write_text("import torch_that_is_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    group = Commands("iog", params=main.params)
    group.add_command(LazyCommand("export", "needs_torch", "Make a bundle.", extra="export"))
    assert "Make a bundle." in CliRunner().invoke(group, ["--help"]).stdout
    result = CliRunner().invoke(group, ["export", "--help"])
    assert_refused(result, "torch_that_is_not_installed", "pip install 'iog-runtime[export]'")


def test_inspect_shows_a_verified_bundle(iog: Iog, split_bundle: Path) -> None:
    shown = iog("inspect", split_bundle).stdout
    for words in ("small-split", "iog-refine resnet18", "encoder.onnx", "128x128", "verified", "proved against torch"):
        assert words in shown
    document = json.loads(iog("inspect", split_bundle, "--json").stdout)
    assert document["manifest"]["name"] == "small-split"
    assert set(document["graph_bytes"]) == {"encoder", "click", "head"}


def test_inspect_refuses_an_altered_bundle(iog: Iog, split_bundle: Path, tmp_path: Path) -> None:
    altered = tmp_path / "altered"
    altered.mkdir()
    for file in split_bundle.iterdir():
        (altered / file.name).write_bytes(file.read_bytes())
    (altered / "head.onnx").write_bytes(b"other")
    assert_refused(iog("inspect", altered), "head.onnx", "sha256")
    assert_refused(iog("inspect", tmp_path), "no model bundle")


def test_inspect_refuses_a_bundle_whose_engines_are_missing(iog: Iog, split_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(split_bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    engine = {"api": "tensorrt", "version": "10.9.0", "gpu": "sm90", "precision": "fp16"}
    graphs = {name: {"file": f"engines/sm90/{name}.engine", "sha256": "0" * 64} for name in manifest["graphs"]}
    manifest["engines"] = [{**engine, "graphs": graphs}]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(iog("inspect", copy), "engines/sm90/encoder.engine", "incomplete")


def test_models_lists_what_is_packaged(iog: Iog) -> None:
    result = iog("models", "--json")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert [row["default"] for row in rows] == [True] + [False] * (len(rows) - 1)
    assert rows[0]["name"] == "default"


@contextmanager
def serving(*args: object, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`iog serve` on a free port: its address, and the process."""
    command = [sys.executable, "-m", "iog.cli", "serve", "--backend", "fake", *map(str, args)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment) as process:
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"serving .* on (127\.0\.0\.1:\d+)$", line):
                    yield found[1], process
                    break
            else:
                pytest.fail(f"no ready line in: {''.join(lines)}")
        finally:
            process.kill()


def test_a_server_answers_segment_and_stops_on_ctrl_c(segment: Iog, iog: Iog, split_bundle: Path) -> None:
    with serving("--model", split_bundle, IOG_SERVE_PORT="0") as (address, process):
        first = segment("--server", address)
        assert first.exit_code == 0, first.output
        assert "features miss" in first.stdout
        remote = Path("mask.png").read_bytes()
        assert "features hit" in segment("--server", address, "--click", "100,60,fg").stdout
        assert segment("--backend", "fake").exit_code == 0
        assert Path("mask.png").read_bytes() == remote
        assert_refused(segment("--server", address, "--model", "nope"), "'nope'", "small-split")
        (model,) = json.loads(iog("models", "--server", address, "--json").stdout)
        assert (model["name"], model["default"]) == ("small-split", True)
        assert "small-split" in iog("models", "--server", address).stdout
        assert_refused(iog("serve", "--backend", "fake", "--model", split_bundle, "--port", address[10:]), address)
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "stopped" in log
    assert "Traceback" not in log


def test_a_server_of_several_models_stops_on_sigterm(
    iog: Iog, segment: Iog, split_bundle: Path, single_bundle: Path
) -> None:
    with serving("--port", 0, "--model", split_bundle, "--model", single_bundle, "--no-reflection") as (
        address,
        process,
    ):
        named = json.loads(iog("models", "--server", address, "--json").stdout)
        assert [(m["name"], m["kind"]) for m in named] == [("small-split", "split"), ("small-single", "single")]
        assert "features none" in segment("--server", address, "--model", "small-single").stdout
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "stopped" in log


def test_serve_refuses_what_it_cannot_serve(iog: Iog, split_bundle: Path) -> None:
    assert_refused(iog("serve", "--model", "nope"), "'nope'")
    assert_refused(iog("serve", "--features-budget", "lots"), "--features-budget", "512MiB")
    assert_refused(iog("serve", "--features-budget", 400 * "9"), "--features-budget", "8 EiB")
    assert_refused(iog("serve", "--tls-key", "photo.png"), "--tls-certificate", "--tls-key")
    for option in ("--grace", "--max-connection-age"):
        for never in ("nan", "inf", "1e300"):
            assert_refused(iog("serve", option, never), option)
    assert_refused(iog("serve", "--max-image-pixels", "200000000"), "--max-image-pixels")
    assert_refused(iog("serve", "--max-image-bytes", "0"), "expected 1 or more")
    twice = ("--model", split_bundle, "--model", split_bundle)
    assert_refused(iog("serve", "--backend", "fake", *twice), "two models", "small-split", "--name")


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("1024", 1024), ("512MiB", 512 << 20), ("1.5 gb", 1_500_000_000), ("2G", 2 * 10**9), ("1Ki", 1024)],
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert byte_count(text) == count


@pytest.mark.parametrize(
    ("count", "text"), [(10, "10 bytes"), (1536, "1.5 KiB"), (1 << 30, "1 GiB"), (2**52, "4,096 TiB")]
)
def test_sizes_are_written_as_people_read_them(count: int, text: str) -> None:
    assert in_bytes(count) == text
