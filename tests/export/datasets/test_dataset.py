import logging
import pickle
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
from iog.image import DEFAULT_LIMITS, Image
from iog.prompt import Size
from iog_export.datasets import DataError, DataSet
from iog_export.datasets.dataset import _size_of
from iog_export.datasets.folders import Folders


@pytest.fixture
def data(shapes):
    root, names = shapes
    return DataSet.open(Folders(root, names))


def truncate(root, name):
    path = root / "shapes" / "images" / f"{name}.jpg"
    path.write_bytes(path.read_bytes()[:-400])


def decoded(monkeypatch):
    """The photographs decoded from now on."""
    from iog_export.datasets import dataset

    seen, decode = [], dataset._decoded

    def noted(layout, name, labels):
        seen.append(name)
        return decode(layout, name, labels)

    monkeypatch.setattr(dataset, "_decoded", noted)
    return seen


def test_photographs_are_decoded_when_looked_at(shapes, data, monkeypatch):
    seen = decoded(monkeypatch)
    assert [len(data), len(data.items)] == [8, 8]
    assert seen == []
    assert data[3].photograph.pixels.shape == (96, 128, 3)
    assert data.photograph("shapes/3") is data[3].photograph
    assert seen == ["shapes/3"]


def test_what_is_kept_is_decoded_once(shapes, monkeypatch):
    root, names = shapes
    seen = decoded(monkeypatch)
    everything = DataSet.open(Folders(root, names), keep=1 << 30)
    assert [t.item for t in everything] == [t.item for t in everything.only(everything.items)]
    assert sorted(seen) == names


def test_memory_is_bounded(shapes, monkeypatch):
    root, names = shapes
    some = DataSet.open(Folders(root, names), keep=3 * 96 * 128 * 4)
    seen = decoded(monkeypatch)
    pixels = [t.photograph.pixels for t in some]
    assert len(seen) == 5
    assert all(
        (a == t.photograph.pixels).all() for a, t in zip(pixels, DataSet.open(Folders(root, names)), strict=True)
    )


def test_a_selection_shares_the_photographs(shapes_data):
    two = shapes_data.only(shapes_data.items[2:4])
    assert [t.item for t in two] == list(shapes_data.items[2:4])
    assert two[0].photograph is shapes_data[2].photograph


def test_data_sets_travel_to_worker_processes(data):
    again = pickle.loads(pickle.dumps(data))
    assert again.items == data.items
    assert (again[1].photograph.pixels == data[1].photograph.pixels).all()


def test_an_image_broken_behind_its_header_is_found_when_decoded(shapes, caplog):
    root, names = shapes
    truncate(root, 2)
    data = DataSet.open(Folders(root, names))
    assert data.skipped == {}
    with pytest.raises(DataError, match=r"2\.jpg: .*truncated"):
        data[2]
    with caplog.at_level(logging.WARNING):
        assert [t.item.name for t in data] == [name for name in names if name != "shapes/2"]
    assert "passed over shapes/2 object 1" in caplog.text
    assert "truncated" in DataSet.open(Folders(root, names), keep=1 << 30).skipped["shapes/2"]


def png(width, height):
    """As much of an 8-bit gray PNG as is read before it is decoded."""
    parts = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", b"")
    chunks = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("folder", ["images", "masks"])
@pytest.mark.parametrize("side", [8500, 10_000, 20_000])  # over the runtime's limit, Pillow's warning, its refusal
def test_images_that_the_runtime_would_not_take_are_skipped_from_their_headers(shapes, folder, side):
    root, names = shapes
    (path,) = (root / "shapes" / folder).glob("0.*")
    path.write_bytes(png(side, side))
    data = DataSet.open(Folders(root, names))
    assert len(data) == 7
    assert f"{path}: " in data.skipped["shapes/0"]
    assert f"at most {DEFAULT_LIMITS.max_pixels:,} are accepted" in data.skipped["shapes/0"]


def test_files_that_are_too_large_are_skipped_unread(shapes):
    root, names = shapes
    path = root / "shapes" / "images" / "0.jpg"
    with path.open("ab") as file:
        file.truncate(DEFAULT_LIMITS.max_bytes + 1)  # sparse
    assert (
        f"at most {DEFAULT_LIMITS.max_bytes:,} are accepted" in DataSet.open(Folders(root, names)).skipped["shapes/0"]
    )


def test_skipped_photographs_are_named_and_counted(shapes):
    root, names = shapes
    data = DataSet.open(Folders(root, [*names, *(f"shapes/absent{i}" for i in range(30))]))
    first, *_, last = lines = data.warnings()
    assert "skipped shapes/absent0: " in first
    assert len(lines) == 21
    assert last == "photographs and objects skipped: 30; objects left: 8"
    assert DataSet.open(Folders(root, names)).warnings() == []


def test_objects_that_are_left_out_for_their_size_are_counted(shapes):
    root, names = shapes
    areas = sorted(item.area for item in DataSet.open(Folders(root, names)).items)
    data = DataSet.open(Folders(root, names), min_area=areas[3])
    assert len(data) == 5
    assert data.warnings() == [f"left out, as they have under {areas[3]} pixels: 3 objects"]
    assert data.only(data.items[:2]).warnings() == data.warnings()


def test_images_lying_on_their_side_are_turned_upright(shapes):
    root, names = shapes
    rng = np.random.default_rng(0)
    picture = PIL.Image.fromarray(rng.integers(0, 255, (128, 96, 3)).astype(np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(root / "shapes" / "images" / "0.jpg", exif=exif)
    data = DataSet.open(Folders(root, names))
    assert data.skipped == {}
    assert data[0].photograph.pixels.shape == (96, 128, 3)


def test_the_size_of_a_png_comes_from_its_header_also_if_it_lies_on_its_side(tmp_path, monkeypatch):
    picture = PIL.Image.new("RGB", (96, 128))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "0.png", exif=exif)
    upright = Image.read(tmp_path / "0.png").size
    monkeypatch.setattr(PIL.PngImagePlugin.PngImageFile, "load", lambda picture: pytest.fail("it is decoded"))
    assert _size_of(tmp_path / "0.png") == upright == Size(96, 128)
