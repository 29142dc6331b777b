import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from iog.bundle import Bundle, Manifest, check_writable, read_manifest, write_bundle
from iog.crop import CropSpec
from iog.errors import BundleError, BundleVersionError
from iog.guidance import GuidanceSpec


@pytest.fixture
def bundle(split_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(split_bundle, tmp_path / "bundle"))


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads((bundle / "manifest.json").read_text())
    change(raw)
    (bundle / "manifest.json").write_text(json.dumps(raw))


def test_what_was_written_is_opened(split_bundle: Path) -> None:
    bundle = Bundle.open(split_bundle)
    assert bundle.manifest.name == "small-split"
    assert set(bundle.graphs) == {"encoder", "click", "head"}
    for name, data in bundle.graphs.items():
        assert hashlib.sha256(data).hexdigest() == bundle.manifest.graphs[name].sha256
    assert bundle.crop == CropSpec(size=128, relax_pixels=10)
    assert bundle.guidance == GuidanceSpec(128, 10)
    assert bundle.digest == hashlib.sha256((split_bundle / "manifest.json").read_bytes()).hexdigest()
    assert sorted(p.name for p in split_bundle.iterdir()) == [
        "CARD.md",
        "click.onnx",
        "encoder.onnx",
        "head.onnx",
        "manifest.json",
    ]


def test_a_manifest_round_trips_through_its_json(split_bundle: Path) -> None:
    manifest, _ = read_manifest(split_bundle)
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert "channels_last" not in manifest.model_dump_json()


def test_the_order_of_maps_round_trips_through_the_manifest(last_bundle: Path) -> None:
    manifest, _ = read_manifest(last_bundle)
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert [t.name for t in manifest.graphs["encoder"].outputs if t.channels_last] == [
        t.name for t in manifest.graphs["head"].inputs if t.channels_last
    ]
    assert manifest.graphs["encoder"].outputs[0].channels_last


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_changed_byte_is_found(bundle: Path, place: str) -> None:
    data = bytearray((bundle / "head.onnx").read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[place]] ^= 1
    (bundle / "head.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"head\.onnx: sha256 .* the manifest says"):
        Bundle.open(bundle)


def test_a_missing_graph_is_named(bundle: Path) -> None:
    (bundle / "click.onnx").unlink()
    with pytest.raises(BundleError, match=r"click\.onnx: No such file.*incomplete"):
        Bundle.open(bundle)


def test_a_directory_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(BundleError, match="is no model bundle"):
            Bundle.open(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '{"name": "x"}', "\xff\xfe", "[" * 100_000, '{"format": 1}'], ids=repr
)
def test_what_is_no_manifest_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError):
        Bundle.open(bundle)


def test_a_manifest_that_is_no_text_is_refused_in_few_words(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b"\x7f\xff" * 50_000)
    with pytest.raises(BundleError, match="is no manifest: UnicodeDecodeError") as caught:
        Bundle.open(bundle)
    assert len(str(caught.value)) < 500


def test_a_truncated_manifest_is_refused(bundle: Path) -> None:
    data = (bundle / "manifest.json").read_bytes()
    (bundle / "manifest.json").write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match="is no manifest"):
        Bundle.open(bundle)


def test_a_manifest_of_megabytes_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").write_text(" " * (1 << 20) + "{}")
    with pytest.raises(BundleError, match="which no manifest has"):
        Bundle.open(bundle)


@pytest.mark.parametrize("version", [2, 99, "2"])
def test_a_newer_format_asks_for_an_upgrade(bundle: Path, version: object) -> None:
    edit(bundle, lambda raw: raw.update(format=version))
    with pytest.raises(BundleVersionError, match="upgrade iog-runtime"):
        Bundle.open(bundle)


def test_a_format_that_never_was_is_refused(bundle: Path) -> None:
    edit(bundle, lambda raw: raw.update(format=0))
    with pytest.raises(BundleError, match="format"):
        Bundle.open(bundle)


