"""The exporter's graphs: what they compute, for any batch, and how much work they are."""

import math

import numpy as np
import onnxruntime
import pytest
import torch
from iog.bundle import FEATURES
from iog_export.networks import IOG, NetworkSpec
from iog_export.split import Split, split
from iog_export.storage import store_as_half
from iog_export.to_onnx import OnnxGraph, count_macs, export_graph, finish, to_half_storage
from onnx import numpy_helper


def head_inputs(parts: Split, batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size, grid = parts.guidance.size, parts.guidance.grid
    image = torch.randint(0, 256, (batch, size, size, 3), generator=generator, dtype=torch.uint8)
    heat = torch.randint(0, 256, (batch, 2, size, size), generator=generator, dtype=torch.uint8)
    features = parts.encoder(image, heat)
    clicks = torch.randn(batch, 64, grid, grid, generator=generator)
    return {**dict(zip(FEATURES, features, strict=True)), "clicks": clicks}


def run(graph: OnnxGraph, inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(graph.model, providers=["CPUExecutionProvider"])
    dtypes = {t.name: t.dtype for t in graph.info.inputs}
    return session.run(None, {k: v.numpy().astype(dtypes[k]) for k, v in inputs.items()})


@pytest.fixture(scope="module")
def parts() -> Split:
    torch.manual_seed(3)
    return split(IOG(NetworkSpec("resnet18", width=32)).eval(), size=128, fwhm=2.5)


@pytest.fixture(scope="module")
def head(parts: Split) -> OnnxGraph:
    return finish(export_graph("head", parts.head, head_inputs(parts, 2), ("logits",)), "head.onnx")


def test_the_batch_may_have_any_size_and_its_members_do_not_see_each_other(parts: Split, head: OnnxGraph) -> None:
    batch = head_inputs(parts, 5, seed=1)
    (together,) = run(head, batch)
    for i in range(5):
        (alone,) = run(head, {k: v[i : i + 1] for k, v in batch.items()})
        np.testing.assert_allclose(together[i], alone[0], atol=1e-4 * alone.std())


def test_an_exported_graph_computes_what_the_module_computes(parts: Split, head: OnnxGraph) -> None:
    inputs = head_inputs(parts, 3, seed=2)
    expected = parts.head(*inputs.values()).numpy()
    (found,) = run(head, inputs)
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())


def test_the_same_weights_give_the_same_bytes(parts: Split, head: OnnxGraph) -> None:
    again = finish(export_graph("head", parts.head, head_inputs(parts, 2), ("logits",)), "head.onnx")
    assert again.info.sha256 == head.info.sha256


def test_half_storage_halves_the_file_and_rounds_weights_and_features_only(parts: Split) -> None:
    model = export_graph("head", parts.head, head_inputs(parts, 2), ("logits",))
    full = finish(model, "head.onnx")
    half_model = to_half_storage(model)
    store_as_half(half_model, FEATURES)
    half = finish(half_model, "head.onnx")
    assert len(half.model) < 0.6 * len(full.model)
    assert {t.name: t.dtype for t in half.info.inputs} == {
        **dict.fromkeys(FEATURES, "float16"),
        "clicks": "float32",
    }
    assert half.info.outputs == full.info.outputs
    assert half.info.macs == full.info.macs
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for tensor in half_model.graph.initializer:
        if tensor.name.endswith("_fp16"):
            rounded = weights[tensor.name.removesuffix("_fp16")].astype(np.float16)
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), rounded)
    inputs = head_inputs(parts, 1, seed=4)
    (a,), (b,) = run(full, inputs), run(half, inputs)
    assert 0 < np.abs(a - b).max() < 0.05 * a.std()


def test_an_input_that_the_graph_does_not_use_is_reported(parts: Split) -> None:
    class Deaf(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a * 2

    with pytest.raises(RuntimeError, match=r"dropped inputs \['b'\]"):
        export_graph("deaf", Deaf(), {"a": torch.ones(2, 3), "b": torch.ones(2, 3)}, ("c",))


@pytest.mark.slow
def test_work_of_the_published_network_at_512_is_split_as_designed() -> None:
    """ResNet-101: a click costs a tenth of the network (74.5 GMAC as published, 52.2 of them the backbone)."""
    torch.manual_seed(0)
    parts = split(IOG(NetworkSpec("resnet101")).eval(), size=512, fwhm=10)
    shapes = ((512, 32, 32), (528, 50), (256, 32, 32), (256, 64, 64), (128, 128, 128), (256, 128, 128), (64, 32, 32))
    example = {n: torch.randn(2, *s) for n, s in zip((*FEATURES, "clicks"), shapes, strict=True)}
    head = count_macs(export_graph("head", parts.head, example, ("logits",)))
    window = {"window": torch.zeros(2, 2, 79, 79, dtype=torch.uint8), "origin": torch.ones(2, 2, dtype=torch.int32)}
    click = count_macs(export_graph("click", parts.click, window, ("cells",)))
    first = {
        "image": torch.zeros(2, 512, 512, 3, dtype=torch.uint8),
        "guidance": torch.zeros(2, 2, 512, 512, dtype=torch.uint8),
    }
    model = export_graph("encoder", parts.encoder, first, FEATURES)
    encoder = count_macs(model)
    assert head <= 7.0e9
    assert click <= 0.07e9
    backbone = 52.2e9
    assert backbone < encoder <= backbone + 5e9
    store_as_half(model, FEATURES)
    features = finish(model, "encoder.onnx").info.outputs
    assert {t.dtype for t in features} == {"float16"}
    assert sum(2 * math.prod(map(int, t.shape[1:])) for t in features) <= 16.5e6  # bytes an object
