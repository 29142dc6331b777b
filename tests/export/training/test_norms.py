from itertools import islice

import numpy as np
import pytest
import torch
from iog_export.networks import IOG, NetworkSpec, randomize
from iog_export.training import norms
from iog_export.training.clicking import Clicking
from iog_export.training.norms import rebase, reestimate
from iog_export.training.samples import Batch, Batches, Stage


@pytest.fixture
def network() -> IOG:
    network = IOG(NetworkSpec("resnet18", width=8, normalize=True))
    randomize(network, 1)
    return network


@pytest.fixture
def batches(shapes_data, geometry) -> list[Batch]:
    return list(islice(Batches(shapes_data, geometry, [Stage(64, 4, 1.0)], torch.tensor(0), seed=(0,)), 2))


def seen_by(norm: torch.nn.Module) -> list[torch.Tensor]:
    """What will pass through it, (channels, values)."""
    seen: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].transpose(0, 1).flatten(1)))
    return seen


def test_rebasing_gives_the_statistics_of_the_inputs_and_changes_nothing_else(network, batches):
    inputs = [batch.inputs for batch in batches]
    norm = network.Fine_net.final_predict[0].bn2
    with torch.no_grad():
        before = network(inputs[0].float()).logits
        old_mean = norm.running_mean.clone()
        seen = seen_by(norm)
        rebase(network, inputs)
        values = torch.cat(seen, dim=1)
        torch.testing.assert_close(norm.running_mean, values.mean(1), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(norm.running_var, values.var(1), rtol=1e-2, atol=1e-3)
        assert not torch.allclose(norm.running_mean, old_mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(network(inputs[0].float()).logits, before, rtol=1e-3, atol=1e-3)


def test_reestimated_statistics_are_the_mean_of_the_batches_and_weights_stay(network, batches, geometry, monkeypatch):
    monkeypatch.setattr(norms, "CORRECTED", 0.0)
    weights = {name: value.clone() for name, value in network.named_parameters()}
    norm = network.backbone.bn1
    seen = seen_by(norm)
    reestimate(Clicking(network, geometry), batches, 0)
    assert len(seen) == len(batches)
    torch.testing.assert_close(norm.running_mean, sum(values.mean(1) for values in seen) / len(seen))
    torch.testing.assert_close(
        norm.running_var, sum(values.var(1) for values in seen) / len(seen), rtol=1e-5, atol=1e-5
    )
    assert norm.momentum == 0.1
    assert not network.training
    assert all(torch.equal(weights[name], value) for name, value in network.named_parameters())


def test_reestimation_sees_first_masks_and_corrected_ones(network, batches, geometry):
    norm = network.psp4.bottleneck[1]
    seen, corrected = seen_by(norm), set()
    for seed in range(6):
        seen.clear()
        reestimate(Clicking(network, geometry), batches, seed)
        assert np.isfinite(norm.running_var.numpy()).all()
        corrected.add(len(seen) - len(batches))
    assert len(corrected) > 1
    assert corrected <= {0, 1, 2}
