import cv2
import numpy as np
import pytest
from iog.arrays import UInt8Array


@pytest.fixture
def pixels() -> UInt8Array:
    """Of a photograph, 80x60."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 3), np.uint8)
