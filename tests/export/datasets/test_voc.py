import builtins
import re

import cv2
import numpy as np
import PIL.Image
import pytest
import scipy.io
from iog_export.datasets import DataError, DataSet
from iog_export.datasets.voc import Sbd, Voc

SHAPE = (60, 80)
LABELS = np.zeros(SHAPE, np.uint8)
LABELS[5:45, 5:35] = 255
LABELS[7:43, 7:33] = 1
LABELS[10:50, 50:70] = 2


@pytest.fixture
def voc(tmp_path, pixels):
    for folder in ("JPEGImages", "SegmentationObject", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("2007_000001", "2007_000002"):
        cv2.imwrite(str(tmp_path / "JPEGImages" / f"{name}.jpg"), pixels)
        picture = PIL.Image.fromarray(LABELS, "P")
        picture.putpalette([value for i in range(256) for value in (i, 255 - i, 7 * i % 256)])
        picture.save(tmp_path / "SegmentationObject" / f"{name}.png")
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000001\n")
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000001\n2007_000002\n")
    return tmp_path


@pytest.fixture
def sbd(tmp_path, pixels):
    for folder in ("img", "inst"):
        (tmp_path / folder).mkdir()
    labels = np.where(LABELS == 255, 0, LABELS)
    for name in ("2008_000002", "2008_000003"):
        cv2.imwrite(str(tmp_path / "img" / f"{name}.jpg"), pixels)
        contents = {"Segmentation": labels, "Boundaries": 0, "Categories": np.array([[15], [2]], np.uint8)}
        scipy.io.savemat(tmp_path / "inst" / f"{name}.mat", {"GTinst": contents}, do_compression=True)
    (tmp_path / "val.txt").write_text("2008_000002\n2008_000003\n")
    return tmp_path


def test_voc_objects_are_palette_indices_and_their_outlines_are_void(voc):
    data = DataSet.open(Voc.open(voc, "val"))
    assert [(i.name, i.id, i.bounds) for i in data.items][:2] == [
        ("voc/2007_000001", 1, (7, 7, 26, 36)),
        ("voc/2007_000001", 2, (50, 10, 20, 40)),
    ]
    assert len(data) == 4
    assert (data[0].mask == (LABELS == 1)).all()
    assert (data[0].known == (LABELS != 255)).all()
    assert len(DataSet.open(Voc.open(voc, "train"))) == 2


def test_sbd_objects_come_from_matlab_files(sbd):
    data = DataSet.open(Sbd.open(sbd, "val"))
    assert [(i.name, i.id) for i in data.items] == [(f"sbd/2008_00000{n}", i) for n in (2, 3) for i in (1, 2)]
    assert (data[1].mask == (LABELS == 2)).all()
    assert data[1].known.all()


def test_lists_choose_photographs(voc, sbd):
    (voc / "one.txt").write_text("2007_000002\n")
    assert Voc.open(voc, "val", voc / "one.txt").names == ["voc/2007_000002"]
    (sbd / "one.txt").write_text("2008_000003\n")
    assert Sbd.open(sbd, "val", sbd / "one.txt").names == ["sbd/2008_000003"]


def test_bad_voc_photographs_are_named(voc):
    PIL.Image.fromarray(np.where(LABELS == 255, 255, 0).astype(np.uint8)).save(
        voc / "SegmentationObject" / "2007_000001.png"
    )
    ((name, reason),) = DataSet.open(Voc.open(voc, "val")).skipped.items()
    assert (name, reason.partition(":")[0]) == ("voc/2007_000001", "no object is labelled in it")
    PIL.Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(voc / "SegmentationObject" / "2007_000001.png")
    assert "of mode RGB; expected one 8-bit channel" in DataSet.open(Voc.open(voc, "val")).skipped["voc/2007_000001"]


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"MATLAB 5.0 MAT-file, cut short", "cannot be read as a MATLAB file"),
        ({"other": 1}, "cannot be read as a MATLAB file with GTinst"),
        ({"GTinst": {"Segmentation": LABELS.astype(np.float64)}}, r"float64 \(60, 80\); expected uint8"),
        (None, "No such file"),
    ],
)
def test_bad_sbd_labels_are_named(sbd, contents, reason):
    path = sbd / "inst" / "2008_000002.mat"
    if contents is None:
        path.unlink()
    elif isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        scipy.io.savemat(path, contents)
    data = DataSet.open(Sbd.open(sbd, "val"))
    assert len(data) == 2
    assert re.search(reason, data.skipped["sbd/2008_000002"])


def test_sbd_without_scipy_says_what_to_install(sbd, monkeypatch):
    plain = builtins.__import__

    def without_scipy(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ModuleNotFoundError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    with pytest.raises(DataError, match=r"pip install 'iog-runtime\[sbd\]'"):
        Sbd.open(sbd, "val")
