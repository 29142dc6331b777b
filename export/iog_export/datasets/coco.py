"""COCO instances: one JSON file with a polygon or run lengths for each object, and a folder of photographs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from iog.arrays import BoolArray
from iog.prompt import Size
from pycocotools import mask as coco

from .lists import read_list
from .photograph import DataError, Item

SPLITS = ("train", "val")


class BadAnnotation(Exception):
    """An annotation that must be left out, and why."""


@dataclass(frozen=True, slots=True)
class RunLengths:
    """Labels in COCO's compressed run lengths, decoded one by one as they are asked for.

    objects: by annotation id; they may overlap, and each is whole in its own mask. crowds: regions of uncounted
    objects (`iscrowd`), void for every object except where it lies itself.
    """

    size: Size
    objects: dict[int, bytes] = field(default_factory=dict)
    crowds: list[bytes] = field(default_factory=list)

    def items(self, name: str) -> list[Item]:
        """The objects in the order of the file, those of a photograph of this name."""
        items = []
        for id, counts in self.objects.items():
            x, y, width, height = map(int, coco.toBbox(self._rle(counts)))
            items.append(Item(name, id, (x, y, width, height), int(coco.area(self._rle(counts)))))
        return items

    def mask(self, id: int) -> BoolArray:
        """(h, w), the object's pixels."""
        return self._decoded(self.objects[id])

    def known(self, id: int) -> BoolArray:
        """(h, w), everywhere but in crowds."""
        known = np.ones((self.size.height, self.size.width), np.bool_)
        for counts in self.crowds:
            known &= ~self._decoded(counts)
        return known | self.mask(id) if self.crowds else known

    def _decoded(self, counts: bytes) -> BoolArray:
        return np.ascontiguousarray(coco.decode(self._rle(counts))).view(np.bool_)

    def _rle(self, counts: bytes) -> dict[str, Any]:
        return {"size": [self.size.height, self.size.width], "counts": counts}


@dataclass(frozen=True)
class Coco:
    """`instances*.json`, in the data folder or its `annotations`, with `images` or a folder per set beside it.

    A photograph's name is its `file_name` after the set's name: `val2017` of `instances_val2017.json`.
    """

    folder: Path
    names: Sequence[str]
    skipped: Mapping[str, str]
    photographs: Mapping[str, RunLengths]

    @classmethod
    def open(cls, root: Path, split: str, listed: Path | None = None) -> Coco:
        """The photographs with objects. Raises DataError.

        The file is `listed` if that is JSON, else the one with the split in its name, else the only one whose name says
        nothing of a split. Another list has the `file_name`s that are meant.
        """
        path = listed if listed and listed.suffix == ".json" else _annotations(root, split)
        photographs, skipped = _read(path)
        collection = _collection(path)
        names = [name for name, labels in photographs.items() if labels.objects]
        if listed and listed != path:
            names = [f"{collection}/{file}" for file in read_list(listed, "file_name")]
        files = [name.partition("/")[2] for name in names]
        return cls(_folder(root, collection, files), names, skipped, photographs)

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whether the folder looks like this."""
        return bool(_candidates(root))

    def image(self, name: str) -> Path:
        """The photograph's file."""
        return self.folder / name.partition("/")[2]

    def labels(self, name: str) -> RunLengths:
        """What is labelled in it."""
        if name not in self.photographs:
            raise DataError("it is not among the JSON's images")
        return self.photographs[name]


def _candidates(root: Path) -> list[Path]:
    return sorted([*root.glob("instances*.json"), *root.glob("annotations/instances*.json")])


def _annotations(root: Path, split: str) -> Path:
    found = _candidates(root)
    chosen = [path for path in found if split in path.stem]
    chosen = chosen or [path for path in found if not any(name in path.stem for name in SPLITS)]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(str(path.relative_to(root)) for path in chosen or found) or "no instances*.json"
    problem = "all could be meant" if chosen else "none is meant"
    raise DataError(f"{root} has {names}: {problem} for {split}; expected one of that name, or name one as the list")


def _collection(path: Path) -> str:
    return path.stem.removeprefix("instances").strip("_") or "instances"


def _folder(root: Path, collection: str, files: Sequence[str]) -> Path:
    """Where the photographs lie: the first place that has any of the first few."""
    images = root / "images"
    for folder in (images / collection, root / collection, images, root):
        if any((folder / file).is_file() for file in files[:20]):
            return folder
    return images


