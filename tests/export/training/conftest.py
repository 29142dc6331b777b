"""Photographs of one bright ellipse each, in the layout that training reads."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from iog.crop import CropSpec
from iog.guidance import GuidanceSpec
from iog_export.training.samples import Geometry


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks gain nothing from a second thread, and on a busy machine wait for it."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture
def shapes(tmp_path: Path) -> tuple[Path, list[str]]:
    """The data folder and eight names in it; images are 128x96."""
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


@pytest.fixture(scope="session")
def geometry() -> Geometry:
    crop = CropSpec(64, relax_pixels=0, relax_fraction=0.12, interpolation="area")
    return Geometry(crop, GuidanceSpec(64, 10 * 64 / 512))
