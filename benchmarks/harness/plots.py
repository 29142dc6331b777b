"""The report's pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from iog_export.evaluation.plot import COLORS, INK, MUTED
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .ratios import NONE
from .rounds import Summary

OURS, OTHERS = COLORS[0], MUTED
GRID = "#e4e6ea"


def latency(path: Path, rows: Sequence[Mapping[str, Any]], ratios: Mapping[str, str]) -> None:
    """A bar a row, with its ratio to PyTorch eager."""
    times = [Summary.of(row["milliseconds"]) for row in rows]
    with _figure(path, (11, 1.2 + 0.33 * len(rows))) as (axes,):
        names = [f"{row['name']} ({row['network']})" for row in rows]
        colors = [OURS if row["name"].startswith("iog-runtime") else OTHERS for row in rows]
        medians = [t.median for t in times]
        spans = np.array([(t.median - t.p25, t.p75 - t.median) for t in times]).T
        axes.barh(names, medians, color=colors, xerr=spans, ecolor=INK, error_kw={"linewidth": 0.8})
        for y, (t, row) in enumerate(zip(times, rows, strict=True)):
            ratio = ratios[row["name"]]
            label = f"{t.median:.1f} ms" + (f"  {ratio}" if ratio != NONE else "")
            axes.text(t.p75 * 1.08, y, label, va="center", color=INK, fontsize=8)
        axes.set(xscale="log", xlabel="milliseconds a click: median, quartiles; ratio to PyTorch eager")
        axes.set_xlim(min(medians) / 2, max(medians) * 6)
        axes.invert_yaxis()


def distributions(path: Path, times: Mapping[str, Sequence[float]]) -> None:
    """The share of clicks answered within a time."""
    with _figure(path, (11, 5)) as (axes,):
        for i, (name, values) in enumerate(times.items()):
            if values:
                shares = np.arange(1, len(values) + 1) / len(values)
                style = ("-", "--", ":")[i // len(COLORS) % 3]
                axes.step(sorted(values), shares, style, where="post", color=COLORS[i % len(COLORS)], label=name)
        axes.set(xscale="log", xlabel="milliseconds", ylabel="share of clicks answered", ylim=(0, 1.02))
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def load(path: Path, loads: Sequence[Mapping[str, Any]]) -> None:
    """Latency percentiles over throughput."""
    with _figure(path, (9, 4.5)) as (axes,):
        for kind, color in (("correction", OURS), ("first", COLORS[1])):
            for percentile, style in (("p50", "-"), ("p95", "--"), ("p99", ":")):
                points = [(at["answered_per_second"], at[kind][percentile]) for at in loads if at[kind]]
                if points:
                    axes.plot(*zip(*points, strict=True), style, marker="o", color=color, label=f"{kind} {percentile}")
        axes.set(yscale="log", xlabel="clicks answered a second", ylabel="milliseconds from when a click was due")
        axes.legend(frameon=False)


def memory(path: Path, soak: Mapping[str, Any]) -> None:
    """The server's memory over time, and what it may grow to."""
    with _figure(path, (9, 4)) as (axes,):
        seconds = np.linspace(0, soak["seconds"], len(soak["resident_bytes"]))
        axes.plot(seconds, np.array(soak["resident_bytes"]) / 2**20, color=OURS, label="resident")
        before = soak["resident_before_bytes"] or 0
        for share, style in ((1.0, "--"), (1.25, ":")):
            limit = (before + share * soak["budget_bytes"]) / 2**20
            axes.axhline(limit, linestyle=style, color=MUTED, label=f"before it began, and {share:.0%} of the budget")
        axes.set(xlabel="seconds", ylabel="MiB", ylim=(0, None))
        axes.legend(frameon=False)


def scaling(path: Path, lines: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """A panel a dimension."""
    with _figure(path, (4 * len(lines), 3.8), columns=len(lines)) as panels:
        for axes, (name, series) in zip(panels, lines.items(), strict=True):
            for i, (label, points) in enumerate(series.items()):
                axes.plot([int(x) for x in points], list(points.values()), marker="o", color=COLORS[i], label=label)
            axes.set(xlabel=name, xscale="log", ylim=(0, None), title=name)
            axes.legend(frameon=False, fontsize=8)
        panels[0].set_ylabel("milliseconds, unless the name says otherwise")


def roofline(
    path: Path,
    graphs: Mapping[str, Mapping[str, float]],
    measured: Mapping[str, float],
    peaks: Mapping[str, float],
) -> None:
    """Arithmetic a second over arithmetic a byte: what was reached, under what the machine reaches at most."""
    with _figure(path, (9, 5)) as (axes,):
        compute, traffic = 2e-9 * peaks["multiply_accumulates_per_second"], peaks["bytes_per_second"] / 1e9
        intensities = np.geomspace(1, 1e4, 100)
        axes.plot(intensities, np.minimum(compute, traffic * intensities), color=INK, label="this machine, measured")
        for i, (name, milliseconds) in enumerate(measured.items()):
            operations = 2 * graphs[name]["macs"]
            at = operations / graphs[name]["bytes"], operations / milliseconds / 1e6
            axes.plot(*at, "o", color=COLORS[i % len(COLORS)], label=f"{name}: whole click, {milliseconds:.1f} ms")
        axes.set(xscale="log", yscale="log", xlabel="FLOP a byte of weights, inputs and outputs", ylabel="GFLOP/s")
        axes.legend(frameon=False, fontsize=8, loc="lower right")


@contextmanager
def _figure(path: Path, size: tuple[float, float], columns: int = 1) -> Iterator[Sequence[Axes]]:
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    panels = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axes in panels:
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
    yield panels
    figure.savefig(path)
