import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from iog.arrays import BoolArray, UInt8Array
from iog.prompt import Size
from iog_export.datasets import DataError, DataSet
from iog_export.datasets.coco import Coco, _compressed, _runs
from pycocotools import mask as coco

SHAPE = (60, 80)


def rectangle(x0: int, y0: int, x1: int, y1: int) -> BoolArray:
    """Pixels x0..x1-1 and y0..y1-1 of SHAPE."""
    mask = np.zeros(SHAPE, np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def polygon(x0: int, y0: int, x1: int, y1: int) -> list[float]:
    """The same pixels as `rectangle`."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def runs(mask: BoolArray) -> dict[str, object]:
    """As COCO writes crowds."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, mask.size]).tolist()}


def compressed(mask: BoolArray) -> dict[str, object]:
    """As other tools write objects."""
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.fixture
def write_coco(tmp_path: Path, pixels: UInt8Array) -> Callable[..., Path]:
    """Writes a data folder with an `instances_val.json` of these annotations, on image 1 unless they say 2."""

    def write(*annotations: dict[str, object]) -> Path:
        (tmp_path / "images").mkdir(exist_ok=True)
        images = []
        for id in (1, 2):
            cv2.imwrite(str(tmp_path / "images" / f"{id}.png"), pixels)
            images.append({"id": id, "file_name": f"{id}.png", "height": SHAPE[0], "width": SHAPE[1]})
        annotations = tuple({"image_id": 1, "iscrowd": 0} | annotation for annotation in annotations)
        contents = {"images": images, "annotations": annotations}
        (tmp_path / "instances_val.json").write_text(json.dumps(contents))
        return tmp_path

    return write


BOX, CORNER = (10, 20, 30, 50), (20, 40, 60, 55)  # they overlap


def opened(root, **options):
    return DataSet.open(Coco.open(root, "val"), **options)


def test_polygons_and_both_kinds_of_run_lengths_are_the_same_mask(write_coco):
    forms = [[polygon(*BOX)], runs(rectangle(*BOX)), compressed(rectangle(*BOX))]
    data = opened(write_coco(*({"id": i, "segmentation": form} for i, form in enumerate(forms))))
    assert len(data) == 3
    for target in data:
        assert (target.mask == rectangle(*BOX)).all()
        assert (target.item.bounds, target.item.area, target.item.fill) == ((10, 20, 20, 30), 600, 1.0)
        assert target.known.all()


def test_parts_are_one_object(write_coco):
    data = opened(write_coco({"id": 7, "segmentation": [polygon(0, 0, 5, 5), polygon(70, 50, 80, 60)]}))
    (item,) = data.items
    assert (item.name, item.id, item.bounds, item.area) == ("val/1.png", 7, (0, 0, 80, 60), 125)


def test_overlapping_objects_are_whole_each(write_coco):
    data = opened(write_coco({"id": 1, "segmentation": [polygon(*BOX)]}, {"id": 2, "segmentation": [polygon(*CORNER)]}))
    assert [t.mask.sum() for t in data] == [600, 600]
    assert (data[0].mask & data[1].mask).sum() == 100


def test_crowds_are_void_but_where_the_object_lies(write_coco):
    crowd = rectangle(25, 0, 80, 60)
    root = write_coco({"id": 1, "segmentation": [polygon(*BOX)]}, {"id": 2, "segmentation": runs(crowd), "iscrowd": 1})
    (target,) = opened(root)
    assert (target.known == (~crowd | rectangle(*BOX))).all()


def test_photographs_without_annotations_are_left_out(write_coco):
    data = opened(write_coco({"id": 1, "segmentation": [polygon(*BOX)]}))
    assert {item.name for item in data.items} == {"val/1.png"}
    assert data.skipped == {}


def test_annotations_of_an_id_that_two_photographs_have_are_left_out(write_coco):
    root = write_coco(GOOD, {"id": 2, "image_id": 2, "segmentation": [polygon(*BOX)]})
    document = json.loads((root / "instances_val.json").read_text())
    first = document["images"][0]
    document["images"] += [first, {**first, "file_name": "3.png"}, {**first, "height": 61}]
    (root / "instances_val.json").write_text(json.dumps(document))
    data = opened(root)
    assert [item.name for item in data.items] == ["val/2.png"]
    assert data.skipped == {
        "val images[3]": "val/3.png has the id of val/1.png: nobody knows whose its annotations are",
        "val images[4]": "val/1.png is 80x61 here and 80x60 before",
        "val annotations[0]": "image_id 1 is not among the usable images",
    }


def test_small_objects_are_left_out(write_coco):
    root = write_coco({"id": 1, "segmentation": [polygon(*BOX)]}, {"id": 2, "segmentation": [polygon(0, 0, 9, 9)]})
    assert [item.id for item in opened(root, min_area=82).items] == [1]


GOOD = {"id": 1, "segmentation": [polygon(*BOX)]}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"segmentation": [[1, 2, 3, 4]]}, "no list x1, y1"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "no list x1, y1"),
        ({"segmentation": [["a"] * 6]}, "no list x1, y1"),
        ({"segmentation": [[10**400] * 6]}, "no list x1, y1"),
        ({"segmentation": [[0, 0, 1e9, 0, 1e9, 1e9]]}, "far outside the image of 80x60"),
        ({"segmentation": [[0, 0, float("nan"), 0, 9, 9]]}, "far outside"),
        ({"segmentation": [[5, 5, 5, 5, 5, 5]]}, "no pixels"),
        ({"segmentation": []}, "no polygon"),
        ({"segmentation": "somewhere"}, "neither polygons nor run lengths"),
        ({"segmentation": {"size": [60, 80]}}, "neither polygons nor run lengths"),
        ({"segmentation": {"size": [80, 60], "counts": [4800]}}, r"size \[80, 60\] in an image of \[60, 80\]"),
        ({"segmentation": {"size": [60, 80], "counts": [100, 20]}}, "120 pixels in an image of 4800"),
        ({"segmentation": {"size": [60, 80], "counts": [4801, -1]}}, "broken run lengths"),
        ({"segmentation": {"size": [60, 80], "counts": [0, 4000, 4000]}}, "8000 pixels"),
        ({"segmentation": {"size": [60, 80], "counts": "5"}}, "5 pixels in an image of 4800"),
        ({"segmentation": {"size": [60, 80], "counts": "\x7f~ü"}}, "broken run lengths"),
        ({"segmentation": {"size": [60, 80], "counts": "P"}}, "broken run lengths"),
        ({"segmentation": {"size": [60, 80], "counts": [4800]}}, "no pixels"),
        ({}, "no segmentation"),
        ({"image_id": 99, "segmentation": [polygon(*BOX)]}, "image_id 99 is not among the usable images"),
        ({"id": 1, "segmentation": [polygon(*BOX)]}, "used twice"),
        ({"id": "x", "segmentation": [polygon(*BOX)]}, "'x' is no whole number"),
    ],
)
def test_bad_annotations_are_named_with_the_reason_and_left_out(write_coco, bad, reason):
    data = opened(write_coco(GOOD, {"id": 2} | bad))
    assert [item.id for item in data.items] == [1]
    ((name, why),) = data.skipped.items()
    assert "annotation" in name
    assert re.search(reason, why)


