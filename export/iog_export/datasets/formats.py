"""The layouts of data folders, recognised by what lies in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from .coco import Coco
from .dataset import Layout
from .folders import Folders
from .photograph import DataError
from .voc import Sbd, Voc


class Format(Protocol):
    """A kind of layout."""

    def open(self, root: Path, split: str, listed: Path | None = None) -> Layout:
        """The photographs of a split, `train` or `val`, or those of a list. Raises DataError."""

    def recognises(self, root: Path) -> bool:
        """Whether a folder looks like this."""


FORMATS: Mapping[str, Format] = {"folders": Folders, "coco": Coco, "voc": Voc, "sbd": Sbd}

# For the help of commands that take a data folder.
HELP = """\b
DATA is recognised by what lies in it:
  folders  <set>/images/NAME.jpg and <set>/masks/NAME.png, 8-bit: 0 background,
           1..254 one id per object, 255 ignored. Lists: train.txt and val.txt
           with one <set>/NAME a line.
  coco     instances*.json, in DATA or DATA/annotations, and images/ or a
           folder named like the set (train2017/). Polygons or run lengths;
           objects may overlap; pixels of crowds (iscrowd) count nowhere.
           Images without annotations are passed over.
           A JSON with neither train nor val in its name is for both.
           A list is another such JSON, or has one file_name a line.
  voc      VOCdevkit/VOC2012: JPEGImages, SegmentationObject and
           ImageSets/Segmentation/{train,val}.txt.
  sbd      benchmark_RELEASE/dataset: img, inst, train.txt and val.txt;
           needs the extra sbd.

\b
Other photographs without any object, those that cannot be read, are too large
or whose size is not their labels', and annotations without image, without pixels
or with broken outlines are named, counted and left out. A data folder or list
without any usable object is refused.
"""


def open_layout(root: Path, split: str, listed: Path | None = None, form: str | None = None) -> Layout:
    """The photographs of a data folder that are for training, `train`, or for validation, `val`.

    listed: a list file instead of the split's; form: one of FORMATS, if not to be recognised. Raises DataError.
    """
    recognised = [form] if form else [name for name, kind in FORMATS.items() if kind.recognises(root)]
    if len(recognised) != 1:
        raise DataError(
            f"{root} looks like {' and '.join(recognised) or 'none'} of the formats {', '.join(FORMATS)}; "
            "name one with --format"
        )
    return FORMATS[recognised[0]].open(root, split, listed)
