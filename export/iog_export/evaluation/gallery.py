"""gallery_SET.jpg: the best, the median and the worst object of a set, to see what the figures stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from iog.arrays import BoolArray, UInt8Array
from iog.cli.output import picture, write_file
from iog.overlay import PANEL_SIDE, overlay, panel
from iog.prompt import Box, Point, Prompt

from iog_export.datasets import DataSet

from .figures import each_set
from .measure import BASELINE_CLICKS
from .protocol import Segmenter
from .records import Record
from .session import MODEL

MARGIN, MIN_MARGIN = 0.35, 24  # around the box: a share of its longer side, and pixels


def draw_galleries(out: Path, data: DataSet, records: Sequence[Record], segment: Segmenter, clicks: int) -> list[Path]:
    """One file a set, three objects by IoU after three clicks: the label, and the masks after three and five clicks.

    The masks are made again from the clicks in the records. Returns the files.
    """
    paths = []
    for name, members in each_set(records).items():
        ranked = sorted((r for r in members if MODEL in r.tracks), key=lambda r: r.tracks[MODEL].ious[0])
        if not ranked:
            continue
        titles: dict[int, str] = {}  # of few objects, one may be several of these
        for title, place in (("best", len(ranked) - 1), ("median", len(ranked) // 2), ("worst", 0)):
            titles[place] = f"{titles[place]}, {title}" if place in titles else title
        most = min(clicks, BASELINE_CLICKS)
        rows = [_row(data, title, ranked[place], segment, most) for place, title in titles.items()]
        paths.append(out / f"gallery_{name}.jpg")
        write_file(paths[-1], picture(_stacked(rows), paths[-1]))
    return paths


def _row(data: DataSet, title: str, record: Record, segment: Segmenter, clicks: int) -> UInt8Array:
    photograph = data.photograph(record.name)
    pixels, first = photograph.pixels, record.prompt(MODEL, 3)
    label = f"label; {title} of its set: {record.name}, object {record.id}"
    pictures = [_picture(pixels, first, photograph.labels.mask(record.id), label)]
    for count in sorted({3, clicks}):
        prompt = record.prompt(MODEL, count)
        caption = f"{count} clicks: IoU {record.tracks[MODEL].ious[count - 3]:.3f}"
        pictures.append(_picture(pixels, prompt, segment(pixels, prompt), caption))
    return panel(pictures)


def _picture(pixels: UInt8Array, prompt: Prompt, mask: BoolArray, caption: str) -> UInt8Array:
    """The box and its surroundings, as wide as the annotator would zoom in."""
    x0, y0, x1, y1 = prompt.box.pixels
    margin = max(round(MARGIN * max(x1 - x0, y1 - y0)), MIN_MARGIN)
    left, top = max(x0 - margin, 0), max(y0 - margin, 0)
    part = slice(top, y1 + 1 + margin), slice(left, x1 + 1 + margin)
    moved = Prompt(
        Box(prompt.box.x0 - left, prompt.box.y0 - top, prompt.box.x1 - left, prompt.box.y1 - top),
        Point(prompt.inside.x - left, prompt.inside.y - top),
        tuple(replace(click, x=click.x - left, y=click.y - top) for click in prompt.clicks),
    )
    return overlay(pixels[part], moved, mask[part], caption, long_side=PANEL_SIDE)


def _stacked(rows: Sequence[UInt8Array]) -> UInt8Array:
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows])
