import runpy
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from iog_export.datasets import DataSet
from iog_export.datasets.folders import Folders
from iog_export.networks import IOG, NetworkSpec

GOLDEN = Path(__file__).parents[1] / "golden"
fill = runpy.run_path(str(GOLDEN / "weights.py"))["fill"]


@pytest.fixture(scope="session")
def filled() -> Callable[..., IOG]:
    """Networks with weights and batch norm statistics as of training, the same ones every time."""

    def make(spec: NetworkSpec, *, seed: int = 7, dtype: torch.dtype = torch.float64) -> IOG:
        network = IOG(spec)
        values = fill({key: tuple(value.shape) for key, value in network.state_dict().items()}, seed)
        network.load_state_dict({key: torch.from_numpy(value) for key, value in values.items()})
        return network.to(dtype).eval()

    return make


@pytest.fixture
def shapes(tmp_path: Path) -> tuple[Path, list[str]]:
    """A data folder and eight names in it, photographs of one bright ellipse each, 128x96."""
    rng = np.random.default_rng(5)
    for folder in ("images", "masks"):
        (tmp_path / "shapes" / folder).mkdir(parents=True)
    for i in range(8):
        mask = np.zeros((96, 128), np.uint8)
        centre = int(rng.integers(45, 83)), int(rng.integers(40, 56))
        axes = int(rng.integers(18, 40)), int(rng.integers(12, 30))
        cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, (1,), -1)
        image = rng.integers(0, 90, (96, 128, 3)).astype(np.uint8) + mask[:, :, None] * np.uint8(140)
        cv2.imwrite(str(tmp_path / "shapes" / "images" / f"{i}.jpg"), cv2.blur(image, (3, 3)))
        cv2.imwrite(str(tmp_path / "shapes" / "masks" / f"{i}.png"), mask)
    return tmp_path, [f"shapes/{i}" for i in range(8)]


@pytest.fixture
def shapes_data(shapes: tuple[Path, list[str]]) -> DataSet:
    """These photographs, in memory."""
    root, names = shapes
    return DataSet.open(Folders(root, names), keep=1 << 30)
