"""An engine without a network: for tests of ours and of our users, where no ONNX Runtime or no model is at hand.

Its masks are real shapes that depend on the prompt: an ellipse in the crop, shifted a little by the image's content;
every positive click adds a disc to it, every negative one cuts a disc out.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from iog.arrays import Array
from iog.backends.base import Graph, zeros
from iog.bundle import GraphInfo
from iog.guidance import FIELD_REACH, STRIDE


class FakeBackend:
    """Opens any bundle and ignores its graphs.

    runs: how often each graph ran, by name: what a test of caching looks at.
    """

    name = "fake"
    heads = 1

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self._lock = threading.Lock()

    def open(self, name: str, model: bytes, info: GraphInfo) -> Graph:
        """A graph that keeps the declared dtypes and shapes."""
        return FakeGraph(name, info, self)

    def count(self, name: str) -> None:
        """Note that a graph ran."""
        with self._lock:
            self.runs[name] += 1


class FakeGraph:
    """Computes a fixed function of its inputs, by the graph's name."""

    def __init__(self, name: str, info: GraphInfo, backend: FakeBackend) -> None:
        self.info = info
        self._name = name
        self._backend = backend

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """All outputs, in the declared order."""
        self._backend.count(self._name)
        batch = len(next(iter(inputs.values())))
        symbols = {d: batch for t in self.info.outputs for d in t.shape if isinstance(d, str)}
        outputs = zeros(self.info, symbols)
        if self._name == "encoder":
            outputs[0][:, 0] = inputs["image"].mean((1, 2, 3)).reshape(-1, 1, 1) / 255
        elif self._name == "click":
            # of the heat that a cell sees and nothing else, like a network's: more foreground makes it positive
            fields = sliding_window_view(inputs["window"], (2 * FIELD_REACH + 1,) * 2, axis=(2, 3))
            heat = fields[:, :, ::STRIDE, ::STRIDE].max((-2, -1)).astype(np.float32)  # (N, 2, c, c)
            outputs[0][:] = np.sign(heat[:, :1] - heat[:, 1:])
        elif self._name == "head":
            outputs[0][:] = _ellipse(outputs[0].shape[-1], inputs["context"][:, 0].mean((1, 2), keepdims=True))
            outputs[0] += _enlarge(inputs["clicks"][:, 0], outputs[0].shape[-1]) * 2
        else:
            heat = inputs["guidance"].astype(np.float32) / 255
            step = heat.shape[-1] // outputs[0].shape[-1]
            brightness = inputs["image"].mean((1, 2, 3)).reshape(-1, 1, 1) / 255
            outputs[0][:] = _ellipse(outputs[0].shape[-1], brightness)
            outputs[0] += 2 * (heat[:, 0] - heat[:, 1])[:, ::step, ::step]
        return outputs

    def close(self) -> None:
        """Nothing to free."""


def _ellipse(side: int, shift: Array) -> Array:
    """(B, side, side) logits, 1 at the centre, 0 on the ellipse that fills most of the crop. shift: (B, 1, 1)."""
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    return 1 - (((axis[None, :] - 0.1 * shift) / 0.75) ** 2 + (axis[:, None] / 0.75) ** 2)


def _enlarge(cells: Array, side: int) -> Array:
    """(B, g, g) -> (B, side, side), each cell repeated."""
    factor = side // cells.shape[-1]
    return cells.repeat(factor, axis=1).repeat(factor, axis=2)