def test_images_that_cannot_be_used_take_their_annotations_along(write_coco):
    root = write_coco(GOOD, {"id": 2, "image_id": 3, "segmentation": [polygon(*BOX)]})
    document = json.loads((root / "instances_val.json").read_text())
    document["images"].append({"id": 3, "file_name": "3.png", "height": 60})
    (root / "instances_val.json").write_text(json.dumps(document))
    assert opened(root).skipped == {
        "val images[2]": "no width; expected id, file_name, width and height",
        "val annotations[1]": "image_id 3 is not among the usable images",
    }


def test_missing_and_wrong_photographs_are_named(write_coco, pixels):
    root = write_coco(GOOD, {"id": 2, "image_id": 2, "segmentation": [polygon(*BOX)]})
    (root / "images" / "2.png").unlink()
    assert "2.png: No such file" in opened(root).skipped["val/2.png"]
    cv2.imwrite(str(root / "images" / "2.png"), pixels[:40])
    assert opened(root).skipped == {"val/2.png": "the image is 80x40 and its labels are 80x60; expected the same size"}
    (root / "images" / "2.png").write_bytes(b"no image")
    assert "2.png cannot be read as an image" in opened(root).skipped["val/2.png"]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "No such file"),
        ("[", "is no JSON"),
        ("[]", "has no images; expected a COCO instances file"),
        ('{"images": [{"id": 1}]}', "has no annotations"),
        ('{"images": [{"id": 1}], "annotations": []}', "has no annotations"),
        ('{"images": [], "annotations": [{"id": 1}]}', "has no images"),
    ],
)
def test_files_that_are_no_instances_are_refused(tmp_path, contents, message):
    path = tmp_path / "instances.json"
    if contents is not None:
        path.write_text(contents)
    with pytest.raises(DataError, match=message):
        Coco.open(tmp_path, "val", path)


