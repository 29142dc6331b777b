import cv2
import numpy as np
import pytest
from iog_export.training.data import DataError, DataSet, read_list


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
    small, large = sorted(DataSet.read(root, names[:1]).targets, key=lambda t: t.area)
    assert (small.id, small.bounds, small.area, small.fill) == (9, (5, 50, 10, 10), 100, 1.0)
    assert (large.id, large.bounds, large.area, large.fill) == (3, (20, 10, 40, 20), 600, 0.75)
    assert large.mask.sum() == 600
    assert large.known.sum() == 80 * 128
    assert large.photograph.collection == "shapes"


def test_small_objects_are_left_out(shapes):
    root, names = shapes
    labels = np.zeros((96, 128), np.uint8)
    labels[10:30, 20:60], labels[50:60, 5:15] = 3, 9
    spoil_mask(root, "0", labels)
    assert [t.id for t in DataSet.read(root, names[:1], min_area=200).targets] == [3]


def test_second_annotation_shares_the_image(shapes):
    root, _ = shapes
    labels = np.zeros((96, 128), np.uint8)
    labels[10:30, 20:60] = 1
    spoil_mask(root, "0-2", labels)
    first, second = DataSet.read(root, ["shapes/0", "shapes/0-2"]).targets
    assert (first.photograph.pixels == second.photograph.pixels).all()
    assert second.bounds == (20, 10, 40, 20)


def test_unusable_photographs_are_named_counted_and_skipped(shapes, caplog):
    root, names = shapes
    spoil_mask(root, "0", np.ones((50, 60), np.uint8))
    spoil_mask(root, "1", np.full((96, 128), 255, np.uint8))
    (root / "shapes" / "images" / "2.jpg").write_bytes(b"no image")
    (root / "shapes" / "masks" / "3.png").unlink()
    data = DataSet.read(root, [*names, "nonsense"])
    assert set(data.skipped) == {"shapes/0", "shapes/1", "shapes/2", "shapes/3", "nonsense"}
    assert "128x96" in data.skipped["shapes/0"]
    assert "60x50" in data.skipped["shapes/0"]
    assert "no object" in data.skipped["shapes/1"]
    assert "2.jpg cannot be read" in data.skipped["shapes/2"]
    assert "3.png: No such file" in data.skipped["shapes/3"]
    assert "<set>/NAME" in data.skipped["nonsense"]
    assert f"5 of {len(names) + 1} photographs skipped" in caplog.text
    assert {t.photograph.name for t in data.targets} == set(names[4:])


def test_no_usable_photograph_is_an_error(shapes):
    with pytest.raises(DataError, match="no usable object in 1 listed"):
        DataSet.read(shapes[0], ["shapes/absent"])


def test_list_file_leaves_out_blank_lines_and_comments(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("# first\nshapes/0\n\n shapes/1 \n")
    assert read_list(path) == ["shapes/0", "shapes/1"]


@pytest.mark.parametrize("content", [None, "\n"])
def test_missing_or_empty_list_file_is_an_error(tmp_path, content):
    path = tmp_path / "train.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match="one <set>/NAME per line"):
        read_list(path)
