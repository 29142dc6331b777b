"""How the annotator draws."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from iog.arrays import BoolArray, UInt8Array
from iog.prompt import Prompt, Size

from iog_export.annotator import inside_point, loosened, tight_box
from iog_export.datasets import Target

# (h, w, 3) uint8 RGB and a prompt -> (h, w) bool
Segmenter = Callable[[UInt8Array, Prompt], BoolArray]

LONGER_SIDE = 512  # of a box, in whose pixels radii of inside points are given


@dataclass(frozen=True, slots=True)
class Protocol:
    """How the annotator draws.

    looseness: each side of the tight box moves outwards by this share of the box's width or height.
    clicks: clicks in all; the first three are the box's corners and the inside point, the others correct the mask.
    inside_radius: the inside point moves by up to this many pixels of the box's longer side scaled to 512. Table 7 of
        the paper counts them in the network's frame, which has a margin around the box.
    """

    looseness: float = 0.05
    clicks: int = 5
    inside_radius: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clicks < 3:
            raise ValueError(f"{self.clicks} clicks; a prompt has at least 3: two corners and the inside point")

    def opening(self, target: Target) -> Prompt:
        """The first three clicks on an object; the same ones whichever other objects are measured."""
        truth = target.mask
        box = loosened(tight_box(truth), (self.looseness,) * 4, Size(*truth.shape))
        if not self.inside_radius:
            return Prompt(box, inside_point(truth))
        rng = np.random.default_rng((self.seed, zlib.crc32(target.item.name.encode()), target.item.id))
        longest = max(box.x1 - box.x0, box.y1 - box.y0) + 1
        return Prompt(box, inside_point(truth, rng, radius=self.inside_radius / LONGER_SIDE * longest))
