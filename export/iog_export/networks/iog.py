"""Inside-Outside Guidance (Zhang et al., CVPR 2020), with and without its refinement branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .decoder import PSP, CoarseNet, FineNet, conv_bn
from .resnet import ARCHITECTURES, Features, ResNet

CLICK_CHANNELS = 64


@dataclass(frozen=True)
class NetworkSpec:
    """Which network.

    backbone: one of `ARCHITECTURES`.
    refine: whether clicks beyond the initial ones enter by a branch of their own; without it they change the
        backbone's input.
    width: channels of the decoder's levels; 256 is the published network.
    normalize: whether the network maps its inputs of 0..255 itself, RGB to (rgb - 127.5) / 64 and heat to heat / 255.
        The published networks take them as they are.
    """

    backbone: str = "resnet101"
    refine: bool = True
    width: int = 256
    normalize: bool = False

    def __post_init__(self) -> None:
        if self.backbone not in ARCHITECTURES:
            raise ValueError(f"backbone {self.backbone!r} is unknown; choose one of {', '.join(ARCHITECTURES)}")
        if self.width < 2 or self.width % 2:
            raise ValueError(f"width is {self.width}; it must be even and at least 2, because bottlenecks halve it")


class Outputs(NamedTuple):
    """Logits at a quarter of the input's side S."""

    logits: Tensor  # (B, 1, S/4, S/4)
    sides: tuple[Tensor, ...]  # in training: four of (B, 1, S/4, S/4), coarsest level first; otherwise empty


class IOG(nn.Module):
    """Image and guidance -> logits. `decode` may run many times, with other clicks, on the features of one `encode`.

    The attributes carry the published names, so that the authors' checkpoints load.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        architecture = ARCHITECTURES[spec.backbone]
        c1, c2, c3, c4 = architecture.channels
        psp_in = c4 + CLICK_CHANNELS if spec.refine else c4
        self.backbone = ResNet(architecture)
        if spec.refine:
            self.iog_points = _click_branch(architecture.stem)
        self.psp4 = PSP(psp_in, 2 * spec.width)
        self.Coarse_net = CoarseNet((2 * spec.width, c3, c2, c1), spec.width)
        self.Fine_net = FineNet(spec.width)
        self.apply(_initialize)

    def forward(self, inputs: Tensor, clicks: Tensor | None = None) -> Outputs:
        """`clicks` defaults to the initial ones, which `inputs` holds."""
        if self.spec.refine and clicks is None:
            clicks = inputs[:, 3:]
        return self.decode(self.encode(inputs), clicks)

    def encode(self, inputs: Tensor) -> Features:
        """The part that does not depend on clicks beyond the initial ones.

        inputs: (B, 5, S, S) float, 0..255: red, green, blue, foreground heat, background heat; S a multiple of 32.
        """
        _, channels, height, width = inputs.shape
        if channels != 5 or height != width or height % 32:
            raise ValueError(f"inputs are {tuple(inputs.shape)}; expected (B, 5, S, S) with S a multiple of 32")
        if self.spec.normalize:
            inputs = torch.cat([(inputs[:, :3] - 127.5) / 64, inputs[:, 3:] / 255], dim=1)
        features: Features = self.backbone(inputs)
        return features

    def decode(self, features: Features, clicks: Tensor | None) -> Outputs:
        """Logits for one set of clicks.

        clicks: (B, 2, S, S) float, 0..255, foreground and background heat of all clicks, the initial ones included;
            None for a network without the refinement branch.
        """
        if self.spec.refine != (clicks is not None):
            raise ValueError(f"clicks must {'be' if self.spec.refine else 'not be'} given to a network of {self.spec}")
        layer1, layer2, layer3, top = features
        if clicks is not None:
            heat = clicks / 255 if self.spec.normalize else clicks
            top = torch.cat([top, self.iog_points(heat)], dim=1)  # (B, C4+64, g, g), g = S/16
        context = self.psp4(top)  # (B, 2W, g, g)
        levels = self.Coarse_net((context, layer3, layer2, layer1))  # (B, W, ...) at g, g, 2g, 4g
        logits = self.Fine_net(levels)  # (B, 1, 4g, 4g)
        return Outputs(logits, self.Coarse_net.side_logits(levels) if self.training else ())


def _click_branch(stem: int) -> nn.Sequential:
    """(B, 2, S, S) -> (B, 64, S/16, S/16). stem: channels behind the first convolution, 64 as published."""
    layers: list[nn.Module] = []
    for c_in, c_out, kernel, stride in (
        (2, stem, 3, 2),
        (stem, 2 * stem, 3, 2),
        (2 * stem, 4 * stem, 3, 2),
        (4 * stem, 4 * stem, 3, 2),
        (4 * stem, CLICK_CHANNELS, 1, 1),
    ):
        layers += [*conv_bn(c_in, c_out, kernel, stride), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
