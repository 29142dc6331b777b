"""PASCAL VOC and the Semantic Boundaries Dataset, as they are unpacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from .labelmap import LabelMap
from .lists import read_list
from .photograph import DataError


@dataclass(frozen=True)
class Voc:
    """`VOCdevkit/VOC2012`: JPEGImages, SegmentationObject, whose outlines are void, ImageSets/Segmentation/*.txt."""

    root: Path
    names: Sequence[str]
    skipped: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def open(cls, root: Path, split: str, listed: Path | None = None) -> Voc:
        """The photographs in `listed`, or in the split's list. Raises DataError."""
        listed = listed or root / "ImageSets" / "Segmentation" / f"{split}.txt"
        return cls(root, [f"voc/{name}" for name in read_list(listed, "NAME")])

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whether the folder looks like this."""
        return (root / "JPEGImages").is_dir() and (root / "SegmentationObject").is_dir()

    def image(self, name: str) -> Path:
        """The photograph's file."""
        return self.root / "JPEGImages" / f"{name.removeprefix('voc/')}.jpg"

    def labels(self, name: str) -> LabelMap:
        """What is labelled in it."""
        return LabelMap.read(self.root / "SegmentationObject" / f"{name.removeprefix('voc/')}.png")


@dataclass(frozen=True)
class Sbd:
    """`benchmark_RELEASE/dataset`: img, inst, train.txt and val.txt. Nothing is void."""

    root: Path
    names: Sequence[str]
    skipped: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def open(cls, root: Path, split: str, listed: Path | None = None) -> Sbd:
        """The photographs in `listed`, or in `<split>.txt`. Raises DataError."""
        _loadmat()
        return cls(root, [f"sbd/{name}" for name in read_list(listed or root / f"{split}.txt", "NAME")])

    @staticmethod
    def recognises(root: Path) -> bool:
        """Whether the folder looks like this."""
        return (root / "img").is_dir() and (root / "inst").is_dir()

    def image(self, name: str) -> Path:
        """The photograph's file."""
        return self.root / "img" / f"{name.removeprefix('sbd/')}.jpg"

    def labels(self, name: str) -> LabelMap:
        """What is labelled in it."""
        path = self.root / "inst" / f"{name.removeprefix('sbd/')}.mat"
        try:
            with path.open("rb") as file:
                numbers = _loadmat()(file)["GTinst"]["Segmentation"][0, 0]
        except FileNotFoundError as e:
            raise DataError(f"{path}: {e.strerror}") from e
        except Exception as e:  # the reader raises whatever corrupt bytes lead it to
            raise DataError(f"{path} cannot be read as a MATLAB file with GTinst.Segmentation") from e
        if numbers.ndim != 2 or numbers.dtype != np.uint8:
            raise DataError(f"{path}: GTinst.Segmentation is {numbers.dtype} {numbers.shape}; expected uint8 (h, w)")
        return LabelMap(np.ascontiguousarray(numbers))


def _loadmat() -> Callable[[BinaryIO], Any]:
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as e:
        raise DataError("SBD's labels are MATLAB files: pip install 'iog-runtime[sbd]' to read them") from e
    return partial(loadmat, variable_names=["GTinst"])
