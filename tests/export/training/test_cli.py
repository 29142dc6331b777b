import pytest
import torch
from click.testing import CliRunner
from iog_export.training.cli import train

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture
def folder(shapes):
    root, names = shapes
    (root / "train.txt").write_text("\n".join(names[:6]))
    (root / "val.txt").write_text("\n".join(names[6:]))
    return root


def test_train_writes_a_checkpoint_and_shows_figures_beside_baselines(folder, tmp_path):
    out = tmp_path / "run"
    options = ["--minutes", "0.005", "--size", "128", "--batch", "2", "--width", "8", "--threads", "1"]
    result = CliRunner().invoke(train, [str(folder), "--out", str(out), *options], catch_exceptions=False)
    assert result.exit_code == 0
    for word in ("network", "ellipse", "filled box", "shapes"):
        assert word in result.output
    contents = torch.load(out / "final.pt", weights_only=True)
    assert contents["spec"] == {"backbone": "resnet18", "refine": True, "width": 8, "normalize": True}
    assert contents["crop"]["relax_fraction"] == 0.12
    assert contents["guidance"] == {"size": 128, "fwhm": 2.5}
    assert contents["provenance"]["data"] == {"shapes": 6}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--resume"], "no last.pt to go on from"),
        (["--size", "200"], "200 is no multiple of 64"),
        (["--minutes", "0"], "--minutes"),
    ],
)
def test_wrong_options_are_refused_with_a_reason(folder, tmp_path, options, expected):
    result = CliRunner().invoke(train, [str(folder), "--out", str(tmp_path / "run"), "--minutes", "1", *options])
    assert result.exit_code == 2
    assert expected in result.output


def test_a_started_run_is_not_overwritten(folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_bytes(b"")
    result = CliRunner().invoke(train, [str(folder), "--out", str(tmp_path / "run"), "--minutes", "1"])
    assert result.exit_code == 2
    assert "--resume" in result.output
