import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pycocotools.mask
import pytest
from click.testing import CliRunner
from iog.cli import main


@pytest.fixture
def evaluate(album, split_bundle, tmp_path, monkeypatch):
    """Runs `iog evaluate` on the album; writes into out/."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        given = ["evaluate", split_bundle, album, "--out", "out", *args]
        return CliRunner().invoke(main, [str(a) for a in given], prog_name="iog")

    return run


RESULTS = Path("out/results.jsonl")


def lines(path=RESULTS):
    return [json.loads(line) for line in path.read_text().splitlines()]


def report():
    return json.loads(Path("out/report.json").read_text())


def test_report_has_all_sets_segmenters_and_figures(evaluate):
    result = evaluate("--sweep", "--clicks", 9)
    assert result.exit_code == 0, result.output
    document = report()
    assert list(document["figures"]["set"]) == ["all", "bars", "discs"]
    assert list(document["figures"]["set"]["all"]) == ["model", "GrabCut", "ellipse", "filled box"]
    model, grabcut = document["figures"]["set"]["all"]["model"], document["figures"]["set"]["all"]["GrabCut"]
    assert (model["objects"], model["failed"]) == (10, 0)
    assert list(model["iou"]) == list(model["boundary_iou"]) == list(model["below_half"]) == ["3", "4", "5", "8"]
    assert list(model["clicks_to"]) == ["0.85", "0.9"]
    assert list(grabcut["iou"]) == ["3", "4", "5"]
    assert grabcut["iou"]["3"] > 0.8
    assert sum(f["model"]["objects"] for f in document["figures"]["size"].values()) == 10
    assert sum(f["model"]["objects"] for f in document["figures"]["fill"].values()) == 10
    assert document["setbacks"].keys() == document["figures"]["set"].keys()
    assert len(document["sweep"]["discs"]) == 6
    assert document["sweep"]["all"]["box 5 % loose"] == pytest.approx(model["iou"]["3"])
    assert document["data"]["objects"] == 10
    assert lines()[0]["settings"]["bundle"] == f"small-split {document['model']['digest'][:12]}"
    text = Path("out/report.md").read_text()
    for row in (
        "| all | 10 | model |",
        "|  |  | GrabCut |",
        "| discs | 6 | model |",
        "| 32x32 to 96x96 px |",
        "box 20 % loose",
    ):
        assert row in text
    for picture in ("iou_over_clicks.png", "gallery_discs.jpg", "gallery_bars.jpg"):
        assert np.asarray(PIL.Image.open(f"out/{picture}")).std() > 10
    assert len(lines()) == 11


def test_sweep_is_shown_in_points_against_boxes_five_percent_loose(evaluate):
    evaluate("--sweep", "--no-baselines", "--clicks", 3, "--looseness", 0.2)
    sweep = report()["sweep"]["discs"]
    assert sweep["box 20 % loose"] == pytest.approx(report()["figures"]["set"]["discs"]["model"]["iou"]["3"])
    rows = [line.strip("| ").split(" | ") for line in Path("out/report.md").read_text().splitlines()]
    header = next(row for row in rows if row[:2] == ["set", "box 5 % loose"])
    discs = dict(zip(header, [row for row in rows if row[0] == "discs"][-1], strict=True))
    assert discs["box 5 % loose"] == f"{sweep['box 5 % loose']:.3f}"
    for condition in ("box 0 % loose", "box 20 % loose", "inside point moved by 30"):
        assert float(discs[condition]) == pytest.approx(100 * (sweep[condition] - sweep["box 5 % loose"]), abs=0.06)


def test_coco_is_measured_as_the_same_masks_in_folders_are(evaluate, album, split_bundle):
    evaluate("--no-baselines", "--clicks", 4)
    by_folders = {(line["area"], *line["tracks"]["model"]["ious"]) for line in lines()[1:]}
    given = ["evaluate", split_bundle, coco_of(album), "--out", "coco", "--no-baselines", "--clicks", 4]
    result = CliRunner().invoke(main, [str(a) for a in given], prog_name="iog")
    assert result.exit_code == 0, result.output
    assert "skipped mine/bars/0.jpg annotation 99: no pixels" in result.stderr
    by_coco = {(line["area"], *line["tracks"]["model"]["ious"]) for line in lines(Path("coco/results.jsonl"))[1:]}
    assert by_coco == by_folders
    assert list(json.loads(Path("coco/report.json").read_text())["data"]["skipped"]) == [
        "mine/bars/0.jpg annotation 99"
    ]


def coco_of(album):
    """The album as COCO instances, with an annotation of nothing."""
    images, annotations = [], [{"id": 99, "image_id": "bars/0", "segmentation": {"size": [96, 128], "counts": [12288]}}]
    for name in (album / "val.txt").read_text().split():
        images.append({"id": name, "file_name": f"{name}.jpg", "height": 96, "width": 128})
        collection, stem = name.split("/")
        (album / "coco" / collection).mkdir(parents=True, exist_ok=True)
        (album / collection / "images" / f"{stem}.jpg").rename(album / "coco" / f"{name}.jpg")
        labels = np.asarray(PIL.Image.open(album / collection / "masks" / f"{stem}.png"))
        for number in (1, 7):
            rle = pycocotools.mask.encode(np.asfortranarray((labels == number).astype(np.uint8)))
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            annotations.append({"id": len(annotations), "image_id": name, "segmentation": segmentation})
    (album / "coco" / "instances_mine.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return album / "coco"


def test_an_image_that_cannot_be_decoded_is_a_failure(evaluate, album):
    image = album / "discs" / "images" / "1.jpg"
    image.write_bytes(image.read_bytes()[:-300])
    result = evaluate("--no-baselines", "--clicks", 3)
    assert result.exit_code == 0
    assert "failed discs/1 object 1, model: " in result.stderr
    model = report()["figures"]["set"]["discs"]["model"]
    assert (model["objects"], model["failed"]) == (4, 2)
    assert "truncated" in report()["failures"][0]["error"]


def test_figures_are_the_means_of_the_lines(evaluate):
    evaluate("--no-baselines", "--clicks", 5, "--backend", "fake")
    ious = [line["tracks"]["model"]["ious"] for line in lines()[1:]]
    figures = report()["figures"]["set"]["all"]
    assert list(figures) == ["model"]
    assert [figures["model"]["iou"][n] for n in "345"] == pytest.approx(np.mean(ious, axis=0).tolist())


def test_the_same_command_goes_on(evaluate):
    evaluate("--no-baselines", "--clicks", 3)
    complete = RESULTS.read_text().splitlines(keepends=True)
    document = report()
    RESULTS.write_text("".join(complete[:5]))
    result = evaluate("--no-baselines", "--clicks", 3)
    assert "4 of 10 objects are in out/results.jsonl already" in result.stderr
    assert RESULTS.read_text().splitlines(keepends=True) == complete
    assert report() == document


def test_other_settings_are_refused_in_one_line(evaluate):
    evaluate("--no-baselines", "--clicks", 3)
    result = evaluate("--no-baselines", "--clicks", 4, "--objects", 5)
    assert result.exit_code == 2
    assert "clicks 3 (now 4), objects 10 of digest" in result.stderr
    assert result.stderr.count("\n") == 1


def test_failures_are_named_and_tried_again(evaluate, split_bundle, monkeypatch):
    from iog.predictor import Predictor

    segment = Predictor.segment
    calls = []

    def failing(self, image, prompt):
        calls.append(prompt)
        if len(calls) == 1:
            raise MemoryError("no room [for it]")
        return segment(self, image, prompt)

    monkeypatch.setattr(Predictor, "segment", failing)
    result = evaluate("--no-baselines", "--clicks", 3)
    assert result.exit_code == 0
    assert "failed discs/0 object 1, model: MemoryError: no room [for it]" in result.stderr
    document = report()
    assert document["failures"] == [
        {"name": "discs/0", "id": 1, "segmenter": "model", "error": "MemoryError: no room [for it]"}
    ]
    assert document["figures"]["set"]["discs"]["model"]["failed"] == 1
    assert "## Failures: 1" in Path("out/report.md").read_text()
    evaluate("--no-baselines", "--clicks", 3)
    assert report()["failures"] == []


def test_a_model_that_always_fails_is_no_success(evaluate, monkeypatch):
    from iog.predictor import Predictor

    def failing(self, image, prompt):
        raise RuntimeError("broken")

    monkeypatch.setattr(Predictor, "segment", failing)
    assert evaluate("--no-baselines", "--clicks", 3).exit_code == 1


def test_unusable_photographs_are_named(evaluate, album):
    (album / "bars" / "masks" / "0.png").unlink()
    result = evaluate("--no-baselines", "--clicks", 3)
    assert result.exit_code == 0
    assert "skipped bars/0: " in result.stderr
    assert list(report()["data"]["skipped"]) == ["bars/0"]
    assert "## Photographs and objects skipped: 1" in Path("out/report.md").read_text()


def test_small_objects_of_coco_are_left_out_and_counted(evaluate, album):
    (album / "discs").rename(album / "coco")
    (album / "val.txt").write_text((album / "val.txt").read_text().replace("discs", "coco"))
    result = evaluate("--no-baselines", "--clicks", 3)
    assert result.exit_code == 0
    assert "6 objects of coco have under 64x64 pixels and do not count" in result.stderr
    assert (report()["data"]["objects"], report()["data"]["uncounted"]) == (4, 6)
    assert "objects too small to count: 6." in Path("out/report.md").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--list", "absent.txt"], ["absent.txt", "No such file"]),
        (["--format", "voc"], ["ImageSets/Segmentation/val.txt", "No such file"]),
        (["--min-area", "99999"], ["no object of at least 99999 pixels"]),
        (["--clicks", "2"], ["2 is not in the range"]),
    ],
)
def test_wrong_input_is_one_line(evaluate, args, words):
    result = evaluate(*args)
    assert result.exit_code == 2
    assert result.stderr.startswith("iog: ")
    assert result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words)
    assert not os.path.exists("out")


def test_interrupted_evaluation_keeps_what_was_measured(album, split_bundle, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "iog.cli", "evaluate", split_bundle, album, "--out", out]
    command += ["--workers", 2, "--clicks", 100]  # more than can be done before the signal comes
    with subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        results = out / "results.jsonl"
        while not results.exists() or len(results.read_bytes().splitlines()) < 3:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "of 10 objects; the same command goes on" in stderr
    assert "Traceback" not in stderr
    assert 3 <= len(lines(results)) < 11
