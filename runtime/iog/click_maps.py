"""The click branch's response to clicks, of which only the cells that a new click reaches are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from iog.arrays import Array, FloatArray, PointArray
from iog.backends.base import Graph
from iog.backends.surgery import pad
from iog.clicks import NetworkClicks
from iog.features import ClickState, Features
from iog.guidance import GuidanceSpec, near, windows


class ClickMaps:
    """Makes click maps, (1, C, g, g) float32, with a bundle's click graph."""

    def __init__(self, graph: Graph, spec: GuidanceSpec) -> None:
        self._graph = graph
        self._spec = spec
        _, channels, *_ = graph.info.outputs[0].shape
        self._shape = (1, int(channels), spec.grid, spec.grid)

    def initial(self, clicks: NetworkClicks) -> ClickState:
        """Of the initial points alone."""
        no_clicks = np.zeros(self._shape, np.float32)
        (click_map,) = self._add([_NewClicks(no_clicks, clicks.initial, clicks.initial[:1], clicks.initial[1:])])
        return ClickState((), click_map)

    def refined(self, objects: Sequence[tuple[Features, NetworkClicks]]) -> tuple[list[ClickState], list[int]]:
        """Of all clicks of each object, and how many windows each took: those of clicks that are new to it.

        What is made is remembered in the features.
        """
        states, counts, changes = [], [], {}
        for i, (features, clicks) in enumerate(objects):
            state = features.nearest(clicks.refinements)
            features.remember(state)
            new = clicks.points[len(clicks.initial) + len(state.refinements) :]  # (n, 2)
            if len(new):
                changes[i] = _NewClicks(state.map, new, clicks.foreground, clicks.background)
            states.append(state)
            counts.append(len(new))
        for i, click_map in zip(changes, self._add(list(changes.values())) if changes else (), strict=True):
            features, clicks = objects[i]
            states[i] = ClickState(clicks.refinements, click_map)
            features.remember(states[i])
        return states, counts

    def _add(self, changes: Sequence[_NewClicks]) -> list[FloatArray]:
        """Maps in which the cells that new points reach stand for all foreground and background points."""
        spec = self._spec
        new = np.concatenate([change.new for change in changes])  # (n, 2)
        origins = spec.window_origins(new)
        counts = [len(change.new) for change in changes]
        if _draws(self._graph):
            sources = [change for change, count in zip(changes, counts, strict=True) for _ in range(count)]
            # Not all points in each window: on the device, what they are drawn in grows with the product of both.
            foreground, background = (
                [near(origin, points, spec) for origin, points in zip(origins, kind, strict=True)]
                for kind in ([s.foreground for s in sources], [s.background for s in sources])
            )
            heat = {"points": pad(foreground, background)}
        else:
            parts = np.split(origins, np.cumsum(counts)[:-1])
            drawn = [windows(at, c.foreground, c.background, spec) for at, c in zip(parts, changes, strict=True)]
            heat = {"window": np.concatenate(drawn)}  # (n, 2, w, w)
        (cells,) = self._graph.run({**heat, "origin": origins})  # (n, C, c, c)
        first, start, maps = spec.first_cells(new), 0, []
        for change, count in zip(changes, counts, strict=True):
            maps.append(change.map.copy())
            _place(maps[-1][0], cells[start : start + count], first[start : start + count])
            start += count
        return maps


class _NewClicks(NamedTuple):
    """Points to be added to a click map, and all points that it shall stand for."""

    map: FloatArray
    new: PointArray
    foreground: PointArray
    background: PointArray


def guidance_for(graph: Graph, clicks: NetworkClicks, spec: GuidanceSpec, *, initial_only: bool) -> dict[str, Array]:
    """The clicks as a graph takes them: heatmaps (1, 2, S, S), or points that it draws itself."""
    if not _draws(graph):
        return {"guidance": clicks.guidance(spec, initial_only=initial_only)[None]}
    foreground, background = clicks.divided(initial_only=initial_only)
    return {"points": pad([foreground], [background])}


def _draws(graph: Graph) -> bool:
    """Whether a graph takes points rather than heatmaps."""
    return any(t.name == "points" for t in graph.info.inputs)


def _place(click_map: FloatArray, cells: FloatArray, first: PointArray) -> None:
    """Write (n, C, c, c) cells into the (C, g, g) map at their first cells (x, y); what lies outside is left out."""
    grid, side = click_map.shape[-1], cells.shape[-1]
    for block, (x, y) in zip(cells, first.tolist(), strict=True):
        x0, x1, y0, y1 = max(x, 0), min(x + side, grid), max(y, 0), min(y + side, grid)
        if x0 < x1 and y0 < y1:
            click_map[:, y0:y1, x0:x1] = block[:, y0 - y : y1 - y, x0 - x : x1 - x]
