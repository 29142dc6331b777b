"""What surrounds the network, the same for every competitor in this process: only the network differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from iog.arrays import BoolArray, FloatArray, UInt8Array
from iog.clicks import NetworkClicks
from iog.crop import Crop, CropSpec
from iog.guidance import GuidanceSpec
from iog.image import Image
from iog.mask import full_frame, threshold
from iog.prompt import Prompt

THRESHOLD = 0.5


class Seen(NamedTuple):
    """What the network gets: pixels (S, S, 3), heat of the initial and of all clicks (2, S, S), all uint8."""

    pixels: UInt8Array
    initial: UInt8Array
    clicks: UInt8Array

    def inputs(self) -> FloatArray:
        """(1, 5, S, S), as the published network takes them."""
        return np.concatenate([self.pixels.transpose(2, 0, 1), self.initial])[None].astype(np.float32)

    def all_clicks(self) -> FloatArray:
        """(1, 2, S, S)."""
        return self.clicks[None].astype(np.float32)


@dataclass(frozen=True)
class Host:
    """Crop, heat and mask as the runtime makes them, for a network that is run in another way."""

    crop: CropSpec
    guidance: GuidanceSpec
    image: Image

    def see(self, prompt: Prompt) -> tuple[Seen, Crop]:
        """Cut and draw what the network looks at."""
        prompt = prompt.within(self.image.size)
        crop = Crop.around(prompt.box, self.crop)
        clicks = NetworkClicks.of(prompt, crop, self.crop.corner_offset)
        initial, every = (clicks.guidance(self.guidance, initial_only=first) for first in (True, False))
        return Seen(crop.extract(self.image.pixels, self.crop.interpolation), initial, every), crop

    def mask(self, logits: FloatArray, crop: Crop) -> BoolArray:
        """(H, W) from (S/4, S/4)."""
        return self._thresholded(crop.scores(logits, self.image.size), crop)

    def mask_of_frame(self, frame: BoolArray, crop: Crop) -> BoolArray:
        """(H, W) from a mask of the network's frame, (S, S)."""
        return self._thresholded(crop.from_network(frame.astype(np.float32), self.image.size), crop)

    def _thresholded(self, scores: FloatArray, crop: Crop) -> BoolArray:
        x0, y0, _, _ = crop.visible(self.image.size)
        region, bounds = threshold(scores, THRESHOLD, x0, y0)
        return full_frame(region, bounds, self.image.size)
