"""The networks that are compared, in every form that a competitor runs; made once, kept in a folder."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import click
import onnx
import torch
from iog.bundle import GraphInfo
from iog.cores import allowed
from iog_export import export
from iog_export.networks import IOG, Features, NetworkSpec, randomize
from iog_export.to_onnx import OnnxGraph, export_graph, finish
from torch import Tensor, nn

from .record import console
from .scene import PHOTOGRAPH

SEED = 0
PUBLISHED_WIDTH = 256


class NotRun(click.ClickException):
    """A competitor that cannot be measured here; the message says why, and the report repeats it."""


@dataclass(frozen=True)
class Published:
    """The authors' network with random weights (the time does not depend on them) and everything made of it.

    folder: what is made is kept here, under a name that changes with the exporter's code and with torch.
    """

    folder: Path
    backbone: str = "resnet101"
    size: int = 512
    width: int = PUBLISHED_WIDTH

    def __str__(self) -> str:
        narrow = "" if self.width == PUBLISHED_WIDTH else f", width {self.width}"
        return f"{self.backbone.replace('resnet', 'ResNet-')} at {self.size}{narrow}"

    @cached_property
    def network(self) -> IOG:
        """In PyTorch."""
        network = IOG(NetworkSpec(self.backbone, width=self.width))
        randomize(network, SEED)
        return network.eval().requires_grad_(False)

    def bundle(self, precision: str) -> Path:
        """As `iog export` makes it, proved on one photograph. Raises NotRun with what the export says against it."""
        path = self._home / precision
        if not path.exists():
            console.print(f"exporting {self}, {precision}: minutes, once")
            source = ("--backbone", self.backbone, "--width", str(self.width), "--size", str(self.size))
            weights = ("--random-weights", str(SEED), "--photograph", str(PHOTOGRAPH), "--name", "published")
            command = ("export", *source, *weights, "--precision", precision, "--out", str(path))
            done = subprocess.run([sys.executable, "-m", "iog.cli", *command], stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise NotRun((done.stderr.strip().splitlines() or ["the export failed"])[-1])
        return path

    def whole(self) -> OnnxGraph:
        """All of it as one graph: `inputs` (1, 5, S, S), `clicks` (1, 2, S, S) -> `logits`."""
        inputs = torch.zeros(2, 5, self.size, self.size)
        return self._graph("whole", _Whole(self.network), {"inputs": inputs, "clicks": inputs[:, 3:]}, ("logits",))

    def naive(self) -> tuple[OnnxGraph, OnnxGraph]:
        """Cut behind the backbone: `inputs` -> four maps; these and `clicks` -> `logits`."""
        inputs = torch.zeros(2, 5, self.size, self.size)
        with torch.inference_mode():
            maps = self.network.encode(inputs)
        features = {f"layer{i}": m.clone() for i, m in enumerate(maps, 1)}
        return (
            self._graph("backbone", _Backbone(self.network), {"inputs": inputs}, tuple(features)),
            self._graph("decode", _Decode(self.network), {**features, "clicks": inputs[:, 3:]}, ("logits",)),
        )

    @cached_property
    def _home(self) -> Path:
        digest = hashlib.sha256(f"{torch.__version__} {onnx.__version__} {SEED}".encode())
        for source in sorted(Path(export.__file__).parent.glob("*.py")):
            digest.update(source.read_bytes())
        for source in sorted((Path(export.__file__).parent / "networks").glob("*.py")):
            digest.update(source.read_bytes())
        return self.folder / f"{self.backbone}-{self.width}-{self.size}-{digest.hexdigest()[:8]}"

    def _graph(self, name: str, module: nn.Module, inputs: Mapping[str, Tensor], outputs: tuple[str, ...]) -> OnnxGraph:
        path, about = self._home / f"{name}.onnx", self._home / f"{name}.json"
        if about.exists():
            return OnnxGraph(path.read_bytes(), GraphInfo.model_validate_json(about.read_text()))
        console.print(f"exporting {self}, {name}: a minute, once")
        graph = finish(export_graph(name, module, inputs, outputs), path.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(graph.model)
        about.write_text(graph.info.model_dump_json())
        return graph


def use_allowed_cores() -> None:
    """Keep PyTorch, which takes a thread for each core it sees, within a container's quota, as engines are."""
    torch.set_num_threads(min(torch.get_num_threads(), allowed()))


class _Whole(nn.Module):
    def __init__(self, network: IOG) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor, clicks: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs, clicks).logits
        return logits


class _Backbone(nn.Module):
    def __init__(self, network: IOG) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network.encode(inputs))


class _Decode(nn.Module):
    def __init__(self, network: IOG) -> None:
        super().__init__()
        self.network = network

    def forward(self, layer1: Tensor, layer2: Tensor, layer3: Tensor, layer4: Tensor, clicks: Tensor) -> Tensor:
        return self.network.decode(Features(layer1, layer2, layer3, layer4), clicks).logits
