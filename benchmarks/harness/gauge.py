"""What the machine can do at most, measured: the roof over every other figure, and the noise in all of them."""

from __future__ import annotations

import threading
import time

import numpy as np
import onnx
from iog.backends import Graph
from iog.backends.ort import OrtBackend
from iog.cores import allowed
from iog_export.to_onnx import OPSET, finish
from onnx import TensorProto, helper, numpy_helper

SIDE = 1024
COPY_BYTES = 128 << 20


def matrix_product() -> tuple[Graph, int]:
    """A (1, 1024, 1024) float32 product in ONNX Runtime, as convolutions end up; and its multiply-accumulates.

    Its work never changes: how its time varies from round to round is the machine's noise.
    """
    weights = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "gauge",
        [value("a", TensorProto.FLOAT, ["batch", SIDE, SIDE])],
        [value("c", TensorProto.FLOAT, ["batch", SIDE, SIDE])],
        [numpy_helper.from_array(weights, "b")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=onnx.IR_VERSION_2023_5_5
    )
    made = finish(model, "gauge.onnx")
    return OrtBackend().open("gauge", made.model, made.info), made.info.macs


def arithmetic(repeats: int = 100) -> float:
    """Multiply-accumulates a second of the fastest of so many products, one right after the other.

    NB: the same product between other work, from cold caches and a resting clock, takes up to twice as long: no roof.
    """
    product, macs = matrix_product()
    square, best = np.ones((1, SIDE, SIDE), np.float32), float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product.run({"a": square})
        best = min(best, time.perf_counter() - start)
    product.close()
    return macs / best


def bandwidth(repeats: int = 5) -> float:
    """Bytes a second that all cores together read and write, copying what no cache holds."""
    parts = [np.ones(COPY_BYTES // 4 // allowed(), np.float32) for _ in range(allowed())]
    copies = [np.empty_like(part) for part in parts]
    best = float("inf")
    for _ in range(repeats):
        threads = [threading.Thread(target=np.copyto, args=pair) for pair in zip(copies, parts, strict=True)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = min(best, time.perf_counter() - start)
    return 2 * sum(part.nbytes for part in parts) / best
