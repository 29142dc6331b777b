"""What follows the backbone: pyramid pooling, then coarse to fine. Every resize is bilinear with aligned corners."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

PSP_BINS = (1, 2, 3, 6)


def upsample(x: Tensor, side: int) -> Tensor:
    """Bilinear, corners aligned: (B, C, h, h) -> (B, C, side, side)."""
    return interpolate(x, size=(side, side), mode="bilinear", align_corners=True)


class Upsample(nn.Module):
    """`upsample` by a whole factor, as a layer."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, h) -> (B, C, factor h, factor h)."""
        return upsample(x, x.shape[-1] * self.factor)


def conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution that keeps (or divides by `stride`) the size, and its batch norm."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    ]


class PSP(nn.Module):
    """Pyramid pooling (Zhao et al., CVPR 2017): context of the whole crop at every position."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        stage = in_channels // 4
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), *conv_bn(in_channels, stage, 1), nn.ReLU(inplace=True))
            for bins in PSP_BINS
        )
        self.bottleneck = nn.Sequential(*conv_bn(in_channels + 4 * stage, out_channels, 1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, g, g) -> (B, out_channels, g, g)."""
        pyramid = [upsample(stage(x), x.shape[-1]) for stage in self.stages]  # 4 x (B, C/4, g, g)
        y: Tensor = self.bottleneck(torch.cat([*pyramid, x], dim=1))
        return y


class CoarseNet(nn.Module):
    """Four levels, coarsest first, each the lateral of one backbone map plus the level above."""

    def __init__(self, in_channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Sequential(*conv_bn(c, width, 1), nn.ReLU(inplace=True)) for c in in_channels)
        # NB: upsamples.0 is published but unused: levels 0 and 1 have the same size, and level 0 is added as it is.
        self.upsamples = nn.ModuleList(nn.Sequential(Upsample(2), *conv_bn(width, width, 1)) for _ in range(3))
        # Auxiliary predictions: for the training loss only.
        self.predict = nn.ModuleList(
            nn.Sequential(
                *conv_bn(width, width, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, 1, 3, padding=1, bias=False),
                Upsample(factor),
                nn.BatchNorm2d(1),
            )
            for factor in (4, 4, 2, 1)
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """PSP output, layer3, layer2, layer1 -> the levels, coarsest first; g is the grid of the first."""
        x0, x1, x2, x3 = (lateral(x) for lateral, x in zip(self.laterals, maps, strict=True))
        level0 = x0  # (B, W, g, g)
        level1 = x1 + level0  # (B, W, g, g)
        level2 = x2 + self.upsamples[1](level1)  # (B, W, 2g, 2g)
        level3 = x3 + self.upsamples[2](level2)  # (B, W, 4g, 4g)
        return level0, level1, level2, level3

    def side_logits(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Each level's own prediction, 4 x (B, 1, 4g, 4g)."""
        return tuple(predict(level) for predict, level in zip(self.predict, levels, strict=True))


class FineBottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions at half the output's width, always with a projected shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        mid = out_channels // 2
        self.conv1 = nn.Conv2d(in_channels, mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = nn.Sequential(*conv_bn(in_channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, h) -> (B, out_channels, h, h)."""
        y = relu(self.bn1(self.conv1(x)), inplace=True)
        y = relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y)) + self.downsample(x)
        return relu(y, inplace=True)


class FineNet(nn.Module):
    """The coarser a level the more bottlenecks it passes; then all four meet at S/4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cascade = nn.ModuleList(
            nn.Sequential(*(FineBottleneck(width, width) for _ in range(depth)), Upsample(factor))
            for depth, factor in ((3, 4), (2, 4), (1, 2), (0, 1))
        )
        self.final_predict = nn.Sequential(FineBottleneck(4 * width, width), *conv_bn(width, 1, 3))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Four levels, coarsest first -> logits (B, 1, 4g, 4g)."""
        fine = [branch(level) for branch, level in zip(self.cascade, levels, strict=True)]  # 4 x (B, W, 4g, 4g)
        logits: Tensor = self.final_predict(torch.cat(fine, dim=1))
        return logits
