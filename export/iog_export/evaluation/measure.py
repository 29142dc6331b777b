"""The measurement of one object: an annotator draws, sees the mask, and corrects it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from iog.arrays import BoolArray, UInt8Array
from iog.image import Image
from iog.predictor import Predictor
from iog.prompt import Click, Prompt, Size

from .annotator import correction, inside_point, loosened, tight_box
from .baselines import BASELINES
from .boundary import boundary_iou
from .data import Photograph, Target, read_photograph
from .objects import Item
from .protocol import Protocol, Segmenter, iou
from .records import Record, Settings, Track

MODEL = "model"  # among the segmenters
COUNTS = (3, 4, 5, 8)  # clicks after which figures are reported
GOALS = (0.85, 0.90)  # IoU; the clicks needed to reach them are reported
BASELINE_CLICKS = 5  # GrabCut takes about a second for each
SWEEP_LOOSENESS = (0.0, 0.05, 0.10, 0.15, 0.20)
SWEEP_RADIUS = 30.0  # table 7 of the paper
FEATURES_BUDGET = 256 << 20  # one object is annotated at a time

NETWORK_FRAME = 512  # the frame that radii of inside points are given in


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


class Bench:
    """Measures objects of one data folder, one after the other."""

    def __init__(self, root: Path, settings: Settings, segmenters: Mapping[str, Segmenter]) -> None:
        self._root = root
        self._settings = settings
        self._segmenters = segmenters
        self._photograph: Photograph | None = None

    @classmethod
    def open(cls, root: Path, settings: Settings, bundle: Path, threads: int) -> Bench:
        """With the bundle's model, and the baselines if the settings ask for them."""
        predictor = Predictor.open(
            bundle, settings.backend, device=settings.device, threads=threads, features_budget=FEATURES_BUDGET
        )
        return cls(root, settings, {MODEL: Deployed(predictor), **(BASELINES if settings.baselines else {})})

    def measure(self, item: Item) -> Record:
        """Annotate an object with each segmenter. One that raises is noted with its error. Raises DataError."""
        if self._photograph is None or self._photograph.name != item.name:
            self._photograph = read_photograph(self._root, item.name)
        target = item.target(self._photograph)
        protocol = self._settings.protocol
        start = opening(target, protocol)
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
                    sweep[label] = iou(model(self._photograph.pixels, opening(target, condition)), truth, known)
        box, inside = start.box, start.inside
        return Record(
            name=item.name,
            id=item.id,
            area=target.area,
            fill=target.fill,
            box=(box.x0, box.y0, box.x1, box.y1),
            inside=(inside.x, inside.y),
            tracks=tracks,
            errors=errors,
            sweep=sweep,
        )


def opening(target: Target, protocol: Protocol) -> Prompt:
    """The first three clicks: a loosened box and a point inside; the same ones whichever other objects are measured."""
    truth = target.mask
    box = loosened(tight_box(truth), (protocol.looseness,) * 4, Size(*truth.shape))
    if not protocol.inside_radius:
        return Prompt(box, inside_point(truth))
    rng = np.random.default_rng((protocol.seed, zlib.crc32(target.photograph.name.encode()), target.id))
    longest = max(box.x1 - box.x0, box.y1 - box.y0) + 1
    return Prompt(box, inside_point(truth, rng, radius=protocol.inside_radius / NETWORK_FRAME * longest))


def annotate(segment: Segmenter, target: Target, start: Prompt, clicks: int) -> Track:
    """Up to `clicks` clicks, those from the fourth on in the middle of the largest error of the mask just seen.

    It ends sooner once no later mask counts: after the last of COUNTS, when the last of GOALS has been reached. No
    pixel is clicked twice: a second click there would tell the segmenter nothing.
    """
    truth, known = target.mask, target.known
    clickable = known.copy()
    prompt = start
    ious: list[float] = []
    boundary_ious: list[float] = []
    for count in range(3, clicks + 1):
        mask = segment(target.photograph.pixels, prompt)
        ious.append(iou(mask, truth, known))
        boundary_ious.append(boundary_iou(mask, truth, known))
        if count == clicks or (count >= COUNTS[-1] and max(ious) >= GOALS[-1]):
            break
        fix = correction(mask, truth, clickable)
        if fix is None:  # nothing is left to correct: the mask stays as it is
            remaining = max(0, min(clicks, COUNTS[-1]) - count)
            ious += ious[-1:] * remaining
            boundary_ious += boundary_ious[-1:] * remaining
            break
        clickable[int(fix.click.y), int(fix.click.x)] = False
        prompt = prompt.with_click(fix.click.x, fix.click.y, fix.click.positive)
    return Track(clicks=tuple(map(_values, prompt.clicks)), ious=tuple(ious), boundary_ious=tuple(boundary_ious))


def conditions(protocol: Protocol) -> dict[str, Protocol]:
    """What a sweep varies, by name: how loose the box is, and where the inside point lies."""
    base = replace(protocol, clicks=3)
    loose = {f"box {100 * share:g} % loose": replace(base, looseness=share) for share in SWEEP_LOOSENESS}
    return {**loose, f"inside point moved by {SWEEP_RADIUS:g}": replace(base, inside_radius=SWEEP_RADIUS)}


def clicks_to(track: Track, goal: float) -> int | None:
    """Clicks after which the IoU was `goal` for the first time; None if it never was."""
    return next((count for count, value in enumerate(track.ious, 3) if value >= goal), None)


def _values(click: Click) -> tuple[float, float, bool]:
    return click.x, click.y, click.positive


@contextmanager
def _noted(errors: dict[str, str], name: str) -> Iterator[None]:
    """Note an exception instead of letting it end the evaluation."""
    try:
        yield
    except Exception as e:
        errors[name] = f"{type(e).__name__}: {e}"
