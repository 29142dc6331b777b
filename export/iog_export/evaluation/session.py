"""One object with one segmenter: an annotator draws, sees the mask, and corrects it."""

from __future__ import annotations

from collections.abc import Iterable

from iog.prompt import Click, Prompt

from iog_export.annotator import correction
from iog_export.datasets import Target

from .overlap import boundary_iou, iou
from .protocol import Protocol, Segmenter
from .records import Record, Track

MODEL = "model"  # among the segmenters
COUNTS = (3, 4, 5, 8)  # clicks after which figures are reported
GOALS = (0.85, 0.90)  # IoU; the clicks needed to reach them are reported


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


def annotated(segment: Segmenter, targets: Iterable[Target], protocol: Protocol) -> list[Record]:
    """Annotate each object with one segmenter, `MODEL` in the records."""
    records = []
    for target in targets:
        start = protocol.opening(target)
        records.append(Record.of(target.item, start, {MODEL: annotate(segment, target, start, protocol.clicks)}))
    return records


def clicks_to(track: Track, goal: float) -> int | None:
    """Clicks after which the IoU was `goal` for the first time; None if it never was."""
    return next((count for count, value in enumerate(track.ious, 3) if value >= goal), None)


def _values(click: Click) -> tuple[float, float, bool]:
    return click.x, click.y, click.positive
