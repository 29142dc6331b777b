"""The click path: from an image and a prompt to a mask, in one process."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from iog.arrays import FloatArray, UInt8Array
from iog.backends import FEATURES_BUDGET, open_backend
from iog.backends.base import Backend, FeaturesFull, Graph, open_graphs, stack
from iog.batcher import Batcher
from iog.bundle import Bundle
from iog.click_maps import ClickMaps, guidance_for
from iog.clicks import NetworkClicks
from iog.cores import Cores
from iog.crop import Crop
from iog.deadline import Deadline
from iog.errors import BackendError, OutOfMemory, UnknownImage
from iog.features import LRU, FeatureKey, Features
from iog.image import DEFAULT_LIMITS, Image, ImageLimits, ImageSource, digest_of, read_bytes
from iog.lane import Lane, Priority
from iog.prompt import Prompt, Size
from iog.segmentation import CacheStatus, Prediction, Segmentation

IMAGES_BUDGET = 512 << 20
SIZES = 1 << 14  # of images, known when the images are held no more; a hundred bytes each
ENTRY_BYTES = 1024  # that an image takes beside its pixels: its digest, and places in dictionaries
_LOADS = itertools.count()  # of bundles onto devices

T = TypeVar("T")
FeatureCache = LRU[FeatureKey, Features]


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An image that was decoded once, held or not: enough for a click on an object whose features are held."""

    digest: str
    size: Size


