"""The statistics of batch norms: given to networks that lost them, and measured anew for averaged weights."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from iog_export.networks import IOG

from .clicking import Clicking
from .samples import Batch

CORRECTED = 0.4  # of the batches on which norms are measured; the others are first masks, which users see most
MIN_VARIANCE = 1e-4  # a channel that never varies must not be blown up when it begins to


@torch.no_grad()
def rebase(network: IOG, inputs: Iterable[Tensor]) -> None:
    """Give every batch norm the statistics of what it sees on these inputs, and leave what the network computes.

    A bundle's batch norms were folded away: with any other statistics the first step of a training, which normalises
    with those of its batch, would see another network. inputs: (B, 5, S, S), 0..255, one or more.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    moments: dict[
        nn.Module, tuple[int, Tensor, Tensor]
    ] = {}  # how many values, and per channel their sum, their squares'

    def record(norm: nn.Module, arguments: tuple[Tensor]) -> None:
        x = arguments[0].double()
        count, total, squares = moments.get(norm, (0, x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])))
        moments[norm] = count + x[:, 0].numel(), total + x.sum((0, 2, 3)), squares + x.square().sum((0, 2, 3))

    hooks = [norm.register_forward_pre_hook(record) for norm in norms]
    network.eval()
    for each in inputs:
        network(each.float())
    for hook in hooks:
        hook.remove()

    for norm in norms:
        if norm not in moments:  # the side outputs', which serve the training alone
            continue
        assert norm.running_mean is not None
        assert norm.running_var is not None
        count, total, squares = moments[norm]
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=MIN_VARIANCE)
        slope = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        at_zero = norm.bias.double() - slope * norm.running_mean.double()
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_(slope * (variance + norm.eps).sqrt())
        norm.bias.copy_(at_zero + slope * mean)


@torch.no_grad()
def reestimate(clicking: Clicking, batches: Iterable[Batch], seed: int) -> None:
    """Set every batch norm to the mean statistics of these batches, some of them with a correction.

    Those of averaged weights lag behind: they are averages of other weights' statistics, most of them on smaller crops.
    Those of a training are of masks with many clicks, too, of which first masks know nothing.
    """
    rng = np.random.default_rng(seed)
    norms = [module for module in clicking.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # equal weights for all that follows
    clicking.train()
    for batch in batches:
        clicking(batch, int(rng.random() < CORRECTED), rng)
    clicking.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def keep(network: IOG) -> None:
    """In a network in training, use the statistics that its batch norms have instead of those of each batch."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
