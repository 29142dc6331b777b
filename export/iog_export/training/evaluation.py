"""How good the masks are after three, four, five clicks of the simulated annotator, for anything that segments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from iog.arrays import BoolArray, UInt8Array
from iog.clicks import NetworkClicks
from iog.crop import Crop, CropSpec
from iog.guidance import GuidanceSpec
from iog.prompt import Box, Point, Prompt, Size

from iog_export.networks import IOG, Features

from .annotator import correction, inside_point, loosened, tight_box
from .data import Target

# (h, w, 3) uint8 RGB and a prompt -> (h, w) bool
Segmenter = Callable[[UInt8Array, Prompt], BoolArray]

MIN_COCO_AREA = 64 * 64  # smaller objects of crowded scenes say little about a clicking annotator's work


@dataclass(frozen=True, slots=True)
class Protocol:
    """How the annotator draws.

    looseness: each side of the tight box moves outwards by this share of the box's width or height.
    clicks: clicks in all; the first three are the box's corners and the inside point, the others correct the mask.
    inside_radius: the inside point moves by up to this many pixels of a 512 network frame (table 7 of the paper).
    """

    looseness: float = 0.05
    clicks: int = 5
    inside_radius: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clicks < 3:
            raise ValueError(f"{self.clicks} clicks; a prompt has at least 3: two corners and the inside point")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One object's intersection over union after 3, 4, ... clicks."""

    name: str
    id: int
    collection: str
    area: int
    fill: float
    ious: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """A set's figures: its number of objects; mean IoU and the share of objects below 0.5, after 3, 4, ... clicks."""

    objects: int
    mean_iou: tuple[float, ...]
    below_half: tuple[float, ...]


def representative(targets: Iterable[Target]) -> list[Target]:
    """The objects that count in an evaluation: all, but of coco those of MIN_COCO_AREA and above."""
    return [t for t in targets if t.photograph.collection != "coco" or t.area >= MIN_COCO_AREA]


def spread(targets: Sequence[Target], count: int) -> list[Target]:
    """At most `count` objects, evenly from the list: the same ones each time."""
    indices = np.unique(np.linspace(0, len(targets) - 1, min(count, len(targets))).round().astype(int))
    return [targets[i] for i in indices]


def evaluate(segment: Segmenter, targets: Iterable[Target], protocol: Protocol | None = None) -> list[Outcome]:
    """Annotate each object: a loosened box, a point inside, then clicks on the largest error of the mask just seen."""
    protocol = protocol or Protocol()
    return [_annotate(segment, target, protocol, index) for index, target in enumerate(targets)]


def _annotate(segment: Segmenter, target: Target, protocol: Protocol, index: int) -> Outcome:
    truth, known, pixels = target.mask, target.known, target.photograph.pixels
    size = Size(*truth.shape)
    box = loosened(tight_box(truth), (protocol.looseness,) * 4, size)
    prompt = Prompt(box, _inside(truth, box, protocol, index))
    ious: list[float] = []
    for extra in range(protocol.clicks - 2):
        mask = segment(pixels, prompt)
        ious.append(iou(mask, truth, known))
        if extra < protocol.clicks - 3 and (fix := correction(mask, truth, known)) is not None:
            prompt = prompt.with_click(fix.click.x, fix.click.y, fix.click.positive)
    photograph = target.photograph
    return Outcome(photograph.name, target.id, photograph.collection, target.area, target.fill, tuple(ious))


def _inside(truth: BoolArray, box: Box, protocol: Protocol, index: int) -> Point:
    if not protocol.inside_radius:
        return inside_point(truth)
    rng = np.random.default_rng((protocol.seed, index))
    longest = max(box.x1 - box.x0, box.y1 - box.y0) + 1
    return inside_point(truth, rng, radius=protocol.inside_radius / 512 * longest)


def iou(mask: BoolArray, truth: BoolArray, known: BoolArray) -> float:
    """Intersection over union where the truth is known."""
    union = ((mask | truth) & known).sum()
    return float((mask & truth & known).sum() / union) if union else 1.0


def summarize(
    outcomes: Iterable[Outcome], key: Callable[[Outcome], str] = lambda o: o.collection
) -> dict[str, Summary]:
    """Figures per set, or per whatever `key` names."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    result: dict[str, Summary] = {}
    for name, members in sorted(groups.items()):
        ious = np.array([m.ious for m in members])  # (objects, clicks - 2)
        means, shares = ious.mean(axis=0), (ious < 0.5).mean(axis=0)
        result[name] = Summary(len(members), tuple(map(float, means)), tuple(map(float, shares)))
    return result


def fill_group(outcome: Outcome) -> str:
    """The set and how much of its box the object covers: hollow and thin objects are the hard ones."""
    level = "< 0.35" if outcome.fill < 0.35 else "0.35 .. 0.55" if outcome.fill < 0.55 else ">= 0.55"
    return f"{outcome.collection}, fill {level}"


def filled_box(pixels: UInt8Array, prompt: Prompt) -> BoolArray:
    """The simplest baseline: the whole box."""
    mask = np.zeros(pixels.shape[:2], bool)
    x0, y0, x1, y1 = prompt.box.pixels
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def ellipse(pixels: UInt8Array, prompt: Prompt) -> BoolArray:
    """The better simple baseline: the ellipse that touches the box's sides."""
    x0, y0, x1, y1 = prompt.box.pixels
    y, x = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    radius_x, radius_y = (x1 - x0 + 1) / 2, (y1 - y0 + 1) / 2
    return np.asarray(((x - (x0 + x1) / 2) / radius_x) ** 2 + ((y - (y0 + y1) / 2) / radius_y) ** 2 <= 1)


def torch_segmenter(
    network: IOG, crop_spec: CropSpec, guidance_spec: GuidanceSpec, threshold: float = 0.5
) -> Segmenter:
    """A network in evaluation mode as a segmenter, with the runtime's geometry; it encodes once per object."""
    last: tuple[tuple[int, Box, Point], Features] | None = None
    network.eval()

    @torch.inference_mode()
    def segment(pixels: UInt8Array, prompt: Prompt) -> BoolArray:
        nonlocal last
        size = Size(pixels.shape[0], pixels.shape[1])
        prompt = prompt.within(size)
        crop = Crop.around(prompt.box, crop_spec)
        points = NetworkClicks.of(prompt, crop, crop_spec.corner_offset)
        key = (id(pixels), prompt.box, prompt.inside)
        if last is None or last[0] != key:
            image = crop.extract(pixels, crop_spec.interpolation).transpose(2, 0, 1)
            inputs = np.concatenate([image, points.guidance(guidance_spec, initial_only=True)])
            last = key, network.encode(torch.from_numpy(inputs[None]).float())
        heat = points.guidance(guidance_spec, initial_only=False)
        logits = network.decode(last[1], torch.from_numpy(heat[None]).float()).logits[0, 0].float().numpy()
        mask = np.zeros(pixels.shape[:2], bool)
        x0, y0, x1, y1 = crop.visible(size)
        mask[y0:y1, x0:x1] = crop.scores(logits, size) > threshold
        return mask

    return segment
