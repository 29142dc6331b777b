"""What comes back from a click, the same from a Predictor and from a Client."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np

from iog.arrays import BoolArray, FloatArray
from iog.crop import Crop
from iog.mask import Bounds, Ring, full_frame, threshold, to_rings
from iog.prompt import Size


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """What was remembered from earlier requests.

    image: the decoded image was held.
    features: "hit", "miss" (the encoder ran for this request), "joined" (it was running for another one), or "none" for
        models that cannot be split.
    windows: click windows computed; 1 when a click was added to the clicks seen last.
    """

    image: bool
    features: Literal["hit", "miss", "joined", "none"]
    windows: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer:
    """What predictions and segmentations have in common: how they came about.

    image_size: of the image, upright.
    crop: the part of the image that the network saw.
    threshold: pixels with scores above it belong to the mask.
    timings: seconds by stage, in the order they ran.
    """

    image_size: Size
    crop: Crop
    threshold: float
    model: str
    bundle_digest: str
    image_digest: str
    cache: CacheStatus
    timings: Mapping[str, float] = field(default_factory=dict)

    @property
    def common(self) -> dict[str, Any]:
        """These fields alone, by name."""
        return {each.name: getattr(self, each.name) for each in fields(Answer)}


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction(Answer):
    """What the network says of an object: all that its mask is made from.

    logits: (g, g) float32, over the crop.
    """

    logits: FloatArray

    def segmentation(self, *, scores: bool = False) -> Segmentation:
        """The mask, whose making is one more stage. scores: keep the logits, for `.scores`."""
        start = time.perf_counter()
        x0, y0, _, _ = self.crop.visible(self.image_size)
        region, bounds = threshold(self.crop.scores(self.logits, self.image_size), self.threshold, x0, y0)
        timings = {**self.timings, "mask": time.perf_counter() - start}
        logits = self.logits if scores else None
        return Segmentation(**{**self.common, "timings": timings}, region=region, bounds=bounds, logits=logits)


@dataclass(frozen=True, eq=False, kw_only=True)
class Segmentation(Answer):
    """A mask and how it came about.

    region: (h, w) bool, the mask within `bounds`; (0, 0) if empty.
    bounds: of the mask, tight.
    logits: (g, g) float32, the network's output over the crop, on request.
    """

    region: BoolArray
    bounds: Bounds
    logits: FloatArray | None = None

    @cached_property
    def mask(self) -> BoolArray:
        """(H, W) bool in the image's frame."""
        return full_frame(self.region, self.bounds, self.image_size)

    @property
    def area(self) -> int:
        """Pixels in the mask."""
        return int(np.count_nonzero(self.region))

    @cached_property
    def rings(self) -> list[Ring]:
        """The outlines, from the outside in: parts, the holes in them, the parts in those holes, and so on."""
        return to_rings(self.region, self.bounds)

    @cached_property
    def scores(self) -> FloatArray | None:
        """Probabilities of the crop's visible part (`crop.visible(image_size)`), if logits were asked for."""
        return None if self.logits is None else self.crop.scores(self.logits, self.image_size)
