"""A small network's geometry, and one thread for its arithmetic."""

from collections.abc import Iterator

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


@pytest.fixture(scope="session")
def geometry() -> Geometry:
    crop = CropSpec(64, relax_pixels=0, relax_fraction=0.12, interpolation="area")
    return Geometry(crop, GuidanceSpec(64, 10 * 64 / 512))
