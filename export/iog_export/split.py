"""A trained network taken apart: what runs once per object, and what runs at every click.

All that does not depend on new clicks belongs to the encoder. A 1x1 convolution of a concatenation is the sum of its
shares, and it commutes with pooling and bilinear resizing, whose weights sum to 1: in real arithmetic `Head` after
`Encoder` and `ClickBranch` is the network. Resizes alone must not be chained: with aligned corners they do not compose.

Below, S is the side of the input, g = S/16 the grid, W the decoder's width and P the channels of a PSP stage.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
from iog.guidance import STRIDE, GuidanceSpec
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, embedding, interpolate, pad, relu
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .networks import IOG
from .networks.decoder import PSP_BINS
from .networks.iog import CLICK_CHANNELS

_Module = TypeVar("_Module", bound=nn.Module)

BIN_ROWS = [slice(a, b) for a, b in pairwise(accumulate((n * n for n in PSP_BINS), initial=0))]  # 0..1..5..14..50


@dataclass(frozen=True)
class Split:
    """The parts of a network with a refinement branch, and the guidance whose windows `click` takes."""

    encoder: Encoder
    click: ClickBranch
    head: Head
    guidance: GuidanceSpec


def split(network: IOG, *, size: int, fwhm: float) -> Split:
    """Take a network with a refinement branch apart, in its dtype.

    size: side of the network's input, a multiple of 32; fwhm: of the clicks' heat, in pixels of that input.
    """
    if not network.spec.refine:
        raise ValueError(f"{network.spec} has no refinement branch: its input changes with every click; use whole()")
    guidance = GuidanceSpec(size, fwhm)
    net = _fold(network)
    with torch.no_grad():
        zero = net.iog_points(torch.zeros(1, 2, size, size, dtype=torch.float64))[0]  # (64, g, g)
    return Split(
        encoder=_finish(Encoder(net, guidance.grid, zero), network),
        click=_finish(ClickBranch(net, guidance, zero), network),
        head=_finish(Head(net, guidance.grid), network),
        guidance=guidance,
    )


def whole(network: IOG, *, size: int) -> Whole:
    """Make one graph of a network without a refinement branch, by the same algebra, in its dtype."""
    if network.spec.refine:
        raise ValueError(f"{network.spec} has a refinement branch, so that clicks need not run all of it; use split()")
    return _finish(Whole(_fold(network), size // STRIDE), network)


class Encoder(nn.Module):
    """Image and initial clicks -> what `Head` needs of them."""

    def __init__(self, net: IOG, grid: int, zero: Tensor | None) -> None:
        """zero: (64, g, g), the click branch's response to no heat, or None where there is no such branch."""
        super().__init__()
        # Zero padding of the first convolution must stay zero in normalised pixels: the offset cannot be folded.
        offset = torch.tensor([127.5] * 3 + [0.0] * 2, dtype=torch.float64).view(1, 5, 1, 1)
        self.offset = _constant(offset) if net.spec.normalize else None
        self.backbone = net.backbone
        self.laterals = nn.ModuleList(_conv(net, f"Coarse_net.laterals.{level}.0") for level in (1, 2, 3))

        psp = _PSPWeights(net)
        self.pool = _constant(_pool_matrix(grid))
        self.stages = nn.ParameterList(_constant(w) for w in psp.stages_top)
        self.context = _conv1x1(psp.context_top)
        stage_bias, context_bias = psp.stage_bias, psp.context_bias[:, None, None]  # (50, P), (2W, 1, 1)
        if zero is not None:
            tokens = (zero.flatten(1) @ self.pool).T  # (50, 64)
            stage_bias = stage_bias + _per_bin(tokens, psp.stages_click)
            context_bias = context_bias + torch.einsum("oc,cyx->oyx", psp.context_click, zero)
        self.stage_bias = _constant(stage_bias)
        self.context_bias = _constant(context_bias)

        mix = _MixWeights(net)
        self.detail = _conv1x1(mix.level3, mix.bias)
        self.mid = mix.mid

    def forward(self, image: Tensor, guidance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The features, in the order in which `Head` takes them.

        image: (B, S, S, 3) uint8 RGB, the crop. guidance: (B, 2, S, S) uint8, foreground and background heat of the
        initial clicks.
        """
        x = torch.cat([image.permute(0, 3, 1, 2), guidance], dim=1).to(self.pool.dtype)  # (B, 5, S, S)
        if self.offset is not None:
            x = x - self.offset
        layer1, layer2, layer3, layer4 = self.backbone(x)
        tokens = (layer4.flatten(2) @ self.pool).transpose(1, 2)  # (B, 50, C4)
        pooled = (_per_bin(tokens, self.stages) + self.stage_bias).transpose(1, 2)  # (B, P, 50)
        context = self.context(layer4) + self.context_bias  # (B, 2W, g, g)
        level1, level2, level3 = (
            relu(lateral(x)) for lateral, x in zip(self.laterals, (layer3, layer2, layer1), strict=True)
        )
        both = self.detail(level3)
        detail, skip = both[:, : self.mid], both[:, self.mid :]  # W/2 and W channels at 4g
        return context, pooled, level1, level2, detail, skip


class ClickBranch(nn.Module):
    """The change of the click map's cells that one window of heat sees, against a map of no clicks.

    Unpadded convolutions on a window give what padded ones give on the whole map, if every layer's response outside the
    map is set to the zero that padding would have put there.
    """

    def __init__(self, net: IOG, guidance: GuidanceSpec, zero: Tensor) -> None:
        """zero: (64, g, g), the click branch's response to no heat."""
        super().__init__()
        self.size = guidance.size
        convs = [layer for layer in copy.deepcopy(net.iog_points) if isinstance(layer, nn.Conv2d)]
        for conv in convs:
            conv.padding = (0, 0)
        self.convs = nn.ModuleList(convs)
        # No heat gives one response all over the map but in its first row and column: with even sides and stride 2 a
        # convolution reads padding before its first value and nowhere else.
        self.zero = _constant(zero[:, :2, :2].flatten(1).T)  # (4, 64)

    def forward(self, window: Tensor, origin: Tensor) -> Tensor:
        """Return `cells` (N, 64, n, n), zero outside the map.

        window: (N, 2, w, w) uint8, heat of all clicks, foreground and background, that lies in each window.
        origin: (N, 2) int32, x and y of the window's first pixel, of the form 16 k - 15; the first cell is k.
        """
        *strided, last = self.convs
        at = origin[:, :, None] + torch.arange(window.shape[-1], dtype=origin.dtype, device=origin.device)  # (N, 2, w)
        inside = ((at >= 0) & (at < self.size)).to(self.zero.dtype)
        inside = inside[:, 1, None, :, None] * inside[:, 0, None, None, :]  # (N, 1, w, w)
        x = window.to(self.zero.dtype) * inside
        for conv in strided:
            inside = inside[:, :, 1::2, 1::2]  # value i is centred on value 2 i + 1 of its input
            x = relu(conv(x)) * inside
        x = relu(last(x))  # (N, 64, n, n)

        later = (at[:, :, STRIDE - 1 :: STRIDE] > 0).to(origin.dtype)  # (N, 2, n), whether a cell is beyond the first
        zero = embedding(2 * later[:, 1, :, None] + later[:, 0, None, :], self.zero).permute(0, 3, 1, 2)
        return (x - zero) * inside


class Head(nn.Module):
    """Features and click map -> logits."""

    def __init__(self, net: IOG, grid: int) -> None:
        super().__init__()
        self.grid = grid
        psp = _PSPWeights(net)
        if net.spec.refine:
            self.pool = _constant(_pool_matrix(grid))
            self.stages = nn.ParameterList(_constant(w) for w in psp.stages_click)
            self.context = _conv1x1(psp.context_click)
        self.merge = nn.ParameterList(_constant(w) for w in psp.merge)
        self.unpool = _constant(_unpool_matrix(grid))

        mix = _MixWeights(net)
        self.lateral = _conv(net, "Coarse_net.laterals.0.0")
        self.climb = _conv(net, "Coarse_net.upsamples.1.1")
        self.fine = nn.ModuleList(  # without the upsampling at the end of each
            nn.Sequential(*list(branch.children())[:-1]) for branch in list(net.Fine_net.cascade)[:3]
        )
        # Conv1's share and the shortcut's apart, as `detail` and `skip`: engines copy what is taken out of a map.
        self.mix01 = nn.ModuleList(map(_conv1x1, mix.parts(torch.cat([mix.level0, mix.level1], dim=1))))
        self.mix2 = nn.ModuleList(map(_conv1x1, mix.parts(torch.cat([mix.level2, mix.level2_by_level3], dim=1))))
        self.conv2 = _conv(net, "Fine_net.final_predict.0.conv2")
        self.conv3 = _conv(net, "Fine_net.final_predict.0.conv3")
        last = _conv(net, "Fine_net.final_predict.1")  # W -> 1: engines pad 1 channel to 16, so compute taps and add
        self.taps = _conv1x1(last.weight[0].flatten(1).T)
        self.bias = _constant(_bias(last))

    def forward(
        self,
        context: Tensor,
        pooled: Tensor,
        level1: Tensor,
        level2: Tensor,
        detail: Tensor,
        skip: Tensor,
        clicks: Tensor | None = None,
    ) -> Tensor:
        """Return `logits` (B, 4g, 4g).

        clicks: (B, 64, g, g), the click map: `ClickBranch`'s cells, zero elsewhere.
        """
        g = self.grid
        pyramid = pooled.transpose(1, 2)  # (B, 50, P)
        if clicks is not None:
            tokens = (clicks.flatten(2) @ self.pool).transpose(1, 2)  # (B, 50, 64)
            pyramid = pyramid + _per_bin(tokens, self.stages)
            context = context + self.context(clicks)
        spread = _per_bin(relu(pyramid), self.merge).transpose(1, 2) @ self.unpool  # (B, 2W, g²)
        context = relu(context + spread.reshape(-1, *context.shape[1:]))  # (B, 2W, g, g)

        level0 = relu(self.lateral(context))  # (B, W, g, g)
        level1 = level1 + level0  # (B, W, g, g)
        level2 = level2 + _enlarge(self.climb(level1), 2)  # (B, W, 2g, 2g)
        coarse = torch.cat([self.fine[0](level0), self.fine[1](level1)], dim=1)  # (B, 2W, g, g)
        middle = torch.cat([self.fine[2](level2), level2], dim=1)  # (B, 2W, 2g, 2g)
        # NB: these sums' order. ONNX Runtime adds maps of its own layout within convolutions, inputs beside them.
        into_conv, past_conv = (
            _enlarge(mix01(coarse), 4) + _enlarge(mix2(middle), 2)
            for mix01, mix2 in zip(self.mix01, self.mix2, strict=True)
        )  # (B, W/2, 4g, 4g), (B, W, 4g, 4g)
        x = self.conv3(relu(self.conv2(relu(detail + into_conv))))
        x = relu((x + past_conv) + skip)  # (B, W, 4g, 4g)
        taps = pad(self.taps(x), (1, 1, 1, 1))  # (B, 9, 4g+2, 4g+2)
        shifted = (taps[:, 3 * i + j, i : i + 4 * g, j : j + 4 * g] for i in range(3) for j in range(3))
        return sum(shifted, start=self.bias)


class Whole(nn.Module):
    """Image and clicks -> logits, for networks in which nothing outlasts a click."""

    def __init__(self, net: IOG, grid: int) -> None:
        super().__init__()
        self.encoder = Encoder(net, grid, None)
        self.head = Head(net, grid)

    def forward(self, image: Tensor, guidance: Tensor) -> Tensor:
        """Return `logits` (B, 4g, 4g).

        image: (B, S, S, 3) uint8 RGB. guidance: (B, 2, S, S) uint8, foreground and background heat of all clicks.
        """
        logits: Tensor = self.head(*self.encoder(image, guidance))
        return logits


class _PSPWeights:
    """The convolutions of the PSP, by what they act on."""

    def __init__(self, net: IOG) -> None:
        convs = [_conv(net, f"psp4.stages.{i}.1") for i in range(len(PSP_BINS))]
        stages = [_matrix(conv).T for conv in convs]  # 4 x (C, P)
        (channels, stage), clicks = stages[0].shape, CLICK_CHANNELS * net.spec.refine
        self.stages_top = [w[: channels - clicks] for w in stages]
        self.stages_click = [w[channels - clicks :] for w in stages]
        biases = [_bias(conv).expand(n * n, -1) for conv, n in zip(convs, PSP_BINS, strict=True)]
        self.stage_bias = torch.cat(biases)  # (50, P)

        bottleneck = _conv(net, "psp4.bottleneck.0")  # of the stages, the backbone's map and the click map
        *merge, top, click = torch.split(_matrix(bottleneck), [stage] * 4 + [channels - clicks, clicks], dim=1)
        self.merge = [w.T for w in merge]  # 4 x (P, 2W)
        self.context_top = top  # (2W, C4)
        self.context_click = click  # (2W, 64)
        self.context_bias = _bias(bottleneck)


class _MixWeights:
    """Conv1 and shortcut of FineNet's last bottleneck, together 4W -> 3W/2, by the level that they act on.

    Level 3 has no bottleneck of its own and is its lateral plus the upsampled climb of level 2: it is never formed.
    """

    def __init__(self, net: IOG) -> None:
        convs = [_conv(net, f"Fine_net.final_predict.0.{name}") for name in ("conv1", "downsample.0")]
        climb = _conv(net, "Coarse_net.upsamples.2.1")
        self.level0, self.level1, self.level2, self.level3 = torch.cat([_matrix(c) for c in convs]).chunk(4, dim=1)
        self.level2_by_level3 = self.level3 @ _matrix(climb)
        self.bias = torch.cat([_bias(c) for c in convs]) + self.level3 @ _bias(climb)
        self.mid = convs[0].out_channels

    def parts(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of conv1 and those of the shortcut."""
        return matrix[: self.mid], matrix[self.mid :]


def _fold(network: IOG) -> IOG:
    """A copy in float64 and eval mode, with batch norms and the scales of `normalize` folded into convolutions."""
    net = copy.deepcopy(network).cpu().double().eval().requires_grad_(False)
    for parent in net.modules():
        for (name, conv), (bn_name, bn) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, bn))
                setattr(parent, bn_name, nn.Identity())
    if net.spec.normalize:
        net.backbone.conv1.weight[:, :3] /= 64
        net.backbone.conv1.weight[:, 3:] /= 255
        if net.spec.refine:
            _conv(net, "iog_points.0").weight /= 255
    return net


def _finish(part: _Module, network: IOG) -> _Module:
    """A part that shares nothing with the others, in the dtype and on the device of the network it came from."""
    like = next(network.parameters())
    return copy.deepcopy(part).to(like).eval().requires_grad_(False)


def _enlarge(x: Tensor, factor: int) -> Tensor:
    """`upsample` by a factor that the graph states: ONNX Runtime's fast kernel wants it, not the result's size."""
    return interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=True)


def _per_bin(tokens: Tensor, weights: Iterable[Tensor]) -> Tensor:
    """Multiply the tokens of each PSP stage by its matrix: (..., 50, in), 4 x (in, out) -> (..., 50, out)."""
    return torch.cat([tokens[..., bins, :] @ w for bins, w in zip(BIN_ROWS, weights, strict=True)], dim=-2)


def _pool_matrix(grid: int) -> Tensor:
    """(g², 50): adaptive average pooling to all PSP bins, as a right-hand factor. It is separable."""
    rows = [adaptive_avg_pool1d(torch.eye(grid, dtype=torch.float64), n) for n in PSP_BINS]  # (g, n)
    return torch.cat([torch.kron(r, r) for r in rows], dim=1)


def _unpool_matrix(grid: int) -> Tensor:
    """(50, g²): bilinear resizing, corners aligned, of all PSP bins to the grid, as a right-hand factor."""
    eyes = (torch.eye(n, dtype=torch.float64)[None] for n in PSP_BINS)
    rows = [interpolate(eye, grid, mode="linear", align_corners=True)[0] for eye in eyes]  # (n, g)
    return torch.cat([torch.kron(r, r) for r in rows])


def _conv(net: IOG, key: str) -> nn.Conv2d:
    conv = net.get_submodule(key)
    assert isinstance(conv, nn.Conv2d)
    return conv


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None  # folding gives every convolution one
    return conv.bias


def _matrix(conv: nn.Conv2d) -> Tensor:
    """(out, in) of a 1x1 convolution."""
    return conv.weight[:, :, 0, 0]


def _conv1x1(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A 1x1 convolution of a (out, in) matrix."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None)
    conv.weight = _constant(weight[:, :, None, None])
    conv.bias = None if bias is None else _constant(bias)
    return conv


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
