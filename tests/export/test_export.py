"""`iog export`: a bundle is written if, and only if, its numbers are the checkpoint's."""

import hashlib
import json
import re
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from iog import Box, Point, Predictor, Prompt
from iog.bundle import Bundle
from iog.crop import Crop, CropSpec
from iog.errors import BundleError, InvalidImage
from iog.guidance import GuidanceSpec
from iog.image import Image
from iog_export import verify
from iog_export.checkpoint import CheckpointError
from iog_export.cli import _show, export
from iog_export.networks import IOG, NetworkSpec, randomize
from iog_export.unsplit import unsplit
from iog_export.verify import PHOTOGRAPHS, cases, reference_logits
from rich.console import Console

SMALL = ["--backbone", "resnet18", "--width", "32", "--size", "128"]
CHELSEA = str(PHOTOGRAPHS / "chelsea.jpg")
PROMPT = Prompt(Box(120, 20, 330, 290), Point(220, 120)).with_click(200, 200, True).with_click(140, 40, False)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(export, [*arguments, "--photograph", CHELSEA])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = IOG(NetworkSpec("resnet18", width=32))
    randomize(network, 5)
    path = tmp_path_factory.mktemp("checkpoint") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "small"
    result = run("--checkpoint", str(checkpoint), *SMALL, "--out", str(out))
    assert result.exit_code == 0, result.output
    return out


def test_a_checkpoint_becomes_a_bundle_that_names_its_origin_and_its_proof(checkpoint: Path, exported: Path) -> None:
    manifest = Bundle.open(exported).manifest
    assert manifest.name == "small"
    assert manifest.kind == "split"
    assert manifest.crop.corner_offset == 10
    assert manifest.guidance.fwhm == 10 * 128 / 512
    assert manifest.provenance.checkpoint_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert len(manifest.proof.cases) == 10
    assert 0 < manifest.proof.max_logit_error <= manifest.proof.logit_tolerance
    assert (exported / "CARD.md").read_text().startswith("# small")


def test_the_bundle_computes_what_the_checkpoint_computes(checkpoint: Path, exported: Path) -> None:
    network = IOG(NetworkSpec("resnet18", width=32)).eval()
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    with Predictor.open(exported) as predictor:
        found = predictor.segment(CHELSEA, PROMPT, scores=True)
        expected = reference_logits(network, predictor.bundle, Image.read(CHELSEA), PROMPT)
    assert found.logits is not None
    np.testing.assert_allclose(found.logits, expected, atol=1e-3 * expected.std())


@torch.inference_mode()
def test_the_bundle_can_be_put_together_again(checkpoint: Path, exported: Path) -> None:
    network = IOG(NetworkSpec("resnet18", width=32)).eval()
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    inputs = torch.rand(1, 5, 128, 128, generator=torch.Generator().manual_seed(0)) * 255
    expected = network(inputs).logits
    torch.testing.assert_close(
        unsplit(Bundle.open(exported))(inputs).logits, expected, rtol=0, atol=1e-3 * expected.std()
    )


def test_half_precision_takes_half_the_space_and_nearly_the_same_masks(checkpoint: Path, exported: Path) -> None:
    out = exported.parent / "[half]"
    options = ["--precision", "fp16", "--name", "half", "--out", str(out)]
    result = run("--checkpoint", str(checkpoint), *SMALL, *options)
    assert result.exit_code == 0
    assert f"wrote {out}: " in result.output  # no markup
    assert (out / "encoder.onnx").stat().st_size < 0.55 * (exported / "encoder.onnx").stat().st_size
    with Predictor.open(exported) as full, Predictor.open(out) as half:
        a, b = full.segment(CHELSEA, PROMPT), half.segment(CHELSEA, PROMPT)
        assert half.features.nbytes < 0.6 * full.features.nbytes
    assert np.count_nonzero(a.mask != b.mask) < 0.02 * a.mask.size


