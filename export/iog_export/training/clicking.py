"""A batch's loss when the network is clicked at: section 3.3 of the paper, iterative training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from iog.arrays import BoolArray, UInt8Array
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

    annotators: threads that look at masks. With more than one, batches go in two lanes: while a device computes the
    masks of one, those of the other are looked at.
    """

    def __init__(
        self, network: IOG, geometry: Geometry, arithmetic: torch.dtype = torch.float32, annotators: int = 1
    ) -> None:
        super().__init__()
        self.network = network
        self.geometry = geometry
        self.arithmetic = arithmetic
        self.lanes = min(annotators, 2)
        self._threads = ThreadPoolExecutor(annotators, "annotator") if annotators > 1 else None

    def forward(self, batch: Batch, corrections: int, rng: np.random.Generator) -> Losses:
        """The initial clicks, then a chain of corrections whose last mask counts as much as the first.

        batch: on the CPU, where the annotators look at masks.
        """
        lanes = [_Lane(self, Batch(*parts)) for parts in zip(*(t.chunk(self.lanes) for t in batch), strict=True)]
        for lane in lanes:
            lane.first()
        for remaining in reversed(range(corrections)):
            for lane in lanes:
                lane.correct(rng, counts=remaining == 0)
        shares = [len(lane.batch.inputs) / len(batch.inputs) for lane in lanes]
        total = torch.stack([share * lane.total for share, lane in zip(shares, lanes, strict=True)]).sum()
        first = torch.stack([share * lane.initial for share, lane in zip(shares, lanes, strict=True)]).sum()
        return Losses(total, first.detach())

    def annotate(
        self, clicks: UInt8Array, wrong: BoolArray, batch: Batch, guidance: GuidanceSpec, rng: np.random.Generator
    ) -> None:
        """`add_corrections` by all annotators at once."""
        add_corrections(clicks, wrong, batch, guidance, rng, self._threads.map if self._threads else map)


class _Lane:
    """A part of a batch on its way through the network, again and again."""

    def __init__(self, clicking: Clicking, batch: Batch) -> None:
        self.batch = batch
        self._clicking = clicking
        self._network = clicking.network
        self._device = device = next(clicking.network.parameters()).device
        self._inputs = _on(device, batch.inputs).contiguous(memory_format=torch.channels_last)
        self._target, self._known = _on(device, batch.target), _on(device, batch.known)
        clicks = batch.inputs[:, 3:].clone()
        self._clicks = clicks.pin_memory() if device.type == "cuda" else clicks  # or the device waits for the copy
        self._guidance = clicking.geometry.at(clicks.shape[-1]).guidance
        self._autocast = torch.autocast(device.type, clicking.arithmetic, enabled=clicking.arithmetic != torch.float32)

    def first(self) -> None:
        """The masks after the initial clicks, and their loss."""
        with self._autocast:
            self._features = self._network.encode(self._inputs)
        outputs = self._decoded()
        self.total = self.initial = loss(outputs, self._target, self._known)

    def correct(self, rng: np.random.Generator, *, counts: bool) -> None:
        """Click once more. counts: whether the masks then are learned from."""
        self._clicking.annotate(self._clicks.numpy(), self._seen(), self.batch, self._guidance, rng)
        with torch.set_grad_enabled(counts and torch.is_grad_enabled()):
            outputs = self._decoded()
        if counts:
            self.total = 0.5 * self.initial + 0.5 * loss(outputs, self._target, self._known)

    def _decoded(self) -> Outputs:
        heat = _on(self._device, self._clicks).contiguous(memory_format=torch.channels_last)
        with self._autocast:
            outputs = self._network.decode(self._features, heat)
        self._seen = _on_its_way(masks(outputs, self._clicks.shape[-1]))  # before the loss: annotators wait for it
        return outputs


@torch.no_grad()
def masks(outputs: Outputs, side: int) -> Tensor:
    """(B, side, side) bool on the device, as an annotator sees them."""
    logits = functional.interpolate(outputs.logits.float(), size=(side, side), mode="bilinear", align_corners=True)
    return logits[:, 0] > 0


def add_corrections(
    clicks: UInt8Array,
    predicted: BoolArray,
    batch: Batch,
    guidance: GuidanceSpec,
    rng: np.random.Generator,
    each: Callable[[Callable[[int], None], Iterable[int]], Iterable[None]] = map,
) -> None:
    """Draw into `clicks`, (B, 2, S, S) uint8 heat, one click per sample on the largest error of `predicted`.

    predicted: (B, S, S). each: as `map`; the samples are independent of each other.
    """
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


def _on_its_way(values: Tensor) -> Callable[[], BoolArray]:
    """The values on the CPU, once they are there; the device goes on with what else it has to do."""
    if values.device.type != "cuda":
        return values.numpy
    there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    there.copy_(values, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()

    def arrived() -> BoolArray:
        event.synchronize()
        return there.numpy()

    return arrived
