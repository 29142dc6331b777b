"""Labels as an image: a number for each pixel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from iog.arrays import BoolArray, UInt8Array
from iog.prompt import Size

from .photograph import DataError, Item
from .picture import opened

VOID = 255


@dataclass(frozen=True, slots=True, eq=False)
class LabelMap:
    """numbers: (h, w) uint8: 0 background, 1..254 one id per object, VOID where nobody knows."""

    numbers: UInt8Array

    @classmethod
    def read(cls, path: Path) -> LabelMap:
        """From an image of one 8-bit channel, gray or with a palette. Raises DataError."""
        with opened(path) as picture:
            if picture.mode not in ("L", "P"):
                raise DataError(f"{path} is of mode {picture.mode}; expected one 8-bit channel, gray or palette")
            return cls(np.array(picture, np.uint8))

    @property
    def size(self) -> Size:
        """Of the photograph that they were drawn on."""
        return Size(*self.numbers.shape)

    def items(self, name: str) -> list[Item]:
        """The objects by number, those of a photograph of this name. Raises DataError if VOID is the only label."""
        areas = np.bincount(self.numbers.ravel(), minlength=256)
        if areas[VOID] and not areas[1:VOID].any():
            raise DataError("no object is labelled in it: its only label, 255, means ignored; objects have 1..254")
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