def _read(path: Path) -> tuple[dict[str, RunLengths], dict[str, str]]:
    """Labels by photograph; and annotations that cannot be used, with the reasons."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}; expected a COCO instances file") from e
    except ValueError as e:
        raise DataError(f"{path} is no JSON: {e}") from e
    for key in ("images", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list) or not document[key]:
            raise DataError(f"{path} has no {key}; expected a COCO instances file")
    collection = _collection(path)
    names: dict[Any, str] = {}
    photographs: dict[str, RunLengths] = {}
    skipped: dict[str, str] = {}
    ambiguous: set[Any] = set()
    for index, image in enumerate(document["images"]):
        where = f"{collection} images[{index}]"
        try:
            name = f"{collection}/{image['file_name']}"
            size = Size(_whole(image["height"]), _whole(image["width"]))
            if photographs.setdefault(name, RunLengths(size)).size != size:
                skipped[where] = f"{name} is {size} here and {photographs[name].size} before"
            elif (other := names.setdefault(image["id"], name)) != name:
                skipped[where] = f"{name} has the id of {other}: nobody knows whose its annotations are"
                ambiguous.add(image["id"])
        except (KeyError, TypeError, BadAnnotation) as e:
            skipped[where] = f"{_reason(e)}; expected id, file_name, width and height"
    for index, annotation in enumerate(document["annotations"]):
        where = f"{collection} annotations[{index}]"
        try:
            if annotation["image_id"] not in names or annotation["image_id"] in ambiguous:
                raise BadAnnotation(f"image_id {annotation['image_id']!r} is not among the usable images")
            name = names[annotation["image_id"]]
            where = f"{name} annotation {annotation['id']}"
            labels = photographs[name]
            counts = _compressed(annotation["segmentation"], labels.size)
            if annotation.get("iscrowd"):
                labels.crowds.append(counts)
                continue
            if not coco.area({"size": [labels.size.height, labels.size.width], "counts": counts}):
                raise BadAnnotation("no pixels")
            if annotation["id"] in labels.objects:
                raise BadAnnotation("the id is used twice")
            labels.objects[_whole(annotation["id"], least=0)] = counts
        except (KeyError, TypeError, BadAnnotation) as e:
            skipped[where] = _reason(e)
    return photographs, skipped


def _reason(error: Exception) -> str:
    return f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)


def _whole(value: Any, least: int = 1) -> int:
    if not isinstance(value, int) or value < least:
        raise BadAnnotation(f"{value!r} is no whole number of {least} or more")
    return value


def _compressed(segmentation: Any, size: Size) -> bytes:
    """Compressed run lengths of polygons or of run lengths. Raises BadAnnotation.

    NB: pycocotools trusts what it is given: it reads memory that it has not written if runs are too few, and walks any
    distance to a corner far outside the image.
    """
    height, width = size.height, size.width
    if isinstance(segmentation, list):
        if not segmentation:
            raise BadAnnotation("no polygon")
        parts = coco.frPyObjects([_polygon(values, size) for values in segmentation], height, width)
        return bytes(coco.merge(parts)["counts"])
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise BadAnnotation("its segmentation is neither polygons nor run lengths")
    if segmentation.get("size") != [height, width]:
        raise BadAnnotation(f"run lengths of size {segmentation.get('size')} in an image of [{height}, {width}]")
    counts = segmentation["counts"]
    runs = _runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise BadAnnotation("broken run lengths")
    if sum(runs) != height * width:
        raise BadAnnotation(f"run lengths of {sum(runs)} pixels in an image of {height * width}")
    return bytes(coco.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"])


def _polygon(values: Any, size: Size) -> list[float]:
    try:
        corners = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        corners = np.empty(0)
    if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2:
        raise BadAnnotation("a polygon that is no list x1, y1, x2, y2, x3, y3 ...")
    limits = np.tile((size.width, size.height), len(corners) // 2)
    if not ((-limits <= corners) & (corners <= 2 * limits)).all():  # as nan is not
        raise BadAnnotation(f"a polygon that lies far outside the image of {size}")
    polygon: list[float] = corners.tolist()
    return polygon


def _runs(counts: str) -> list[int]:
    """COCO's compressed run lengths: five bits a character; from the fourth run on, differences to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise BadAnnotation("broken run lengths")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise BadAnnotation("broken run lengths")
    return runs
