"""A network, split and exported, comes back from its bundle."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from iog.bundle import Bundle
from iog.errors import BundleError
from iog.predictor import Predictor
from iog_export.networks import IOG, NetworkSpec, randomize
from iog_export.split import split
from iog_export.to_onnx import HALF_SUFFIX
from iog_export.training.norms import rebase
from iog_export.unsplit import unsplit
from iog_export.verify import PHOTOGRAPHS, cases, reference_logits
from onnx import helper, numpy_helper

CHELSEA = PHOTOGRAPHS / "chelsea.jpg"
SIZE = 128


def bundle_of(network: IOG, dtype: type) -> Bundle:
    """What an export keeps of a network's weights, without the arithmetic, whose tracing takes long."""
    parts = split(network, size=SIZE, fwhm=2.5)
    graphs = {}
    for name in ("encoder", "click", "head"):
        tensors = [
            numpy_helper.from_array(value.numpy().astype(dtype), key + HALF_SUFFIX * (dtype is np.float16))
            for key, value in getattr(parts, name).state_dict().items()
        ]
        graphs[name] = helper.make_model(helper.make_graph([], name, [], [], tensors)).SerializeToString()
    spec, like = network.spec, Bundle.open()
    manifest = like.manifest.model_copy(
        update={
            "network": like.manifest.network.model_copy(
                update={"backbone": spec.backbone, "width": spec.width, "normalize": spec.normalize}
            ),
            "crop": like.manifest.crop.model_copy(update={"size": SIZE}),
            "guidance": like.manifest.guidance.model_copy(update={"fwhm": 2.5}),
        }
    )
    return Bundle(like.path, manifest, "0" * 64, graphs)


def some_inputs(seed: int) -> torch.Tensor:
    inputs = torch.randint(0, 256, (3, 5, SIZE, SIZE), generator=torch.Generator().manual_seed(seed)).float()
    inputs[:, 3:] *= inputs[:, 3:] > 250  # clicks cover little
    return inputs


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest one, in units of the expected values' spread."""
    return ((actual - expected).abs().max() / expected.std()).item()


@pytest.mark.parametrize(
    ("spec", "dtype", "tolerance"),
    [
        (NetworkSpec("resnet18", width=16, normalize=True), np.float16, 0.05),
        (NetworkSpec("resnet18-half", width=16, normalize=True), np.float16, 0.05),
        (NetworkSpec("resnet50", width=8), np.float32, 1e-3),
    ],
)
def test_a_network_comes_back_within_the_precision_of_its_bundle(spec, dtype, tolerance):
    network = IOG(spec)
    randomize(network, 3)
    found = unsplit(bundle_of(network, dtype))
    assert (found.spec, found.training) == (spec, False)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in found.parameters())
    inputs = some_inputs(0)
    later = inputs[:, 3:].roll(40, dims=-1)
    with torch.no_grad():
        expected, actual = network(inputs).logits, found(inputs).logits
        assert error(actual, expected) < tolerance
        corrected = found(inputs, later).logits
        assert error(corrected, network(inputs, later).logits) < tolerance
        assert error(corrected, actual) > 2 * tolerance  # the clicks matter

        rebase(found, [some_inputs(1), some_inputs(2)])
        assert error(found(inputs).logits, actual) < 1e-3  # with statistics, the same network
        for name, module in found.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d) and name.startswith(("backbone", "psp4", "Fine_net")):
                assert module.running_mean.abs().max() > 0, name
    trained = found.train()(inputs)
    gradients = torch.autograd.grad(trained.logits.mean(), found.backbone.conv1.weight)
    assert gradients[0].abs().max() > 0
    assert len(trained.sides) == 4
    assert not any(side.any() for side in trained.sides)  # new, they bend no level


@torch.inference_mode()
def test_the_packaged_model_comes_back():
    bundle = Bundle.open()
    network = unsplit(bundle)
    case = cases([CHELSEA], bundle.crop)[0]
    with Predictor.open() as predictor:
        for prompt in (case.prompts[0], case.prompts[3]):
            expected = predictor.segment(case.image, prompt, scores=True).logits
            actual = reference_logits(network, bundle, case.image, prompt)
            assert error(torch.from_numpy(actual), torch.from_numpy(expected)) < 0.02


def single(bundle: Bundle) -> Bundle:
    manifest = bundle.manifest.model_copy(update={"kind": "single"})
    return dataclasses.replace(bundle, manifest=manifest)


def renamed(bundle: Bundle) -> Bundle:
    return dataclasses.replace(
        bundle, graphs={**bundle.graphs, "head": bundle.graphs["head"].replace(b"climb.weight", b"steep.weight")}
    )


def of_another_width(bundle: Bundle) -> Bundle:
    network = bundle.manifest.network.model_copy(update={"width": 128})
    return dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"network": network}))


def altered(bundle: Bundle) -> Bundle:
    model = onnx.load_model_from_string(bundle.graphs["head"])
    weights = next(t for t in model.graph.initializer if t.name.startswith("mix2."))
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights)[::-1].copy(), weights.name))
    return dataclasses.replace(bundle, graphs={**bundle.graphs, "head": model.SerializeToString()})


def no_graph(bundle: Bundle) -> Bundle:
    return dataclasses.replace(bundle, graphs={**bundle.graphs, "click": b"\xff\xff"})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (single, "kind 'single'"),
        (renamed, "'climb.weight'"),
        (of_another_width, "width=128"),
        (altered, "not what `split` makes"),
        (no_graph, "graph 'click' is no ONNX graph"),
    ],
)
def test_other_bundles_are_refused_with_a_reason_and_advice(change, problem):
    with pytest.raises(BundleError, match=r"start from the checkpoint|export the bundle again") as refusal:
        unsplit(change(Bundle.open()))
    assert problem in str(refusal.value)
    assert str(Path("models") / "default") in str(refusal.value)
