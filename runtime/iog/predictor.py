"""The click path: from an image and a prompt to a mask, in one process."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from types import TracebackType

import numpy as np

from iog.arrays import FloatArray, PointArray
from iog.backends import open_backend
from iog.backends.base import Backend
from iog.bundle import Bundle
from iog.clicks import NetworkClicks
from iog.crop import Crop
from iog.deadline import Deadline
from iog.features import LRU, ClickState, FeatureKey, Features
from iog.guidance import windows
from iog.image import DEFAULT_LIMITS, Image, ImageLimits, ImageSource, digest_of, read_bytes
from iog.lane import Lane, Priority
from iog.mask import threshold
from iog.prompt import Prompt
from iog.segmentation import CacheStatus, Segmentation

FEATURES_BUDGET = 1 << 30
IMAGES_BUDGET = 512 << 20

ImageCache = LRU[str, Image]
FeatureCache = LRU[FeatureKey, Features]


def image_cache(budget: int = IMAGES_BUDGET) -> ImageCache:
    """Decoded images by digest, under `budget` bytes of pixels."""
    return LRU(budget, lambda image: image.pixels.nbytes)


def feature_cache(budget: int = FEATURES_BUDGET) -> FeatureCache:
    """Encoder outputs and click maps by FeatureKey, under `budget` bytes."""
    return LRU(budget, lambda features: features.nbytes)


class Predictor:
    """A bundle on a backend. Thread-safe; its answers depend on the request alone, its caches only make them fast.

    Several predictors may share caches and a lane: keys hold the bundle's digest.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        features: FeatureCache | None = None,
        images: ImageCache | None = None,
        lane: Lane | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        self.bundle = replace(bundle, graphs={})  # the engine has a copy of the weights: one is enough
        self.features = features if features is not None else feature_cache()
        self.images = images if images is not None else image_cache()
        self._lane = lane or Lane()
        self._limits = limits
        self._graphs = {
            name: backend.open(name, bundle.graphs[name], info) for name, info in bundle.manifest.graphs.items()
        }
        if "click" in self._graphs:
            _, channels, *_ = self._graphs["click"].info.outputs[0].shape
            self._click_map_shape = (1, int(channels), bundle.guidance.grid, bundle.guidance.grid)

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str] | None = None,
        backend: str = "ort",
        *,
        device: str = "cpu",
        threads: int = 0,
        features_budget: int = FEATURES_BUDGET,
    ) -> Predictor:
        """Open a bundle directory; None for the packaged default model.

        backend, device, threads: see `iog.backends.open_backend`. features_budget: bytes of encoder outputs to keep.
        Raises BundleError, BackendError.
        """
        engine = open_backend(backend, device=device, threads=threads)
        return cls(Bundle.open(bundle), engine, features=feature_cache(features_budget))

    def segment(
        self,
        image: ImageSource,
        prompt: Prompt,
        *,
        scores: bool = False,
        timeout: float | None = None,
    ) -> Segmentation:
        """The mask of the prompted object.

        image: encoded bytes, a path, an (H, W, 3) uint8 RGB array, or an Image. scores: keep the logits, for `.scores`.
        timeout: seconds after which no further stage is started.
        Raises InvalidImage, InvalidPrompt, DeadlineExceeded, BackendError; a request that fails changes nothing.
        """
        deadline = Deadline.after(timeout)
        watch = _Stopwatch()
        picture, held = self._image(image, deadline)
        watch.lap("image")
        prompt = prompt.within(picture.size)
        crop = Crop.around(prompt.box, self.bundle.crop)
        clicks = NetworkClicks.of(prompt, crop, self.bundle.crop.corner_offset)
        watch.lap("prompt")
        if self.bundle.manifest.kind == "split":
            logits, cache = self._split(picture, crop, clicks, deadline, watch, held)  # (4g, 4g)
        else:
            logits, cache = self._single(picture, crop, clicks, deadline, watch, held)
        x0, y0, _, _ = crop.visible(picture.size)
        region, bounds = threshold(crop.scores(logits, picture.size), self.bundle.manifest.threshold, x0, y0)
        watch.lap("mask")
        return Segmentation(
            region=region,
            bounds=bounds,
            image_size=picture.size,
            crop=crop,
            threshold=self.bundle.manifest.threshold,
            model=self.bundle.manifest.name,
            bundle_digest=self.bundle.digest,
            image_digest=picture.digest,
            cache=cache,
            timings=watch.laps,
            logits=logits if scores else None,
        )

    def close(self) -> None:
        """Free the engine's memory."""
        for graph in self._graphs.values():
            graph.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _image(self, source: ImageSource, deadline: Deadline) -> tuple[Image, bool]:
        deadline.check("waiting to be served")
        if isinstance(source, Image):
            return source, True
        if isinstance(source, np.ndarray):
            return Image.from_array(source), False
        data = bytes(source) if isinstance(source, bytes | bytearray | memoryview) else read_bytes(source, self._limits)
        digest = digest_of(data)
        image, how = self.images.get_or_compute(digest, lambda: Image.decode(data, self._limits, digest), deadline)
        return image, how == "hit"

    def _split(
        self, image: Image, crop: Crop, clicks: NetworkClicks, deadline: Deadline, watch: _Stopwatch, held: bool
    ) -> tuple[FloatArray, CacheStatus]:
        key = FeatureKey(self.bundle.digest, image.digest, crop, clicks.initial.tobytes())
        features, how = self.features.get_or_compute(
            key, lambda: self._encode(image, crop, clicks, deadline, watch), deadline
        )
        watch.lap("features")
        with self._lane.turn(Priority.HEAD, deadline):
            watch.lap("wait")
            state, count = self._with_refinements(features, clicks)  # (1, 64, g, g)
            watch.lap("clicks")
            (logits,) = self._graphs["head"].run({**features.tensors, "clicks": state.map})  # (1, 4g, 4g)
        watch.lap("head")
        return logits[0], CacheStatus(held, how, count + len(clicks.initial) * (how == "miss"))

    def _encode(
        self, image: Image, crop: Crop, clicks: NetworkClicks, deadline: Deadline, watch: _Stopwatch
    ) -> Features:
        watch.lap("features")
        encoder = self._graphs["encoder"]
        frame = crop.extract(image.pixels, self.bundle.crop.interpolation)[None]  # (1, S, S, 3)
        guidance = clicks.guidance(self.bundle.guidance, initial_only=True)[None]  # (1, 2, S, S)
        watch.lap("crop")
        with self._lane.turn(Priority.ENCODER, deadline):
            watch.lap("wait")
            outputs = encoder.run({"image": frame, "guidance": guidance})
            watch.lap("encoder")
            no_clicks = np.zeros(self._click_map_shape, np.float32)
            initial = ClickState((), self._add(no_clicks, clicks.initial, clicks.initial[:1], clicks.initial[1:]))
            watch.lap("clicks")
        tensors = {t.name: a for t, a in zip(encoder.info.outputs, outputs, strict=True)}
        return Features(tensors, initial, initial)

    def _with_refinements(self, features: Features, clicks: NetworkClicks) -> tuple[ClickState, int]:
        """The click state for all clicks, and how many windows were computed: those of clicks that are new to it."""
        state = features.latest
        if clicks.refinements[: len(state.refinements)] != state.refinements:  # undo, or another annotator
            state = features.initial
        new = clicks.points[len(clicks.initial) + len(state.refinements) :]  # (n, 2)
        if len(new):
            click_map = self._add(state.map, new, clicks.foreground, clicks.background)
            state = features.latest = ClickState(clicks.refinements, click_map)
        return state, len(new)

    def _add(
        self, click_map: FloatArray, new: PointArray, foreground: PointArray, background: PointArray
    ) -> FloatArray:
        """A click map in which the cells that `new` points reach stand for all foreground and background points."""
        spec = self.bundle.guidance
        origins = spec.window_origins(new)
        heat = windows(origins, foreground, background, spec)  # (n, 2, w, w)
        (cells,) = self._graphs["click"].run({"window": heat, "origin": origins})  # (n, 64, c, c)
        result = click_map.copy()
        place(result[0], cells, spec.first_cells(new))
        return result

    def _single(
        self, image: Image, crop: Crop, clicks: NetworkClicks, deadline: Deadline, watch: _Stopwatch, held: bool
    ) -> tuple[FloatArray, CacheStatus]:
        frame = crop.extract(image.pixels, self.bundle.crop.interpolation)[None]  # (1, S, S, 3)
        guidance = clicks.guidance(self.bundle.guidance, initial_only=False)[None]  # (1, 2, S, S)
        watch.lap("crop")
        with self._lane.turn(Priority.ENCODER, deadline):
            watch.lap("wait")
            (logits,) = self._graphs["network"].run({"image": frame, "guidance": guidance})  # (1, 4g, 4g)
        watch.lap("network")
        return logits[0], CacheStatus(held, "none", 0)


class _Stopwatch:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now


def place(click_map: FloatArray, cells: FloatArray, first: PointArray) -> None:
    """Write (n, C, c, c) cells into the (C, g, g) map at their first cells (x, y); what lies outside is left out."""
    grid, side = click_map.shape[-1], cells.shape[-1]
    for block, (x, y) in zip(cells, first.tolist(), strict=True):
        x0, x1, y0, y1 = max(x, 0), min(x + side, grid), max(y, 0), min(y + side, grid)
        if x0 < x1 and y0 < y1:
            click_map[:, y0:y1, x0:x1] = block[:, y0 - y : y1 - y, x0 - x : x1 - x]