def test_a_network_without_the_branch_becomes_a_single_bundle_that_still_takes_corrections(tmp_path: Path) -> None:
    result = run("--network", "iog", "--random-weights", "1", *SMALL, "--out", str(tmp_path / "plain"))
    assert result.exit_code == 0, result.output
    with Predictor.open(tmp_path / "plain") as predictor:
        assert predictor.bundle.manifest.kind == "single"
        first = predictor.segment(CHELSEA, Prompt(PROMPT.box, PROMPT.inside), scores=True)
        second = predictor.segment(CHELSEA, PROMPT, scores=True)
    assert second.cache.features == "none"
    assert first.logits is not None
    assert second.logits is not None
    assert np.abs(first.logits - second.logits).max() > 0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("LOGIT_TOLERANCE", r"graph 'encoder', tensor 'context': off by .*, the tolerance is -1"),
        ("MASK_TOLERANCE", r"chelsea.jpg inner #0: mask off by .*, the tolerance is -1"),
    ],
)
def test_a_failed_proof_writes_nothing_and_says_which_tensor(
    table: str, message: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(getattr(verify, table), "fp32", -1.0)
    out = tmp_path / "bundle"
    result = run("--checkpoint", str(checkpoint), *SMALL, "--out", str(out))
    assert result.exit_code != 0
    assert isinstance(result.exception, verify.ProofFailed)
    assert re.search(message, str(result.exception))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_reported_is_shown_as_it_is(terminal: bool) -> None:
    shown = StringIO()
    console = Console(file=shown, force_terminal=terminal, width=200, highlight=False, _environ={})
    step = "the engines could not be proved here: [/usr/lib/libcuda.so.1] is missing [red]"
    with console.status("loading") as status:
        _show(console, status, step)
    assert step in shown.getvalue()


@pytest.mark.parametrize(("held", "message"), [("thesis.tex", "is no bundle"), ("x", "cannot be written: .*Not a dir")])
def test_a_place_where_nothing_can_be_written_is_refused_before_any_work(
    held: str, message: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iog_export.cli.IOG", None)
    (tmp_path / held).write_text("years of work")
    out = tmp_path / held / "small" if held == "x" else tmp_path
    result = run("--checkpoint", str(checkpoint), *SMALL, "--force", "--name", "small", "--out", str(out))
    assert isinstance(result.exception, BundleError)
    assert re.search(message, str(result.exception))
    assert [path.name for path in tmp_path.iterdir()] == [held]


def test_an_existing_bundle_is_replaced_only_when_asked(checkpoint: Path, exported: Path) -> None:
    before = (exported / "manifest.json").read_bytes()
    result = run("--checkpoint", str(checkpoint), *SMALL, "--out", str(exported))
    assert isinstance(result.exception, BundleError)
    assert "--force" in str(result.exception)
    assert (exported / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --checkpoint FILE or --random-weights SEED"),
        (["--random-weights", "1", "--size", "100"], "100 is no multiple of 32; next ones: 96, 128"),
        (["--random-weights", "1", "--name", "My model"], "'My model'; expected up to 64 of a-z"),
        (["--random-weights", "1", "--width", "33"], "33 is odd"),
        (["--random-weights", "1", "--max-loss", "0.1"], "--max-loss is for --precision int8 and --features uint8"),
        (["--random-weights", "1", "--calibration-objects", "64"], "--calibration-objects is for --calibration DATA"),
        (["--random-weights", "1", "--accuracy-objects", "9"], "--accuracy-objects is for --accuracy DATA"),
        (["--random-weights", "1", "--format", "coco"], "--format is for the folders of --calibration and --accuracy"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run(*arguments, "--out", str(tmp_path / "x"))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "x").exists()


def test_a_card_that_is_no_text_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iog_export.cli.IOG", None)
    (tmp_path / "CARD.md").write_bytes("über".encode("latin-1"))
    result = run("--random-weights", "1", "--card", str(tmp_path / "CARD.md"), "--out", str(tmp_path / "x"))
    assert result.exit_code == 2
    assert "CARD.md is no UTF-8 text" in " ".join(result.output.split())


def test_a_photograph_that_is_none_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iog_export.export.export_graph", None)
    (tmp_path / "notes.txt").write_text("no photograph")
    photograph = ("--photograph", str(tmp_path / "notes.txt"))
    result = run("--random-weights", "1", *SMALL, *photograph, "--out", str(tmp_path / "x"))
    assert isinstance(result.exception, InvalidImage)
    assert "notes.txt: 13 bytes" in str(result.exception)


@pytest.mark.parametrize("crop", [Bundle.open().crop, CropSpec(512, 30, 0.0, corner_offset=10)], ids=["default", "IOG"])
def test_clicks_of_the_proof_reach_over_the_border_of_the_crop(crop: CropSpec) -> None:
    guidance = GuidanceSpec(crop.size, 10 * crop.size / 512)
    nearest = []
    for case in cases(sorted(PHOTOGRAPHS.glob("*.jpg")), crop):
        for prompt in case.prompts:
            cut = Crop.around(prompt.within(case.image.size).box, crop)
            points = cut.to_network([(c.x, c.y) for c in prompt.clicks]) if prompt.clicks else np.empty((0, 2))
            nearest += np.minimum(points, crop.size - 1 - points).min(axis=1, initial=crop.size).tolist()
    assert min(nearest) < guidance.reach
    assert max(nearest) > guidance.reach


@pytest.mark.parametrize(
    "settings",
    [
        {"spec": {"backbone": "vgg"}},
        {"spec": {"of_a_later_version": 1}},
        {"crop": {"relax_fraction": float("nan")}},
        {"crop": ["size", 64]},
        {"guidance": {"fwhm": 0.0, "size": 0}},
        {"threshold": 7},
    ],
    ids=str,
)
def test_unusable_settings_in_a_checkpoint_are_refused_before_any_work(
    settings: dict[str, object], checkpoint: Path, tmp_path: Path
) -> None:
    weights = torch.load(checkpoint, weights_only=True)
    noted = {"state_dict": weights, "spec": {"backbone": "resnet18", "width": 32}, **settings}
    torch.save(noted, tmp_path / "noted.pt")
    result = run("--checkpoint", str(tmp_path / "noted.pt"), "--out", str(tmp_path / "x"))
    assert isinstance(result.exception, CheckpointError)
    assert "noted.pt has settings of its own, which are not usable" in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "x").exists()


def test_the_manifest_is_json_that_anybody_can_read(exported: Path) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    assert set(manifest["graphs"]) == {"encoder", "click", "head"}
    for graph in manifest["graphs"].values():
        assert hashlib.sha256((exported / graph["file"]).read_bytes()).hexdigest() == graph["sha256"]
