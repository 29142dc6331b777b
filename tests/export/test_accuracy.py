"""Mean IoU counts the objects that were measured."""

from pathlib import Path

import numpy as np
import pytest
from iog.arrays import BoolArray, UInt8Array
from iog.prompt import Prompt
from iog_export.accuracy import MeanIoU, mean_ious, open_objects
from iog_export.datasets import DataError, DataSet
from iog_export.datasets.folders import Folders


def everything(pixels: UInt8Array, prompt: Prompt) -> BoolArray:
    return np.ones(pixels.shape[:2], bool)


def spoil(root: Path, *numbers: int) -> None:
    """Break images behind their headers."""
    for number in numbers:
        image = root / "shapes" / "images" / f"{number}.jpg"
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])


def test_objects_of_photographs_that_cannot_be_decoded_do_not_count(shapes: tuple[Path, list[str]]) -> None:
    root, names = shapes
    data, other = (DataSet.open(Folders(root, names)) for _ in range(2))
    spoil(root, 2, 5)
    found = mean_ious(everything, data)
    assert found.objects == 6
    assert found == mean_ious(everything, data.only(item for item in data.items if item.name[-1] not in "25"))
    spoil(root, 0, 1, 3, 4, 6, 7)
    with pytest.raises(DataError, match=r"none of 8 objects is in a photograph that can be decoded; .*\.jpg: "):
        mean_ious(everything, other)


def test_only_objects_that_can_be_measured_are_opened(shapes: tuple[Path, list[str]]) -> None:
    root, names = shapes
    warnings: list[str] = []
    spoil(root, 2)
    assert len(open_objects(Folders(root, names), None, warnings.append)) == 7
    assert warnings[0].startswith("skipped shapes/2: ")
    spoil(root, 0, 1, 3, 4, 5, 6, 7)
    with pytest.raises(DataError, match="none of 8 objects"):
        open_objects(Folders(root, names), None)


def test_the_loss_is_that_after_the_clicks_that_suffer_most() -> None:
    assert MeanIoU(9, {3: 0.7, 5: 0.8}).lost_by(MeanIoU(9, {3: 0.69, 5: 0.75})) == pytest.approx(0.05)
