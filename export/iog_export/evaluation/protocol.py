"""How the annotator draws, and which objects count."""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

from iog_export.training import evaluation
from iog_export.training.evaluation import Protocol, Segmenter, ellipse, filled_box, iou, representative

__all__ = ["Protocol", "Segmenter", "ellipse", "filled_box", "iou", "representative", "spread"]

T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly from the list: the same ones each time."""
    return cast(list[T], evaluation.spread(cast(Any, items), count))
