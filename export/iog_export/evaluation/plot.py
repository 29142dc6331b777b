"""iou_over_clicks.png: what each further click brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .figures import ALL, Groups, by_set, mean_curve, reached_curve
from .records import Record
from .session import GOALS, MODEL

COLORS = ("#0f62fe", "#d9480f", "#087f5b", "#9c36b5", "#b08900", "#0b7285", "#c2255c", "#5c3d2e")
INK, MUTED = "#1b1b1f", "#8a8f98"
BASELINE_STYLES = ("--", "-.", ":")


def draw_curves(path: Path, records: Sequence[Record], baselines: Sequence[str], clicks: int, title: str) -> None:
    """Left, mean IoU over clicks by set; right, the share of objects that reached the higher goal by so many clicks."""
    groups = by_set(records)
    figure = Figure(figsize=(12.5, 4.6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(title, color=INK, fontsize=12)
    _draw(left, {name: mean_curve(members, MODEL) for name, members in groups.items()}, groups)
    for baseline, style in zip(baselines, BASELINE_STYLES, strict=False):
        curve = mean_curve(records, baseline)
        if curve:
            left.plot(list(curve), list(curve.values()), style, color=MUTED, label=f"{baseline}, {ALL}", linewidth=1.4)
    left.set(title="Mean IoU", xlabel="clicks, the box being two", ylim=(None, 1.01))
    reached = {name: reached_curve(members, MODEL, GOALS[-1], clicks) for name, members in groups.items()}
    _draw(right, reached, groups)
    right.set(
        title=f"Objects with an IoU of {GOALS[-1]:.2f} by then", xlabel="clicks, the box being two", ylim=(0, 1.02)
    )
    right.yaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False, labelcolor=INK)
    figure.savefig(path)


def _draw(axes: Axes, curves: Mapping[str, Mapping[int, float]], groups: Groups) -> None:
    for name, color in zip(curves, _colors(curves), strict=True):
        xs, ys = list(curves[name]), list(curves[name].values())
        label = f"{name} ({len(groups[name])})"
        width = 2.6 if name == ALL else 1.7
        axes.plot(xs, ys, color=color, label=label, linewidth=width, marker="o", markersize=width * 1.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=INK, left=False)


def _colors(names: Mapping[str, object]) -> list[str]:
    sets = [name for name in names if name != ALL]
    return [INK if name == ALL else COLORS[sets.index(name) % len(COLORS)] for name in names]
