"""Labels as an image: a number for each pixel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from iog.arrays import BoolArray, UInt8Array
from iog.prompt import Size

from .photograph import DataError, Item

VOID = 255


@dataclass(frozen=True, slots=True, eq=False)
class LabelMap:
    """numbers: (h, w) uint8: 0 background, 1..254 one id per object, VOID where nobody knows."""

    numbers: UInt8Array

    @classmethod
    def read(cls, path: Path) -> LabelMap:
        """From an image of one 8-bit channel, gray or with a palette. Raises DataError."""
        try:
            with PIL.Image.open(path) as picture:
                if picture.mode not in ("L", "P"):
                    raise DataError(f"{path} is of mode {picture.mode}; expected one 8-bit channel, gray or palette")
                return cls(np.array(picture, np.uint8))
        except FileNotFoundError as e:
            raise DataError(f"{path}: {e.strerror}") from e
        except (OSError, SyntaxError) as e:  # Pillow raises SyntaxError for broken PNG
            raise DataError(f"{path} cannot be read as an image") from e

    @property
    def size(self) -> Size:
        """Of the photograph that they were drawn on."""
        return Size(*self.numbers.shape)

    def items(self, name: str) -> list[Item]:
        """The objects by number, those of a photograph of this name."""
        areas = np.bincount(self.numbers.ravel(), minlength=256)
        items = []
        for number in np.flatnonzero(areas[1:VOID]).tolist():
            x, y, width, height = cv2.boundingRect(self.mask(number + 1).view(np.uint8))
            items.append(Item(name, number + 1, (x, y, width, height), int(areas[number + 1])))
        return items

    def mask(self, id: int) -> BoolArray:
        """(h, w), the object's pixels."""
        return np.asarray(self.numbers == id)

    def known(self, id: int) -> BoolArray:
        """(h, w), where the label is not VOID."""
        return np.asarray(self.numbers != VOID)
