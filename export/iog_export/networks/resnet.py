"""ResNets at output stride 16: layer4 keeps its stride at 1 and dilates by 2, 4, 8, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import relu


class Features(NamedTuple):
    """The backbone's feature maps, finest first, for an input of side S."""

    layer1: Tensor  # (B, C, S/4, S/4)
    layer2: Tensor  # (B, 2C, S/8, S/8)
    layer3: Tensor  # (B, 4C, S/16, S/16)
    layer4: Tensor  # (B, 8C, S/16, S/16)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (ResNet-18/34)."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(in_channels, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, h) -> (B, planes, h/stride, h/stride)."""
        y = relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y = y + (x if self.downsample is None else self.downsample(x))
        return relu(y, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut (ResNet-50/101); the stride sits on the 3x3."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.downsample = _shortcut(in_channels, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, h) -> (B, 4 planes, h/stride, h/stride)."""
        y = relu(self.bn1(self.conv1(x)), inplace=True)
        y = relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y = y + (x if self.downsample is None else self.downsample(x))
        return relu(y, inplace=True)


@dataclass(frozen=True)
class Architecture:
    """A member of the family: its block, how many of them each layer has, and the channels of the stem."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]
    stem: int = 64

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of layer1..layer4."""
        c = self.stem * self.block.expansion
        return c, 2 * c, 4 * c, 8 * c


ARCHITECTURES = {
    "resnet18-half": Architecture(BasicBlock, (2, 2, 2, 2), stem=32),
    "resnet18": Architecture(BasicBlock, (2, 2, 2, 2)),
    "resnet30": Architecture(BasicBlock, (3, 4, 5, 2)),  # ours: three quarters of resnet34's parameters
    "resnet34": Architecture(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Architecture(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Architecture(Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """The backbone, without its classifier."""

    def __init__(self, architecture: Architecture, in_channels: int = 5) -> None:
        super().__init__()
        c, (c1, c2, c3, _) = architecture.stem, architecture.channels
        self.conv1 = nn.Conv2d(in_channels, c, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        block, (n1, n2, n3, n4) = architecture.block, architecture.depths
        self.layer1 = _layer(block, c, c, stride=1, dilations=[1] * n1)
        self.layer2 = _layer(block, c1, 2 * c, stride=2, dilations=[1] * n2)
        self.layer3 = _layer(block, c2, 4 * c, stride=2, dilations=[1] * n3)
        self.layer4 = _layer(block, c3, 8 * c, stride=1, dilations=[2, 4, 8][:n4])

    def forward(self, x: Tensor) -> Features:
        """(B, in_channels, S, S) -> the four maps; S is a multiple of 16."""
        stem = self.maxpool(relu(self.bn1(self.conv1(x)), inplace=True))  # (B, C, S/4, S/4)
        layer1 = self.layer1(stem)
        layer2 = self.layer2(layer1)
        layer3 = self.layer3(layer2)
        return Features(layer1, layer2, layer3, self.layer4(layer3))


def _layer(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, planes: int, stride: int, dilations: list[int]
) -> nn.Sequential:
    blocks = [block(in_channels, planes, stride, dilations[0])]
    blocks += [block(planes * block.expansion, planes, dilation=d) for d in dilations[1:]]
    return nn.Sequential(*blocks)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
