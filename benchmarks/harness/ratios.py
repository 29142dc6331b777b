"""How many times faster than PyTorch eager: what compares ways to run one network, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .record import DEFAULT_MODEL, EAGER
from .rounds import Summary

NONE = "-"


def against_eager(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By row's name, of medians: "2.0x"; for the default model with what sets it apart; "-" for all other networks."""
    eager = next((row for row in rows if row["competitor"] == EAGER), None)
    return {row["name"]: _ratio(row, eager) for row in rows}


def _ratio(row: Mapping[str, Any], eager: Mapping[str, Any] | None) -> str:
    if eager is None or row["network"] not in (eager["network"], DEFAULT_MODEL):
        return NONE
    faster = Summary.of(eager["milliseconds"]).median / Summary.of(row["milliseconds"]).median
    return f"{faster:.1f}x" + (" (another, smaller network)" if row["network"] == DEFAULT_MODEL else "")