def test_only_bad_annotations_are_an_error_that_names_the_first(write_coco):
    root = write_coco({"id": 1, "segmentation": []})
    with pytest.raises(DataError, match=r"1 photographs and objects are unusable; val/1.png annotation 1: no polygon"):
        opened(root)


def test_the_split_chooses_among_several_files(write_coco):
    root = write_coco(GOOD)
    (root / "annotations").mkdir()
    (root / "instances_val.json").rename(root / "annotations" / "instances_train2017.json")
    write_coco(GOOD)
    assert Coco.open(root, "train").names == ["train2017/1.png"]
    assert Coco.open(root, "val").names == ["val/1.png"]
    write_coco(GOOD)
    (root / "instances_minival.json").write_bytes((root / "instances_val.json").read_bytes())
    with pytest.raises(DataError, match=r"instances_minival.json, instances_val.json: all could be meant for val"):
        Coco.open(root, "val")


def test_the_only_file_is_for_every_split_unless_its_name_says_which(write_coco):
    root = write_coco(GOOD)
    with pytest.raises(DataError, match=r"has instances_val\.json: none is meant for train; .* name one as the list"):
        Coco.open(root, "train")
    (root / "instances_val.json").rename(root / "instances_mine.json")
    for split in ("train", "val"):
        assert Coco.open(root, split).names == ["mine/1.png"]


def test_photographs_may_lie_in_a_folder_of_the_sets_name(write_coco):
    root = write_coco(GOOD)
    (root / "images").rename(root / "val")
    assert len(opened(root)) == 1


def test_a_list_chooses_photographs(write_coco):
    root = write_coco(GOOD, {"id": 2, "image_id": 2, "segmentation": [polygon(*BOX)]})
    (root / "some.txt").write_text("2.png\n9.png\n")
    data = DataSet.open(Coco.open(root, "val", root / "some.txt"))
    assert [item.name for item in data.items] == ["val/2.png"]
    assert data.skipped == {"val/9.png": "it is not among the JSON's images"}


boxes = st.tuples(st.integers(0, 39), st.integers(0, 29), st.integers(40, 80), st.integers(30, 60))


@given(st.lists(boxes, min_size=1, max_size=4))
def test_compressed_run_lengths_are_read_as_pycocotools_wrote_them(rectangles):
    mask = np.logical_xor.reduce([rectangle(*box) for box in rectangles])
    counts = compressed(mask)["counts"]
    again = np.repeat(np.arange(len(_runs(counts))) % 2, _runs(counts)).reshape(SHAPE, order="F")
    assert (again == mask).all()
    rle = {"size": list(SHAPE), "counts": _compressed(runs(mask), Size(*SHAPE))}
    assert (coco.decode(rle) == mask).all()