def _of(raw: dict[str, Any], graph: str, side: str, index: int) -> dict[str, Any]:
    tensor: dict[str, Any] = raw["graphs"][graph][side][index]
    return tensor


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda raw: raw["graphs"]["head"].update(file="../head.onnx"), "graphs.head.file"),
        (lambda raw: raw["graphs"]["head"].update(file="/etc/passwd"), "graphs.head.file"),
        (lambda raw: raw["graphs"]["head"].update(file=".."), "graphs.head.file"),
        (lambda raw: raw["graphs"]["head"].update(file="a/b"), "graphs.head.file"),
        (lambda raw: raw["graphs"]["head"].update(file="a\n"), "graphs.head.file"),
        (lambda raw: raw["graphs"]["head"].update(file="encoder.onnx"), "expected different names"),
        (lambda raw: raw["graphs"]["head"].update(file="CARD.md"), "expected different names"),
        (lambda raw: raw["graphs"]["head"].update(sha256="0"), "graphs.head.sha256"),
        (lambda raw: raw["graphs"].pop("click"), "a split bundle has"),
        (lambda raw: raw["graphs"].update(other=raw["graphs"]["head"]), "a split bundle has"),
        (lambda raw: raw.update(kind="single"), "a single bundle has"),
        (lambda raw: raw.update(kind="triple"), "kind"),
        (lambda raw: raw.update(surprise=1), "surprise"),
        (lambda raw: raw.pop("crop"), "crop"),
        (lambda raw: raw.update(threshold=1.0), "threshold"),
        (lambda raw: raw.update(name="../up"), "name"),
        (lambda raw: raw["crop"].update(size=100), "crop.size"),
        (lambda raw: raw["crop"].update(relax_pixels=-1), "crop.relax_pixels"),
        (lambda raw: raw["guidance"].update(fwhm=1000), "fwhm 1000"),
        (lambda raw: raw["guidance"].update(initial=["inside"]), "guidance.initial"),
        (lambda raw: _of(raw, "head", "outputs", 0).update(name="mask"), "expected .*logits"),
        (lambda raw: raw["graphs"]["click"]["inputs"].reverse(), "expected .*window.*origin"),
        # numbers that do not fit each other
        (lambda raw: raw["crop"].update(size=256), "encoder.*image"),
        (lambda raw: raw["guidance"].update(fwhm=20), "click.*window"),
        (lambda raw: _of(raw, "click", "inputs", 1).update(dtype="int64"), "click.*origin"),
        (lambda raw: _of(raw, "head", "outputs", 0).update(dtype="float16"), "head.*logits"),
        (lambda raw: _of(raw, "head", "inputs", 0).update(shape=["batch", 9, 8, 8]), "head.*context"),
        (lambda raw: _of(raw, "head", "inputs", 5).update(shape=["batch", 9, 8, 8]), "head.*clicks"),
        (lambda raw: _of(raw, "encoder", "outputs", 1).update(dtype="float16"), "head.*pooled"),
        (lambda raw: _of(raw, "click", "outputs", 0).update(shape=["batch", "channels", 4, 4]), "positive number"),
        (lambda raw: _of(raw, "click", "outputs", 0).update(shape=["batch"]), "positive number"),
        (lambda raw: _of(raw, "encoder", "outputs", 0).update(channels_last=True), "head.*channels_last of context"),
        (lambda raw: _of(raw, "encoder", "outputs", 1).update(channels_last=True), "channels_last of pooled"),
        (lambda raw: _of(raw, "head", "inputs", 5).update(channels_last=True), "channels_last of clicks"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    bundle: Path, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=problem):
        Bundle.open(bundle)


def test_an_existing_directory_is_replaced_only_when_asked(bundle: Path, split_bundle: Path) -> None:
    opened = Bundle.open(split_bundle)
    renamed = opened.manifest.model_copy(update={"name": "renamed"})
    (bundle / "extra.txt").write_text("of the old one")
    with pytest.raises(BundleError, match="exists; choose another"):
        write_bundle(bundle, renamed, opened.graphs, "card")
    assert Bundle.open(bundle).manifest.name == "small-split"

    write_bundle(bundle, renamed, opened.graphs, "card", replace=True)
    assert Bundle.open(bundle).manifest.name == "renamed"
    assert not (bundle / "extra.txt").exists()
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


def test_what_is_no_bundle_is_never_replaced(tmp_path: Path, split_bundle: Path) -> None:
    opened = Bundle.open(split_bundle)
    home, file, empty = tmp_path / "home", tmp_path / "file", tmp_path / "empty"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    file.write_text("a file")
    empty.mkdir()
    for path in (home, file):
        with pytest.raises(BundleError, match="is no bundle; it is left as it is"):
            write_bundle(path, opened.manifest, opened.graphs, "card", replace=True)
    assert (home / "thesis.tex").read_text() == "years of work"
    write_bundle(empty, opened.manifest, opened.graphs, "card", replace=True)
    Bundle.open(empty)


def test_a_place_where_nothing_can_be_written_is_known_before_a_bundle_is_made(
    tmp_path: Path, split_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("a file")
    for root in (tmp_path / "new", tmp_path / "some" / "where" / "new"):
        check_writable(root)
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(BundleError, match=r"cannot be written: .*file: Not a directory; choose another"):
        check_writable(tmp_path / "file" / "new")
    with pytest.raises(BundleError, match="exists; choose another"):
        check_writable(split_bundle)
    with pytest.raises(BundleError, match="is no bundle; it is left as it is"):
        check_writable(tmp_path, replace=True)

    def refuse(**options: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(BundleError, match=f"cannot be written: {tmp_path}: Permission denied"):
        check_writable(tmp_path / "some" / "where" / "new")


def test_a_link_to_a_bundle_keeps_pointing_at_it(bundle: Path, split_bundle: Path) -> None:
    opened = Bundle.open(split_bundle)
    link = bundle.parent / "current"
    link.symlink_to(bundle)
    write_bundle(link, opened.manifest, opened.graphs, "a new card", replace=True)
    assert link.is_symlink()
    assert (bundle / "CARD.md").read_text() == "a new card"


@pytest.mark.parametrize("exists", [False, True])
def test_a_bundle_that_cannot_be_read_back_is_not_written(
    tmp_path: Path, split_bundle: Path, bundle: Path, exists: bool
) -> None:
    opened = Bundle.open(split_bundle)
    target = bundle if exists else tmp_path / "new"
    for graphs in ({**opened.graphs, "head": b"other weights"}, {"head": opened.graphs["head"]}):
        with pytest.raises(BundleError, match=r"click\.onnx|head\.onnx|encoder\.onnx"):
            write_bundle(target, opened.manifest, graphs, "card", replace=True)
        assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    assert Bundle.open(bundle).digest == opened.digest


def test_the_old_bundle_survives_a_failure_to_move_the_new_one(
    tmp_path: Path, split_bundle: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Bundle.open(split_bundle)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("no space left on device")
        return rename(self, target)

    def interrupted(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if target.name == "old":
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no space left"):
        write_bundle(bundle, opened.manifest, opened.graphs, "card", replace=True)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(bundle, opened.manifest, opened.graphs, "card", replace=True)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    assert Bundle.open(bundle).digest == opened.digest
