"""Networks that go on as larger ones: more channels, a wider decoder, more blocks, and at first the same masks.

A small network learns fastest; once it has learned what it can hold, its weights are the best start for a larger one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TypeAlias

import torch
from torch import Tensor

from iog_export.networks import IOG, NetworkSpec
from iog_export.networks.decoder import PSP_BINS
from iog_export.networks.iog import CLICK_CHANNELS
from iog_export.networks.resnet import ARCHITECTURES, BasicBlock, Bottleneck

from .plan import differences

# How many channels each part of a convolution's input has, in the smaller network and in the larger one.
Parts: TypeAlias = Sequence[tuple[int, int]]


def obstacles(small: NetworkSpec, large: NetworkSpec) -> list[str]:
    """What keeps a network from going on as the other one, for people; empty if nothing does."""
    mine, theirs = ARCHITECTURES[small.backbone], ARCHITECTURES[large.backbone]
    grows = {
        "backbone": mine.block is theirs.block
        and mine.stem <= theirs.stem
        and all(few <= many for few, many in zip(mine.depths, theirs.depths, strict=True)),
        "width": small.width <= large.width,
    }
    kept = {name: value for name, value in asdict(large).items() if not grows.get(name)}
    return differences(asdict(small), kept)


@torch.no_grad()
def grown(network: IOG, spec: NetworkSpec) -> IOG:
    """A network of this spec that computes in evaluation what the given one computes.

    Channels that are new begin at random and are read with weights of 0 by those that are not; blocks that are new
    begin as the identity (the scale of their last batch norm is 0). Raises ValueError where there are `obstacles`.
    """
    if problems := obstacles(network.spec, spec):
        raise ValueError(f"a network cannot go on as one that is smaller or of another kind: {'; '.join(problems)}")
    larger = IOG(spec).to(next(network.parameters()).device)
    parts = _concatenated(network.spec, spec)
    old = network.state_dict()
    for name, new in larger.state_dict().items():
        if name not in old:
            continue
        if new.ndim == 4:
            _place(old[name], new, parts.get(name, [(old[name].shape[1], new.shape[1])]))
        elif new.ndim == 1:
            new[: len(old[name])] = old[name]
        else:  # a counter of batches
            new.copy_(old[name])
    known = {name.rpartition(".")[0] for name in old}
    for name, module in larger.named_modules():
        if isinstance(module, BasicBlock | Bottleneck) and f"{name}.conv1" not in known:
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            last.weight.zero_()
    return larger.train(network.training)


def _place(old: Tensor, new: Tensor, parts: Parts) -> None:
    """Put a convolution's weights, (O, I, k, k), where its channels are in the larger one's, in place."""
    new[: len(old)] = 0
    read = at = 0
    for few, many in parts:
        new[: len(old), at : at + few] = old[:, read : read + few]
        read, at = read + few, at + many
    assert (read, at) == (old.shape[1], new.shape[1])


def _concatenated(small: NetworkSpec, large: NetworkSpec) -> Mapping[str, Parts]:
    """The parts of what convolutions read that read several maps, one behind the other, by the weights' name."""
    clicks = [(CLICK_CHANNELS, CLICK_CHANNELS)] if small.refine else []
    top = [(ARCHITECTURES[small.backbone].channels[3], ARCHITECTURES[large.backbone].channels[3]), *clicks]
    few, many = (sum(channels) // len(PSP_BINS) for channels in zip(*top, strict=True))
    levels = [(small.width, large.width)] * 4
    return {
        **{f"psp4.stages.{i}.1.weight": top for i in range(len(PSP_BINS))},
        "psp4.bottleneck.0.weight": [(few, many)] * len(PSP_BINS) + top,
        "Fine_net.final_predict.0.conv1.weight": levels,
        "Fine_net.final_predict.0.downsample.0.weight": levels,
    }
