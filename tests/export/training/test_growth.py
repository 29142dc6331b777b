from dataclasses import replace

import pytest
import torch
from iog_export.networks import IOG, NetworkSpec, randomize
from iog_export.networks.resnet import ARCHITECTURES, Architecture, BasicBlock, Bottleneck
from iog_export.training.growth import grown, obstacles


@pytest.fixture(autouse=True)
def _family(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, block, depths, stem in (
        ("small", BasicBlock, (1, 1, 2, 1), 4),
        ("wide", BasicBlock, (1, 1, 2, 1), 6),
        ("deep", BasicBlock, (2, 1, 3, 3), 8),
        ("shallow", BasicBlock, (1, 1, 1, 1), 8),
        ("small of bottlenecks", Bottleneck, (1, 1, 1, 1), 4),
        ("large of bottlenecks", Bottleneck, (2, 2, 3, 2), 6),
    ):
        monkeypatch.setitem(ARCHITECTURES, name, Architecture(block, depths, stem))


@pytest.mark.parametrize(
    ("start", "backbone", "width"),
    [
        ("small", "small", 8),
        ("small", "small", 12),
        ("small", "wide", 8),
        ("small", "deep", 14),
        ("small of bottlenecks", "large of bottlenecks", 10),
    ],
)
def test_a_grown_network_computes_what_it_did_and_learns_with_all_that_is_new(start, backbone, width):
    network = IOG(NetworkSpec(start, width=8, normalize=True)).eval()
    randomize(network, 1)
    larger = grown(network, NetworkSpec(backbone, width=width, normalize=True))
    assert (larger.spec.backbone, larger.spec.width, larger.training) == (backbone, width, False)
    inputs = torch.randint(0, 256, (3, 5, 64, 64)).float()
    clicks = torch.randint(0, 256, (3, 2, 64, 64)).float()
    with torch.no_grad():
        expected = network(inputs, clicks).logits
        torch.testing.assert_close(larger(inputs, clicks).logits, expected, rtol=1e-4, atol=1e-4)

    larger.train()
    optimizer = torch.optim.SGD(larger.parameters(), lr=1e-3)
    for _ in range(3):  # what is read with 0, or through a block that begins as the identity, learns from the second on
        optimizer.zero_grad()
        outputs = larger(inputs, clicks)
        sum((logits - 1).square().mean() for logits in (outputs.logits, *outputs.sides)).backward()
        optimizer.step()
    unused = "Coarse_net.upsamples.0"
    still = [n for n, p in larger.named_parameters() if not n.startswith(unused) and not bool(p.grad.any())]
    assert still == []


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({"width": 6}, ["width is 8 there and 6 here"]),
        ({"backbone": "shallow"}, ["backbone is small there and shallow here"]),
        ({"backbone": "large of bottlenecks"}, ["backbone is small there and large of bottlenecks here"]),
        ({"normalize": False, "refine": False}, ["refine is True there and False here", "normalize is True there"]),
    ],
)
def test_a_network_does_not_go_on_as_a_smaller_one_or_one_of_another_kind(change, problems):
    spec = NetworkSpec("small", width=8, normalize=True)
    other = replace(spec, **change)
    found = obstacles(spec, other)
    assert len(found) == len(problems)
    assert all(line.startswith(problem) for line, problem in zip(found, problems, strict=True))
    with pytest.raises(ValueError, match=problems[0]):
        grown(IOG(spec), other)
