import json
from pathlib import Path

import numpy as np
import pytest
import torch
from iog_export.networks import IOG, NetworkSpec
from torch.nn.functional import interpolate

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = {torch.float32: 3e-4, torch.float64: 1e-6}  # of the logits' standard deviation


def heat(points, size=512):
    """As the vectors were made: not rounded."""
    y, x = np.mgrid[:size, :size]
    d2 = np.min([(x - px) ** 2 + (y - py) ** 2 for px, py in points], axis=0)
    return 255 * np.exp(-4 * np.log(2) * d2 / 10**2)


def golden(name, filled, spec, dtype):
    vectors = np.load(GOLDEN / f"{name}.npz")
    network = filled(spec, seed=int(vectors["seed"]), dtype=dtype)
    network.state_dict()[str(vectors["override_key"])].fill_(vectors["override_value"].item())
    rgb = vectors["crop_rgb"].transpose(2, 0, 1)
    inputs = np.concatenate([rgb, [heat(vectors["inside"]), heat(vectors["corners"])]])
    return vectors, network, torch.from_numpy(inputs)[None].to(dtype)


@pytest.mark.parametrize(
    ("file", "spec"),
    [
        ("iog_refine_resnet50", NetworkSpec("resnet50")),
        ("iog_refine_resnet101", NetworkSpec("resnet101")),
        ("iog_resnet101", NetworkSpec("resnet101", refine=False)),
    ],
)
def test_state_dict_has_the_published_keys_and_shapes(file, spec):
    published = json.loads((GOLDEN / f"{file}.keys.json").read_text())
    with torch.device("meta"):
        network = IOG(spec)
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == published


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@torch.inference_mode()
def test_refinement_network_computes_what_the_authors_does_at_every_click(filled, dtype):
    vectors, network, inputs = golden("iog_refine_resnet50", filled, NetworkSpec("resnet50"), dtype)
    features = network.encode(inputs)
    for step in range(4):
        clicks = vectors[f"clicks_step{step}"]
        foreground = [*vectors["inside"], *clicks[clicks[:, 2] == 1, :2]]
        background = [*vectors["corners"], *clicks[clicks[:, 2] == 0, :2]]
        all_heat = torch.from_numpy(np.stack([heat(foreground), heat(background)]))[None].to(dtype)
        logits = network.decode(features, all_heat).logits[0, 0].numpy()
        expected = vectors[f"logits128_step{step}"]
        assert np.abs(logits - expected).max() <= TOLERANCE[dtype] * expected.std()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@torch.inference_mode()
def test_three_click_network_computes_what_the_authors_does(filled, dtype):
    vectors, network, inputs = golden("iog_resnet101", filled, NetworkSpec("resnet101", refine=False), dtype)
    logits = interpolate(network(inputs).logits, size=(512, 512), mode="bilinear", align_corners=True)[0, 0].numpy()
    expected = vectors["logits512"]
    assert np.abs(logits - expected).max() <= TOLERANCE[dtype] * expected.std()


@pytest.mark.parametrize(
    ("backbone", "refine"), [("resnet18-half", True), ("resnet18", True), ("resnet18", False), ("resnet50", True)]
)
def test_trains_on_small_crops_in_bfloat16_and_every_used_weight_learns(backbone, refine):
    network = IOG(NetworkSpec(backbone, refine=refine, width=16, normalize=True)).to(memory_format=torch.channels_last)
    inputs = (torch.rand(2, 5, 64, 64) * 255).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(inputs)
    assert [x.shape for x in (outputs.logits, *outputs.sides)] == [(2, 1, 16, 16)] * 5
    sum(x.float().square().mean() for x in (outputs.logits, *outputs.sides)).backward()
    untouched = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    assert untouched == {f"Coarse_net.upsamples.0.{key}" for key in ("1.weight", "2.weight", "2.bias")}


def test_side_predictions_are_for_training_only(filled):
    network = filled(NetworkSpec("resnet18", width=16), dtype=torch.float32)
    assert network(torch.rand(1, 5, 64, 64)).sides == ()
    assert len(network.train()(torch.rand(2, 5, 64, 64)).sides) == 4


def test_without_clicks_the_initial_ones_are_the_clicks(filled):
    network = filled(NetworkSpec("resnet18", width=16))
    inputs = torch.rand(1, 5, 64, 64, dtype=torch.float64) * 255
    assert torch.equal(network(inputs).logits, network(inputs, inputs[:, 3:]).logits)


def test_one_encoding_serves_many_decodings(filled):
    network = filled(NetworkSpec("resnet18", width=16))
    inputs = torch.rand(1, 5, 64, 64, dtype=torch.float64) * 255
    features = network.encode(inputs)
    for _ in range(2):
        clicks = torch.rand(1, 2, 64, 64, dtype=torch.float64) * 255
        assert torch.equal(network.decode(features, clicks).logits, network(inputs, clicks).logits)


def test_a_normalizing_network_takes_the_same_0_to_255(filled):
    plain = filled(NetworkSpec("resnet18", width=16))
    normalizing = filled(NetworkSpec("resnet18", width=16, normalize=True))
    inputs = torch.rand(1, 5, 64, 64, dtype=torch.float64) * 255
    scaled = torch.cat([(inputs[:, :3] - 127.5) / 64, inputs[:, 3:] / 255], dim=1)
    assert torch.equal(normalizing(inputs).logits, plain(scaled).logits)


def test_clicks_must_suit_the_network(filled):
    with_branch, without = (filled(NetworkSpec("resnet18", refine=r, width=16)) for r in (True, False))
    inputs = torch.rand(1, 5, 64, 64, dtype=torch.float64)
    with pytest.raises(ValueError, match="must be given"):
        with_branch.decode(with_branch.encode(inputs), None)
    with pytest.raises(ValueError, match="must not be given"):
        without(inputs, inputs[:, 3:])


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 5, 64, 96), (1, 5, 100, 100)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="multiple of 32"):
        IOG(NetworkSpec("resnet18", width=16)).encode(torch.zeros(shape))


@pytest.mark.parametrize("fields", [{"backbone": "vgg16"}, {"width": 0}, {"width": 33}])
def test_impossible_specs_are_refused(fields):
    with pytest.raises(ValueError, match=r"vgg16|width is"):
        NetworkSpec(**fields)
