"""A batch's loss when the network is clicked at: section 3.3 of the paper, iterative training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from iog.arrays import UInt8Array
from iog.guidance import GuidanceSpec, draw
from torch import Tensor, nn
from torch.nn import functional

from iog_export.annotator import correction
from iog_export.networks import IOG, Outputs

from .losses import loss
from .samples import Batch, Geometry


class Losses(NamedTuple):
    """Scalars. total: what is minimised; first: of the masks after the initial clicks, to watch."""

    total: Tensor
    first: Tensor


class Clicking(nn.Module):
    """A network and its simulated annotators.

    One call, however many clicks: DistributedDataParallel counts on one call of its module for each backward pass.
    annotators: threads that look at masks; a GPU waits for them.
    """

    def __init__(
        self, network: IOG, geometry: Geometry, arithmetic: torch.dtype = torch.float32, annotators: int = 1
    ) -> None:
        super().__init__()
        self.network = network
        self.geometry = geometry
        self.arithmetic = arithmetic
        self._map = ThreadPoolExecutor(annotators, "annotator").map if annotators > 1 else map

    def forward(self, batch: Batch, corrections: int, rng: np.random.Generator) -> Losses:
        """The initial clicks, then a chain of corrections whose last mask counts as much as the first.

        batch: on the CPU, where the annotators look at masks.
        """
        device = next(self.network.parameters()).device
        inputs = _on(device, batch.inputs).contiguous(memory_format=torch.channels_last)
        target, known = _on(device, batch.target), _on(device, batch.known)
        clicks = batch.inputs[:, 3:].numpy().copy()
        guidance = self.geometry.at(inputs.shape[-1]).guidance
        autocast = torch.autocast(device.type, self.arithmetic, enabled=self.arithmetic != torch.float32)
        with autocast:
            features = self.network.encode(inputs)
            outputs = self.network.decode(features, _heat(clicks, device))
        first = total = loss(outputs, target, known)
        for remaining in reversed(range(corrections)):
            add_corrections(clicks, outputs, batch, guidance, rng, self._map)
            with torch.set_grad_enabled(remaining == 0 and torch.is_grad_enabled()), autocast:
                outputs = self.network.decode(features, _heat(clicks, device))
            if remaining == 0:
                total = 0.5 * first + 0.5 * loss(outputs, target, known)
        return Losses(total, first.detach())


def add_corrections(
    clicks: UInt8Array,
    outputs: Outputs,
    batch: Batch,
    guidance: GuidanceSpec,
    rng: np.random.Generator,
    each: Callable[[Callable[[int], None], Iterable[int]], Iterable[None]] = map,
) -> None:
    """Draw into `clicks`, (B, 2, S, S) uint8 heat, one click per sample on the largest error of `outputs`.

    each: as `map`. Samples draw from generators of their own: the clicks do not depend on who makes them when.
    """
    side = clicks.shape[-1]
    with torch.no_grad():
        logits = functional.interpolate(outputs.logits.float(), size=(side, side), mode="bilinear", align_corners=True)
    predicted = (logits[:, 0] > 0).cpu().numpy()
    target, known = batch.target[:, 0].numpy() > 0, batch.known[:, 0].numpy() > 0
    seeds = rng.integers(2**63, size=len(clicks))

    def click(i: int) -> None:
        fix = correction(predicted[i], target[i], known[i], np.random.default_rng(seeds[i]))
        if fix is not None:
            point = np.array([(fix.click.x, fix.click.y)], np.int32)
            draw(clicks[i, 0 if fix.click.positive else 1], point, guidance)

    for _ in each(click, range(len(clicks))):
        pass


def _on(device: torch.device, values: Tensor) -> Tensor:
    """As floats on the device, to which bytes travel."""
    return values.to(device, non_blocking=True).float()


def _heat(clicks: UInt8Array, device: torch.device) -> Tensor:
    return _on(device, torch.from_numpy(clicks)).contiguous(memory_format=torch.channels_last)
