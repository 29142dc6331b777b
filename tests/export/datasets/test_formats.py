import pytest
from iog_export.datasets import DataError, open_layout
from iog_export.datasets.coco import Coco
from iog_export.datasets.folders import Folders
from iog_export.datasets.voc import Sbd, Voc


def make(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("one/1")
    return root


FOLDERS = ("one/images/1.jpg", "one/masks/1.png", "val.txt")
COCO = ("annotations/instances_val2017.json", "val2017/1.jpg")
VOC = ("JPEGImages/1.jpg", "SegmentationObject/1.png", "ImageSets/Segmentation/val.txt")
SBD = ("img/1.jpg", "inst/1.mat", "val.txt")


@pytest.mark.parametrize(("files", "kind"), [(FOLDERS, Folders), (VOC, Voc), (SBD, Sbd)])
def test_layouts_are_recognised(tmp_path, files, kind):
    assert isinstance(open_layout(make(tmp_path, *files), "val"), kind)


def test_coco_is_recognised(tmp_path):
    make(tmp_path, *COCO)
    assert Coco.recognises(tmp_path)
    with pytest.raises(DataError, match=r"instances_val2017\.json is no JSON"):
        open_layout(tmp_path, "val")


def test_what_looks_like_nothing_or_like_two_is_refused_unless_named(tmp_path):
    with pytest.raises(
        DataError, match="looks like none of the formats folders, coco, voc, sbd; name one with --format"
    ):
        open_layout(tmp_path, "val")
    make(tmp_path, *FOLDERS, *SBD)
    with pytest.raises(DataError, match="looks like folders and sbd"):
        open_layout(tmp_path, "val")
    assert isinstance(open_layout(tmp_path, "val", form="folders"), Folders)
