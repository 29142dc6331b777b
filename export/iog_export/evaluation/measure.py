"""The measurement of an object: by the model, by the baselines, and as the annotator draws less well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from iog.arrays import BoolArray, UInt8Array
from iog.backends import Backend, open_backend
from iog.bundle import Bundle
from iog.image import Image
from iog.predictor import Predictor, feature_cache
from iog.prompt import Prompt

from iog_export.datasets import DataError, DataSet, Item

from .baselines import BASELINES
from .overlap import iou
from .protocol import Protocol, Segmenter
from .records import Record, Settings, Track
from .session import MODEL, annotate

BASELINE_CLICKS = 5  # GrabCut takes about a second for each
SWEEP_LOOSENESS = (0.0, 0.05, 0.10, 0.15, 0.20)
SWEEP_RADIUS = 30.0  # table 7 of the paper
FEATURES_BUDGET = 256 << 20  # one object is annotated at a time


class Deployed:
    """A predictor as a segmenter."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._last: tuple[UInt8Array, Image] | None = None

    def __call__(self, pixels: UInt8Array, prompt: Prompt) -> BoolArray:
        """(h, w), the mask of an (h, w, 3) uint8 RGB image."""
        if self._last is None or self._last[0] is not pixels:
            self._last = pixels, Image.from_array(pixels)
        return self.predictor.segment(self._last[1], prompt).mask


def opened(bundle: Path, backend: str, device: str, threads: int) -> Predictor:
    """With the engine that figures name. Raises BackendUnavailable where only another one could run the bundle."""
    engine = open_backend(backend, device=device, threads=threads, features_budget=FEATURES_BUDGET, fall_back=False)
    return predictor_of(Bundle.open(bundle), engine)


def predictor_of(bundle: Bundle, engine: Backend) -> Predictor:
    """One that keeps the features of few objects: annotated objects do not come back."""
    return Predictor(bundle, engine, features=feature_cache(FEATURES_BUDGET))


class Bench:
    """Measures objects of a data set, one after the other."""

    def __init__(self, data: DataSet, settings: Settings, segmenters: Mapping[str, Segmenter]) -> None:
        self._data = data
        self._settings = settings
        self._segmenters = segmenters

    @classmethod
    def open(cls, data: DataSet, settings: Settings, bundle: Path, threads: int) -> Bench:
        """With the bundle's model, and the baselines if the settings ask for them."""
        predictor = opened(bundle, settings.backend, settings.device, threads)
        return cls(data, settings, {MODEL: Deployed(predictor), **(BASELINES if settings.baselines else {})})

    def measure(self, item: Item) -> Record:
        """Annotate an object with each segmenter. One that raises is noted with its error."""
        try:
            target = self._data.target(item)
        except DataError as e:
            return Record.of(item, None, {}, dict.fromkeys(self._segmenters, str(e)))
        protocol = self._settings.protocol
        start = protocol.opening(target)
        tracks: dict[str, Track] = {}
        errors: dict[str, str] = {}
        for name, segment in self._segmenters.items():
            clicks = protocol.clicks if name == MODEL else min(protocol.clicks, BASELINE_CLICKS)
            with _noted(errors, name):
                tracks[name] = annotate(segment, target, start, clicks)
        sweep: dict[str, float] = {}
        truth, known, model = target.mask, target.known, self._segmenters[MODEL]
        for label, condition in conditions(protocol).items() if self._settings.sweep else ():
            with _noted(errors, f"{MODEL}, {label}"):
                if condition == replace(protocol, clicks=3) and MODEL in tracks:
                    sweep[label] = tracks[MODEL].ious[0]
                else:
                    sweep[label] = iou(model(target.photograph.pixels, condition.opening(target)), truth, known)
        return Record.of(item, start, tracks, errors, sweep)


def conditions(protocol: Protocol) -> dict[str, Protocol]:
    """What a sweep varies, one at a time, by name: how loose the box is, and where the inside point lies."""
    base = Protocol(clicks=3, seed=protocol.seed)
    loose = {_loose(share): replace(base, looseness=share) for share in SWEEP_LOOSENESS}
    return {**loose, f"inside point moved by {SWEEP_RADIUS:g}": replace(base, inside_radius=SWEEP_RADIUS)}


def _loose(share: float) -> str:
    return f"box {100 * share:g} % loose"


REFERENCE = _loose(Protocol().looseness)  # the condition that the others are compared with


@contextmanager
def _noted(errors: dict[str, str], name: str) -> Iterator[None]:
    """Note an exception instead of letting it end the evaluation."""
    try:
        yield
    except Exception as e:
        errors[name] = f"{type(e).__name__}: {e}"