class ImageCache(LRU[str, Image]):
    """Decoded images by digest, under a budget in bytes: of their pixels, and of what remembers each.

    decoding: turns at it, as each image takes ten bytes a pixel meanwhile, which no budget counts.
    cutting: turns at cutting frames out of images: a crowd's first clicks would take the cores from its heads.
    """

    def __init__(self, budget: int = IMAGES_BUDGET) -> None:
        super().__init__(budget, lambda image: image.pixels.nbytes + ENTRY_BYTES)
        self.decoding = Cores()
        self.cutting = Cores()
        self._known: LRU[str, KnownImage] = LRU(SIZES, lambda known: 1)

    def put(self, key: str, value: Image) -> None:
        """Keep an image, evicting the least recently used ones."""
        super().put(key, value)
        self._known.put(key, KnownImage(key, value.size))

    def find(self, digest: str) -> KnownImage | None:
        """What is known of an image, which becomes the most recently used one if it is held."""
        image = self.get(digest)
        return self._known.get(digest) if image is None else KnownImage(digest, image.size)

    def decoded(
        self, data: bytes, digest: str, limits: ImageLimits, deadline: Deadline
    ) -> tuple[Image, Literal["hit", "miss", "joined"]]:
        """The image of these bytes. Raises what Image.decode raises, and DeadlineExceeded before it is begun."""

        def decode() -> Image:
            with self.decoding.one(deadline, "decode the image"):
                return Image.decode(data, limits, digest)

        return self.get_or_compute(digest, decode, deadline)


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
        self.images = images if images is not None else ImageCache()
        self._lane = lane or Lane()
        self._limits = limits
        self._graphs = open_graphs(backend, bundle)
        self._portable = _are_arrays(self._graphs, bundle)
        self._features_of = bundle.digest if self._portable else f"{bundle.digest}@{next(_LOADS)}"
        self._heads = Batcher(self._run_heads, self._lane, backend.heads)
        if "click" in self._graphs:
            self._click_maps = ClickMaps(self._graphs["click"], bundle.guidance)

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str] | None = None,
        backend: str = "ort",
        *,
        device: str = "cpu",
        threads: int = 0,
        features_budget: int = FEATURES_BUDGET,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> Predictor:
        """Open a bundle directory; None for the packaged default model.

        backend, device, threads: see `iog.backends.open_backend`. features_budget: bytes of encoder outputs to keep.
        limits: of encoded images; arrays and Images are taken as they are.
        Raises BundleError, BackendError.
        """
        engine = open_backend(backend, device=device, threads=threads, features_budget=features_budget)
        return cls(Bundle.open(bundle), engine, features=feature_cache(features_budget), limits=limits)

    def segment(
        self,
        image: ImageSource,
        prompt: Prompt,
        *,
        scores: bool = False,
        timeout: float | Deadline | None = None,
    ) -> Segmentation:
        """The mask of the prompted object.

        image: encoded bytes, a path, an (H, W, 3) uint8 RGB array, or an Image. For many clicks on one make an Image
            of it, `Image.of(...)`: anything else is hashed at each click, which takes milliseconds.
        scores: keep the logits, for `.scores`.
        timeout: seconds, or a deadline, after which no further stage is started.
        Raises InvalidImage, InvalidPrompt, DeadlineExceeded, BackendError; a request that fails changes nothing.
        """
        deadline = timeout if isinstance(timeout, Deadline) else Deadline.after(timeout)
        prediction = self.predict(image, prompt, timeout=deadline)
        deadline.check("making the mask")
        return prediction.segmentation(scores=scores)

    def predict(
        self, image: ImageSource | KnownImage, prompt: Prompt, *, timeout: float | Deadline | None = None
    ) -> Prediction:
        """What the mask of the prompted object is made from; see `segment`, which makes it.

        Raises UnknownImage, too, for a KnownImage of whose object no features are held.
        """
        deadline = timeout if isinstance(timeout, Deadline) else Deadline.after(timeout)
        watch = _Stopwatch()
        picture = self._picture(image, deadline)
        del image
        watch.lap("image")
        prompt = prompt.within(picture.size)
        crop = Crop.around(prompt.box, self.bundle.crop)
        clicks = NetworkClicks.of(prompt, crop, self.bundle.crop.corner_offset)
        watch.lap("prompt")
        if self.bundle.manifest.kind == "split":
            logits, cache = self._split(picture, crop, clicks, deadline, watch)  # (4g, 4g)
        else:
            logits, cache = self._single(picture, crop, clicks, deadline, watch)
        return Prediction(
            logits=logits,
            image_size=picture.size,
            crop=crop,
            threshold=self.bundle.manifest.threshold,
            model=self.bundle.manifest.name,
            bundle_digest=self.bundle.digest,
            image_digest=picture.digest,
            cache=cache,
            timings=watch.laps,
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

    def _picture(self, source: ImageSource | KnownImage, deadline: Deadline) -> _Picture:
        deadline.check("waiting to be served")
        if isinstance(source, KnownImage):
            return _Picture(source, source.digest in self.images, partial(self._held, source.digest))
        if isinstance(source, Image):
            return _Picture.of(source, True)
        if isinstance(source, np.ndarray):
            return _Picture.of(Image.from_array(source), False)
        data = bytes(source) if isinstance(source, bytes | bytearray | memoryview) else read_bytes(source, self._limits)
        digest = digest_of(data)
        decode = partial(self.images.decoded, data, digest, self._limits, deadline)
        known = self.images.find(digest)
        if known is not None:
            return _Picture(known, digest in self.images, lambda: decode()[0])
        image, how = decode()
        return _Picture.of(image, how == "hit")

    def _held(self, digest: str) -> Image:
        image = self.images.get(digest)
        if image is None:
            raise UnknownImage(digest)
        return image

    def _split(
        self, picture: _Picture, crop: Crop, clicks: NetworkClicks, deadline: Deadline, watch: _Stopwatch
    ) -> tuple[FloatArray, CacheStatus]:
        key = FeatureKey(self._features_of, picture.digest, crop, clicks.initial.tobytes())
        with ExitStack() as turn:
            features, how = self.features.get_or_compute(
                key, lambda: self._encode(picture, crop, clicks, deadline, watch, turn), deadline
            )
            picture.let_go()
            watch.lap("features")
            run = _HeadRun(features, clicks, watch)
            if how == "miss":  # in the encoder's turn: another first click's encoder would come before this one's mask
                deadline.check("waiting for the device")
                ((logits, count),) = self._run_heads([run])
            else:
                logits, count = self._heads.run(run, deadline)  # (4g, 4g)
        return logits, CacheStatus(picture.held, how, count + len(clicks.initial) * (how == "miss"))

    def _encode(
        self,
        picture: _Picture,
        crop: Crop,
        clicks: NetworkClicks,
        deadline: Deadline,
        watch: _Stopwatch,
        turn: ExitStack,
    ) -> Features:
        """turn: what is left of the encoder's turn."""
        watch.lap("features")
        encoder = self._graphs["encoder"]
        frame = self._frame(picture, crop, deadline, watch)
        guidance = guidance_for(encoder, clicks, self.bundle.guidance, initial_only=True)
        watch.lap("crop")
        give_way = turn.enter_context(self._lane.turn(Priority.ENCODER, deadline))
        watch.lap("wait")
        outputs = self._with_room(lambda: encoder.run({"image": frame, **guidance}))
        watch.lap("encoder")
        give_way()
        watch.lap("wait")
        initial = self._with_room(lambda: self._click_maps.initial(clicks))
        watch.lap("clicks")
        tensors = {t.name: a for t, a in zip(encoder.info.outputs, outputs, strict=True)}
        return Features(tensors, initial)

    def _run_heads(self, runs: Sequence[_HeadRun]) -> list[tuple[FloatArray, int]]:
        """The logits of each, (4g, 4g), and how many of its windows were computed."""
        for run in runs:
            run.watch.lap("wait")
        states, counts = self._with_room(lambda: self._click_maps.refined([(r.features, r.clicks) for r in runs]))
        for run in runs:
            run.watch.lap("clicks")
        names = runs[0].features.tensors
        inputs = {name: stack([run.features.tensors[name] for run in runs]) for name in names}
        inputs["clicks"] = stack([state.map for state in states])  # (B, 64, g, g)
        (logits,) = self._with_room(lambda: self._graphs["head"].run(inputs))  # (B, 4g, 4g)
        _check_finite(logits)
        for run in runs:
            run.watch.lap("head")
        return list(zip(logits, counts, strict=True))

    def _with_room(self, run: Callable[[], T]) -> T:
        """Run; where memory is too small, with less and less remembered of other objects, as far as that frees any.

        Raises OutOfMemory when nothing is left to forget.
        """
        forget = 1
        while True:
            try:
                return run()
            except FeaturesFull:  # another model's slots are in other memory
                if not self.features.evict(1, lambda key: key.bundle == self._features_of):
                    raise
            except OutOfMemory:  # a device's slots stay allocated when free
                if not self._portable or not self.features.evict(forget):
                    raise
                forget *= 2

    def _single(
        self, picture: _Picture, crop: Crop, clicks: NetworkClicks, deadline: Deadline, watch: _Stopwatch
    ) -> tuple[FloatArray, CacheStatus]:
        frame = self._frame(picture, crop, deadline, watch)
        network = self._graphs["network"]
        guidance = guidance_for(network, clicks, self.bundle.guidance, initial_only=False)
        watch.lap("crop")
        with self._lane.turn(Priority.ENCODER, deadline):
            watch.lap("wait")
            (logits,) = self._with_room(lambda: network.run({"image": frame, **guidance}))  # (1, 4g, 4g)
            _check_finite(logits)
        watch.lap("network")
        return logits[0], CacheStatus(picture.held, "none", 0)

    def _frame(self, picture: _Picture, crop: Crop, deadline: Deadline, watch: _Stopwatch) -> UInt8Array:
        """(1, S, S, 3)."""
        if not picture.held:  # decoding has turns of its own
            picture.find()
            watch.lap("image")
        with self.images.cutting.one(deadline, "cut the image"):
            watch.lap("wait")
            pixels = picture.taken()
            watch.lap("image")
            return crop.extract(pixels, self.bundle.crop.interpolation)[None]


class _Picture:
    """The image of a request, let go as soon as the network's frame is cut from it, or turns out not to be needed.

    Requests wait for the device after that, and those of held images before it, too: meanwhile they would keep, beside
    all budgets, what the cache has evicted.
    """

    def __init__(self, known: KnownImage, held: bool, find: Callable[[], Image]) -> None:
        self.digest = known.digest
        self.size = known.size
        self.held = held
        self._find: Callable[[], Image] | None = find

    @classmethod
    def of(cls, image: Image, held: bool) -> _Picture:
        return cls(KnownImage(image.digest, image.size), held, lambda: image)

    def find(self) -> None:
        """Decode it if need be, and keep it until it is taken. Raises UnknownImage, and what decoding raises."""
        assert self._find is not None
        image = self._find()
        self._find = lambda: image

    def taken(self) -> UInt8Array:
        """(H, W, 3), once. Raises what `find` raises if the image was not found."""
        assert self._find is not None
        find, self._find = self._find, None
        return find().pixels

    def let_go(self) -> None:
        self._find = None


class _HeadRun(NamedTuple):
    features: Features
    clicks: NetworkClicks
    watch: _Stopwatch


class _Stopwatch:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now


def _check_finite(logits: FloatArray) -> None:
    """Raises BackendError if a network has overflowed: NaN is below every threshold, which looks like an empty mask."""
    if not np.isfinite(logits).all():
        raise BackendError("the network's output is not finite; a bundle of higher precision may be")


def _are_arrays(graphs: Mapping[str, Graph], bundle: Bundle) -> bool:
    """Whether features are arrays that any engine takes, rather than places on the device of these graphs."""
    if "encoder" not in graphs:
        return True
    declared = bundle.manifest.graphs["encoder"].outputs
    return [t.name for t in graphs["encoder"].info.outputs] == [t.name for t in declared]
