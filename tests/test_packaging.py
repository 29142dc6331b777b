"""What users install: a small wheel that runs without torch."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USE = """
import importlib.util, sys
import iog
assert not {"torch", "grpc", "onnxruntime"} & set(sys.modules), sorted(sys.modules)
for name in ("torch", "onnx", "onnxscript", "tensorboard"):
    assert importlib.util.find_spec(name) is None, f"{name} was installed"
result = iog.Predictor.open().segment(sys.argv[1], iog.Prompt(iog.Box(130, 15, 330, 290), iog.Point(220, 120)))
assert result.area > 1000, result.area
print("mask of", result.area, "pixels")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)], check=True)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_is_small_and_holds_model_stubs_and_types(wheel: Path) -> None:
    assert wheel.stat().st_size < 45e6
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "iog/py.typed",
        "iog/models/default/manifest.json",
        "iog/models/default/encoder.onnx",
        "iog/v1/segmentation_pb2.pyi",
        "iog_export/networks/iog.py",
        "iog_export/photographs/chelsea.jpg",
    } <= names
    assert not [n for n in names if n.startswith(("tests/", "runtime/", "examples/"))]


def test_a_clean_environment_gets_masks_and_no_torch(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{wheel}[cpu]"], check=True)
    photograph = ROOT / "export" / "iog_export" / "photographs" / "chelsea.jpg"
    done = subprocess.run([python, "-c", USE, str(photograph)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mask of")
