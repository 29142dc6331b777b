"""gallery_SET.png: the best, the median and the worst object of a set, to see what the figures stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from iog.arrays import UInt8Array
from iog.cli.output import picture, write_file
from iog.overlay import PANEL_SIDE, overlay, panel
from iog.prompt import Prompt

from .data import read_photograph
from .figures import ALL, by_set
from .measure import BASELINE_CLICKS, MODEL
from .protocol import Segmenter
from .records import Record


def draw_galleries(out: Path, root: Path, records: Sequence[Record], segment: Segmenter, clicks: int) -> list[Path]:
    """One file a set, three objects by IoU after three clicks: the label, and the masks after three and five clicks.

    The masks are made again from the clicks in the records. Returns the files.
    """
    paths = []
    for name, members in by_set(records).items():
        ranked = sorted((r for r in members if MODEL in r.tracks), key=lambda r: r.tracks[MODEL].ious[0])
        if name == ALL or not ranked:
            continue
        chosen = {"best": ranked[-1], "median": ranked[len(ranked) // 2], "worst": ranked[0]}
        rows = [_row(root, title, record, segment, min(clicks, BASELINE_CLICKS)) for title, record in chosen.items()]
        paths.append(out / f"gallery_{name}.png")
        write_file(paths[-1], picture(_stacked(rows), paths[-1]))
    return paths


def _row(root: Path, title: str, record: Record, segment: Segmenter, clicks: int) -> UInt8Array:
    photograph = read_photograph(root, record.name)
    first = record.prompt(MODEL, 3)
    truth = np.asarray(photograph.labels == record.id)
    label = f"{title} of its set: {record.name}, object {record.id}"
    pictures = [overlay(photograph.pixels, Prompt(first.box, first.inside), truth, label, long_side=PANEL_SIDE)]
    for count in sorted({3, clicks}):
        prompt = record.prompt(MODEL, count)
        caption = f"{count} clicks: IoU {record.tracks[MODEL].ious[count - 3]:.3f}"
        mask = segment(photograph.pixels, prompt)
        pictures.append(overlay(photograph.pixels, prompt, mask, caption, long_side=PANEL_SIDE))
    return panel(pictures)


def _stacked(rows: Sequence[UInt8Array]) -> UInt8Array:
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows])
