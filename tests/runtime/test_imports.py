"""What an import brings with it, in fresh interpreters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ALL_MODULES = """
import importlib, pkgutil, sys, iog
names = [m.name for m in pkgutil.walk_packages(iog.__path__, "iog.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
assert "iog.predictor" in names and "iog.backends.ort" in names, names
"""


def loaded_by(code: str) -> set[str]:
    code += "\nprint(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_iog_is_light() -> None:
    loaded = loaded_by("import sys, iog; iog.Prompt(iog.Box(0, 0, 9, 9), iog.Point(5, 5))")
    assert loaded.isdisjoint({"torch", "grpc", "onnxruntime", "cv2", "numpy", "pydantic"})


def test_no_module_of_the_runtime_loads_torch_or_an_engine() -> None:
    loaded = loaded_by(ALL_MODULES)
    assert loaded.isdisjoint({"torch", "onnx", "onnxruntime", "iog_export"})


@pytest.mark.parametrize("name", ["Client", "Image", "Predictor", "Segmentation", "Prompt", "IogError"])
def test_public_names_are_found_when_they_are_used(name: str) -> None:
    loaded_by(f"import sys; from iog import {name}; assert {name}.__name__ == {name!r}")


def test_an_unknown_name_is_an_attribute_error() -> None:
    import iog

    with pytest.raises(AttributeError, match="has no attribute 'Predicter'"):
        _ = iog.Predicter


def test_nothing_is_told_to_the_makers_of_onnx_runtime(tmp_path: Path, split_bundle: Path) -> None:
    code = f"from iog import Predictor; Predictor.open({str(split_bundle)!r}).close()"
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    assert not list(tmp_path.rglob("*"))
