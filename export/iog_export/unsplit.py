"""A bundle put together again: a network to train on, from graphs that `split` made.

Only what a bundle keeps can come back. Batch norms were folded into convolutions: here they add the bias and do nothing
else, until `iog_export.training.norms.rebase` gives them statistics. What serves the training alone, the side outputs,
has new weights, behind a scale of 0: until they have learned to read the levels, they must not bend them. Of the climb
to level 3 its product with the next map is known, and that map: it follows by least squares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import onnx
import torch
from iog.bundle import Bundle
from iog.errors import BundleError
from onnx import numpy_helper
from torch import Tensor, nn

from .networks import IOG, NetworkSpec
from .split import BIN_ROWS, Split, split
from .to_onnx import HALF_SUFFIX

_Folded: TypeAlias = tuple[str, Tensor, Tensor]  # a convolution's key, and its weight and bias, batch norm included

ADVICE = (
    "Only fp32 and fp16 bundles that `iog export` wrote, unaltered, can be put together again: start from the "
    "checkpoint that this one was made of"
)
TOLERANCE = 0.02  # of a tensor's largest value, between the bundle and the result split again; float16 takes 0.005


def unsplit(bundle: Bundle) -> IOG:
    """The network of a `split` bundle, float32 and in evaluation mode: it computes what the bundle does.

    Raises BundleError: a bundle of another kind, or graphs that `iog export` did not write as `split` makes them.
    """
    manifest = bundle.manifest
    if manifest.kind != "split":
        raise BundleError(
            f"{bundle.path} is a bundle of kind {manifest.kind!r}; only those of kind 'split' can be put together "
            "again: start from the checkpoint that this one was made of"
        )
    spec = NetworkSpec(manifest.network.backbone, True, manifest.network.width, manifest.network.normalize)
    size, fwhm = bundle.guidance.size, bundle.guidance.fwhm
    network = IOG(spec).double().eval().requires_grad_(False)
    norms = _norms(network)
    parts = {name: _Tensors(bundle, name) for name in ("encoder", "click", "head")}
    try:
        for folded in _folded(spec, bundle.guidance.grid, **parts):
            _put(network, norms, folded)
    except (KeyError, RuntimeError, AttributeError) as e:  # a name or a shape that does not fit
        raise BundleError(f"{bundle.path}: the graphs do not fit {spec}: {e}. {ADVICE}") from e
    for norm in network.Coarse_net.predict.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.num_features == 1:  # the last one of each
            nn.init.zeros_(norm.weight)
    _prove(split(network, size=size, fwhm=fwhm), parts)
    return network.float().requires_grad_(True)


class _Tensors:
    """The weights in one graph of a bundle, by the names of `split`'s modules, as float64."""

    def __init__(self, bundle: Bundle, graph: str) -> None:
        self.where = f"{bundle.path}: graph {graph!r}"
        try:
            model = onnx.load_model_from_string(bundle.graphs[graph])
        except Exception as e:  # of protobuf, whose errors are no public names
            raise BundleError(f"{self.where} is no ONNX graph: {e}; export the bundle again") from e
        self.values: dict[str, Tensor] = {
            tensor.name.removesuffix(HALF_SUFFIX): torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float64))
            for tensor in model.graph.initializer
            if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        }
        for name in ("mix01", "mix2"):  # early bundles have the two in one, a third of it conv1's
            if (both := self.values.get(f"{name}.weight")) is not None:
                third = len(both) // 3
                self.values |= {f"{name}.0.weight": both[:third], f"{name}.1.weight": both[third:]}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.values:
            raise BundleError(f"{self.where} holds no float weights {name!r}. {ADVICE}")
        return self.values[name]

    def conv(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of a convolution."""
        return self[f"{name}.weight"], self[f"{name}.bias"]

    def matrix(self, name: str) -> Tensor:
        """(out, in) of a 1x1 convolution."""
        return self[f"{name}.weight"].flatten(1)


def _folded(spec: NetworkSpec, grid: int, encoder: _Tensors, click: _Tensors, head: _Tensors) -> Iterator[_Folded]:
    """Each identity of `split` the other way round."""
    yield from _backbone(spec, encoder)
    yield from _click_branch(spec, click)
    yield "Coarse_net.laterals.0.0", *head.conv("lateral")
    for i in range(3):
        yield f"Coarse_net.laterals.{i + 1}.0", *encoder.conv(f"laterals.{i}")
    yield "Coarse_net.upsamples.1.1", *head.conv("climb")
    yield from _pyramid(encoder, head, _no_clicks(click["zero"], grid))
    for level, depth in enumerate((3, 2, 1)):
        for block in range(depth):
            for name in ("conv1", "conv2", "conv3", "downsample.0"):
                yield f"Fine_net.cascade.{level}.{block}.{name}", *head.conv(f"fine.{level}.{block}.{name}")
    yield from _last(spec, encoder, head)


def _backbone(spec: NetworkSpec, encoder: _Tensors) -> Iterator[_Folded]:
    weight, bias = encoder.conv("backbone.conv1")
    if spec.normalize:
        weight = torch.cat([weight[:, :3] * 64, weight[:, 3:] * 255], dim=1)
    yield "backbone.conv1", weight, bias
    for name in encoder.values:
        if name.startswith("backbone.layer") and name.endswith(".weight"):
            key = name.removesuffix(".weight")
            yield key, *encoder.conv(key)


def _click_branch(spec: NetworkSpec, click: _Tensors) -> Iterator[_Folded]:
    for i in range(5):
        weight, bias = click.conv(f"convs.{i}")
        yield f"iog_points.{3 * i}", weight * 255 if spec.normalize and i == 0 else weight, bias


def _no_clicks(zero: Tensor, grid: int) -> Tensor:
    """(64, g, g), the response to no heat, of its first two rows and columns: (4, 64), see `ClickBranch`."""
    later = torch.arange(grid).clamp(max=1)
    return zero[2 * later[:, None] + later].permute(2, 0, 1)


def _pyramid(encoder: _Tensors, head: _Tensors, zero: Tensor) -> Iterator[_Folded]:
    """The PSP: the shares of the backbone's map and of the click map side by side.

    The encoder's biases hold the response to no clicks too; without it they are the same everywhere.
    """
    tokens = (zero.flatten(1) @ encoder["pool"]).T  # (50, 64)
    for i, rows in enumerate(BIN_ROWS):
        top, clicks = encoder[f"stages.{i}"], head[f"stages.{i}"]  # (C4, P), (64, P)
        bias = encoder["stage_bias"][rows] - tokens[rows] @ clicks  # (n², P)
        yield f"psp4.stages.{i}.1", torch.cat([top, clicks]).T, bias.mean(0)
    top, clicks = encoder.matrix("context"), head.matrix("context")  # (2W, C4), (2W, 64)
    merge = [head[f"merge.{i}"].T for i in range(4)]  # 4 x (2W, P)
    bias = encoder["context_bias"].flatten(1) - clicks @ zero.flatten(1)  # (2W, g²)
    yield "psp4.bottleneck.0", torch.cat([*merge, top, clicks], dim=1), bias.mean(1)


def _last(spec: NetworkSpec, encoder: _Tensors, head: _Tensors) -> Iterator[_Folded]:
    """FineNet's last bottleneck, whose conv1 and shortcut act on four levels, and the climb to the last of them."""
    mix01, mix2 = (torch.cat([head.matrix(f"{name}.{i}") for i in range(2)]) for name in ("mix01", "mix2"))
    level0, level1 = mix01.chunk(2, dim=1)  # (3W/2, W) each
    level2, level2_by_level3 = mix2.chunk(2, dim=1)
    level3, bias = encoder.matrix("detail"), encoder["detail.bias"]
    climb = torch.linalg.lstsq(level3, level2_by_level3).solution  # (W, W)
    yield "Coarse_net.upsamples.2.1", climb, climb.new_zeros(len(climb))  # its bias is in the encoder's
    mixed, mid = torch.cat([level0, level1, level2, level3], dim=1), spec.width // 2
    yield "Fine_net.final_predict.0.conv1", mixed[:mid], bias[:mid]
    yield "Fine_net.final_predict.0.downsample.0", mixed[mid:], bias[mid:]
    for name in ("conv2", "conv3"):
        yield f"Fine_net.final_predict.0.{name}", *head.conv(name)
    yield "Fine_net.final_predict.1", head.matrix("taps").T, head["bias"]  # (W, 9), which is (1, W, 3, 3)


def _put(network: IOG, norms: Mapping[str, nn.BatchNorm2d], folded: _Folded) -> None:
    """Fill a convolution, and let its batch norm add the bias and do nothing else."""
    key, weight, bias = folded
    conv, norm = network.get_parameter(f"{key}.weight"), norms[key]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    conv.copy_(weight.reshape(conv.shape))
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    norm.weight.fill_(1)
    norm.bias.copy_(bias)


def _norms(network: IOG) -> dict[str, nn.BatchNorm2d]:
    """The batch norm behind each convolution, by the convolution's key."""
    norms = {}
    for path, parent in network.named_modules():
        for (name, conv), (_, norm) in pairwise(parent.named_children()):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                norms[f"{path}.{name}"] = norm
    return norms


def _prove(again: Split, parts: Mapping[str, _Tensors]) -> None:
    """Raises BundleError if the network, split again, has other weights than the bundle."""
    for name, part in parts.items():
        expected: Mapping[str, Tensor] = getattr(again, name).state_dict()
        for key, value in expected.items():
            given = part[key]
            error = (given.reshape(value.shape) - value).abs().max() if given.numel() == value.numel() else torch.inf
            if not error <= TOLERANCE * value.abs().max():
                raise BundleError(f"{part.where}: {key} is not what `split` makes of the other weights. {ADVICE}")
