import cv2
import numpy as np
import PIL.Image
import pytest
from iog_export.datasets import DataError, DataSet, Item
from iog_export.datasets.folders import Folders


def spoil_mask(root, name, mask):
    cv2.imwrite(str(root / "shapes" / "masks" / f"{name}.png"), mask)


def test_objects_carry_their_bounds_area_and_fill(shapes):
    root, names = shapes
    labels = np.zeros((96, 128), np.uint8)
    labels[10:30, 20:60] = 3
    labels[10:20, 20:40] = 0
    labels[50:60, 5:15] = 9
    labels[80:, :] = 255
    spoil_mask(root, "0", labels)
    small, large = sorted(DataSet.open(Folders(root, names[:1])), key=lambda target: target.item.area)
    assert small.item == Item("shapes/0", 9, (5, 50, 10, 10), 100)
    assert large.item == Item("shapes/0", 3, (20, 10, 40, 20), 600)
    assert (small.item.fill, large.item.fill, large.item.collection) == (1.0, 0.75, "shapes")
    assert large.mask.sum() == 600
    assert large.known.sum() == 80 * 128


def test_small_objects_are_left_out(shapes):
    root, names = shapes
    labels = np.zeros((96, 128), np.uint8)
    labels[10:30, 20:60], labels[50:60, 5:15] = 3, 9
    spoil_mask(root, "0", labels)
    assert [item.id for item in DataSet.open(Folders(root, names[:1]), min_area=200).items] == [3]


def test_second_annotation_shares_the_image(shapes):
    root, _ = shapes
    labels = np.zeros((96, 128), np.uint8)
    labels[10:30, 20:60] = 1
    spoil_mask(root, "0-2", labels)
    first, second = DataSet.open(Folders(root, ["shapes/0", "shapes/0-2"]))
    assert (first.photograph.pixels == second.photograph.pixels).all()
    assert second.item.bounds == (20, 10, 40, 20)


def test_unusable_photographs_are_named_counted_and_skipped(shapes):
    root, names = shapes
    spoil_mask(root, "0", np.ones((50, 60), np.uint8))
    spoil_mask(root, "1", np.full((96, 128), 255, np.uint8))
    (root / "shapes" / "images" / "2.jpg").write_bytes(b"no image")
    (root / "shapes" / "masks" / "3.png").unlink()
    data = DataSet.open(Folders(root, [*names, "nonsense"]))
    assert set(data.skipped) == {"shapes/0", "shapes/1", "shapes/2", "shapes/3", "nonsense"}
    assert "128x96" in data.skipped["shapes/0"]
    assert "60x50" in data.skipped["shapes/0"]
    assert "its only label, 255, means ignored; objects have 1..254" in data.skipped["shapes/1"]
    assert "2.jpg cannot be read" in data.skipped["shapes/2"]
    assert "3.png: No such file" in data.skipped["shapes/3"]
    assert "<set>/NAME" in data.skipped["nonsense"]
    assert {item.name for item in data.items} == set(names[4:])


def test_no_usable_photograph_is_an_error(shapes):
    with pytest.raises(
        DataError, match=r"no object .* in 1 listed photographs; 1 .* unusable; shapes/absent: .*No such"
    ):
        DataSet.open(Folders(shapes[0], ["shapes/absent"]))


def test_masks_with_a_palette_are_read_by_index(shapes):
    root, names = shapes
    labels = np.zeros((96, 128), np.uint8)
    labels[10:30, 20:60] = 5
    picture = PIL.Image.fromarray(labels, "P")
    picture.putpalette([0, 0, 0, 128, 0, 0] * 128)
    picture.save(root / "shapes" / "masks" / "0.png")
    assert [item.id for item in DataSet.open(Folders(root, names[:1])).items] == [5]


@pytest.mark.parametrize("dtype", [np.uint16, bool])
def test_masks_of_other_depths_are_refused(shapes, dtype):
    root, names = shapes
    PIL.Image.fromarray(np.ones((96, 128), dtype)).save(root / "shapes" / "masks" / "0.png")
    assert "expected one 8-bit channel" in DataSet.open(Folders(root, names)).skipped["shapes/0"]


def test_truncated_masks_are_named(shapes):
    root, names = shapes
    path = root / "shapes" / "masks" / "0.png"
    path.write_bytes(path.read_bytes()[:-60])
    assert "0.png cannot be read as an image" in DataSet.open(Folders(root, names)).skipped["shapes/0"]


def test_the_list_is_the_splits_unless_another_is_given(shapes):
    root, names = shapes
    (root / "train.txt").write_text("\n".join(names[:3]))
    (root / "mine.txt").write_text(names[5])
    assert Folders.open(root, "train").names == names[:3]
    assert Folders.open(root, "train", root / "mine.txt").names == [names[5]]
