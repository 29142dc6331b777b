"""Random weights, for benchmarks and tests."""

from __future__ import annotations

from pathlib import Path

import torch
from iog.image import Image

from .iog import IOG

PHOTOGRAPH = Path(__file__).parents[1] / "photographs" / "astronaut.jpg"


def randomize(network: IOG, seed: int) -> None:
    """Fill a network with random weights whose activations have the spread of a trained network's.

    Batch norms take the statistics of a photograph: with those of initialization, deep residual networks overflow.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            fan = parameter[0].numel()
            parameter.data.normal_(0, (2 / fan) ** 0.5, generator=generator)
    for name, module in network.named_modules():
        if name.endswith("bn3"):  # residual branches that add little, as trained ones: or depth amplifies rounding
            torch.nn.init.constant_(module.weight, 0.3)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative: the statistics of what follows
    image = Image.read(PHOTOGRAPH).pixels[:256, :256]
    inputs = torch.zeros(2, 5, 256, 256)
    inputs[:, :3] = torch.from_numpy(image.copy()).permute(2, 0, 1)
    inputs[1] = inputs[1].flip(2)
    inputs[:, 3, 120:136, 120:136] = inputs[:, 4, 30:46, 30:46] = 200
    with torch.no_grad():
        network.train()(inputs)
    for norm in norms:
        norm.momentum = 0.1
    network.eval()
