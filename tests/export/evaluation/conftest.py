"""Photographs of two sets with masks, and objects whose masks a test writes down."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from iog.arrays import BoolArray
from iog_export.datasets import DataSet, Photograph, Target
from iog_export.datasets.folders import Folders
from iog_export.datasets.labelmap import LabelMap
from iog_export.evaluation.records import Settings


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A data folder: three photographs of discs, two of bars, 128x96, bright on dark ground, on the list val.txt."""
    root = tmp_path / "album"
    rng = np.random.default_rng(5)
    names = ["discs/0", "discs/1", "discs/2", "bars/0", "bars/1"]
    for name in names:
        collection, stem = name.split("/")
        labels = np.zeros((96, 128), np.uint8)
        for label, x in ((1, 35), (7, 90)):
            if collection == "discs":
                cv2.circle(labels, (x, int(rng.integers(35, 60))), int(rng.integers(14, 22)), (label,), -1)
            else:
                cv2.line(labels, (x - 18, 20), (x + 18, int(rng.integers(50, 80))), (label,), 7)
        image = rng.integers(0, 60, (96, 128, 3)) + (labels > 0)[:, :, None] * np.array([60, 120, 170])
        for folder, suffix, content in (("images", "jpg", image), ("masks", "png", labels)):
            path = root / collection / folder / f"{stem}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), content.astype(np.uint8))
    (root / "val.txt").write_text("\n".join(names))
    return root


@pytest.fixture
def data(album: Path) -> DataSet:
    """The album's objects."""
    return DataSet.open(Folders.open(album, "val"))


@pytest.fixture
def target() -> Callable[[BoolArray], Target]:
    """Makes an object of its mask, in a photograph of noise."""

    def make(mask: BoolArray, void: BoolArray | None = None) -> Target:
        labels = mask.astype(np.uint8)
        if void is not None:
            labels[void] = 255
        pixels = np.random.default_rng(1).integers(0, 255, (*mask.shape, 3)).astype(np.uint8)
        photograph = Photograph("set/photo", pixels, LabelMap(labels))
        return Target(photograph.labels.items(photograph.name)[0], photograph)

    return make


@pytest.fixture
def settings() -> Callable[..., Settings]:
    """Settings, with changes."""

    def make(**changes: object) -> Settings:
        values = {
            "bundle": "small 123456789abc",
            "backend": "fake",
            "device": "cpu",
            "looseness": 0.05,
            "inside_radius": 0.0,
            "clicks": 20,
            "seed": 0,
            "baselines": False,
            "sweep": False,
            "objects": "10 of digest 123456789abc",
        }
        return Settings.model_validate(values | changes)

    return make
