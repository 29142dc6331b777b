import numpy as np
import pytest
import torch
from iog_export.networks import IOG, NetworkSpec
from iog_export.training.clicking import Clicking, add_corrections
from iog_export.training.samples import Batch, Batches, Stage


@pytest.fixture
def batch(shapes_data, geometry) -> Batch:
    return next(iter(Batches(shapes_data, geometry, [Stage(64, 4, 1.0)], torch.tensor(0), seed=(0,))))


@pytest.fixture
def network() -> IOG:
    torch.manual_seed(0)
    return IOG(NetworkSpec("resnet18", width=8, normalize=True))


def test_correction_is_drawn_where_the_mask_is_wrong(network, batch, geometry):
    with torch.no_grad():
        outputs = network.eval()(batch.inputs.float())
    nothing = outputs._replace(logits=torch.full_like(outputs.logits, -1.0))
    clicks = batch.inputs[:, 3:].numpy().copy()
    add_corrections(clicks, nothing, batch, geometry.guidance, np.random.default_rng(0))
    before = batch.inputs[:, 3:].numpy()
    assert (clicks[:, 1] == before[:, 1]).all()
    for heat, old, target in zip(clicks[:, 0], before[:, 0], batch.target[:, 0].numpy(), strict=True):
        new = (heat == 255) & (old < 255)
        assert (new.sum(), target[new].all()) in {(1, True), (0, True)}
    assert (clicks[:, 0] != before[:, 0]).any()


def test_corrections_count_as_much_as_the_first_mask_and_change_what_is_learned(network, batch, geometry):
    clicking = Clicking(network, geometry)
    plain = clicking(batch, 0, np.random.default_rng(0))
    assert plain.total.item() == plain.first.item()
    corrected = clicking(batch, 3, np.random.default_rng(0))
    assert corrected.first.item() == pytest.approx(plain.first.item(), rel=1e-5)
    assert corrected.total.item() != pytest.approx(plain.total.item(), rel=1e-5)
    corrected.total.backward()
    used = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    unused = {name for name, _ in network.named_parameters()} - used
    assert all(name.startswith("Coarse_net.upsamples.0.") for name in unused)


def test_bfloat16_gives_nearly_the_same_losses(network, batch, geometry):
    exact = Clicking(network, geometry)(batch, 1, np.random.default_rng(0))
    rounded = Clicking(network, geometry, torch.bfloat16)(batch, 1, np.random.default_rng(0))
    assert rounded.total.dtype == torch.float32
    assert rounded.first.item() == pytest.approx(exact.first.item(), rel=0.05)
    assert rounded.first.item() != exact.first.item()


@pytest.mark.parametrize("corrections", [0, 1, 3])
def test_several_annotators_teach_what_one_does(network, batch, geometry, corrections):
    gradients = []
    for annotators in (1, 3):
        clicking = Clicking(network, geometry, annotators=annotators)
        network.zero_grad()
        clicking(batch, corrections, np.random.default_rng(0)).total.backward()
        gradients.append(network.backbone.conv1.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    assert gradients[0].any()
