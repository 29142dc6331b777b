"""How good a network is while it trains, measured as `iog evaluate` measures."""

from __future__ import annotations

from collections.abc import Iterable

from iog_export.datasets import Target
from iog_export.evaluation.figures import Figures, by_set, figures
from iog_export.evaluation.protocol import Protocol, Segmenter
from iog_export.evaluation.session import MODEL, annotated

PROTOCOL = Protocol(clicks=5)


def summarize(segment: Segmenter, targets: Iterable[Target]) -> dict[str, Figures]:
    """A segmenter's figures by data set, with five clicks."""
    sets = by_set(annotated(segment, targets, PROTOCOL))
    return {name: figures(records, MODEL, PROTOCOL.clicks, goals=False) for name, records in sets.items()}
