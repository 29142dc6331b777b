"""What a click costs, next to what deployments of the published code pay: the whole network in PyTorch at every click.

All competitors take turns, round after round, in one run on the same cores, so that the ratios hold on a noisy machine.

    python benchmarks/click_latency.py --rounds 15 --json latency.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import iog
import onnxruntime
import torch
from iog import Box, Client, Point, Predictor, Prompt
from iog.crop import CropSpec
from iog.guidance import GuidanceSpec
from iog.image import Image
from iog.rpc.server import Server, ServerConfig
from iog_export.cli import randomize
from iog_export.export import ExportPlan, export_bundle
from iog_export.networks import IOG, NetworkSpec
from iog_export.verify import PHOTOGRAPHS
from rich.console import Console
from rich.progress import track
from rich.table import Table

PHOTOGRAPH = PHOTOGRAPHS / "astronaut.jpg"
BOX = Box(100, 5, 400, 500)
POINTS = itertools.cycle([(180 + 9 * i, 120 + 13 * i) for i in range(20)])


def published(directory: Path) -> tuple[IOG, Path]:
    """The authors' ResNet-101 with random weights, and its fp32 bundle: the weights do not matter for the time."""
    network = IOG(NetworkSpec("resnet101")).eval()
    randomize(network, 0)
    plan = ExportPlan("published", CropSpec(), GuidanceSpec(), "fp32", 0.5, "random weights", None)
    export_bundle(network, plan, directory / "published", [PHOTOGRAPH])
    return network, directory / "published"


class Annotator:
    """Clicks on one object; each first click draws a new box, each correction is a new one."""

    def __init__(self, segment: Callable[[Image, Prompt], object]) -> None:
        self._segment = segment
        self._image = Image.read(PHOTOGRAPH)
        self._boxes = itertools.count()
        self._prompt = Prompt(BOX, Point(250, 250))

    def first(self) -> None:
        """A new object."""
        shift = next(self._boxes) % 90
        self._prompt = Prompt(Box(BOX.x0 - shift, BOX.y0, BOX.x1, BOX.y1), Point(250, 250 + shift % 7))
        self._segment(self._image, self._prompt)

    def refinement(self) -> None:
        """One more click on it; after eight the annotator takes them all back."""
        if len(self._prompt.clicks) >= 8:
            self._prompt = Prompt(self._prompt.box, self._prompt.inside)
        self._prompt = self._prompt.with_click(*next(POINTS), positive=True)
        self._segment(self._image, self._prompt)


def main() -> None:
    """Measure and print a table; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of all competitors [15]")
    parser.add_argument("--json", type=Path, help="write the figures and the environment here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder), arguments.rounds)
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(folder: Path, rounds: int) -> dict[str, object]:
    """Milliseconds by competitor, one value a round, and the environment."""
    network, bundle = published(folder)
    inputs, clicks = torch.rand(1, 5, 512, 512) * 255, torch.rand(1, 2, 512, 512) * 255

    def eager() -> None:
        with torch.inference_mode():
            network(inputs, clicks)

    with (
        Predictor.open(bundle) as large,
        Predictor.open() as default,
        Server([default], ServerConfig(port=0)) as server,
        Client(server.address) as client,
    ):
        ours, small, remote = Annotator(large.segment), Annotator(default.segment), Annotator(client.segment)
        competitors: dict[str, Callable[[], None]] = {
            "PyTorch eager, ResNet-101 at 512: any click": eager,
            "iog-runtime, ResNet-101 at 512: first click": ours.first,
            "iog-runtime, ResNet-101 at 512: correction": ours.refinement,
            "iog-runtime, default model: first click": small.first,
            "iog-runtime, default model: correction": small.refinement,
            "iog-runtime, default model through gRPC: first click": remote.first,
            "iog-runtime, default model through gRPC: correction": remote.refinement,
        }
        times: dict[str, list[float]] = {name: [] for name in competitors}
        for number in track(range(rounds + 1), "rounds", console=Console(stderr=True)):
            for name, run in competitors.items():
                start = time.perf_counter()
                run()
                if number:  # the first round warms up
                    times[name].append((time.perf_counter() - start) * 1e3)
    environment = {
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "iog": iog.__version__,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "load": os.getloadavg(),
    }
    return {"milliseconds": times, "environment": environment}


def show(report: dict[str, object]) -> None:
    """A table of medians, quartiles, minima and ratios to the first row."""
    table = Table("", "median ms", "p25", "min", "ratio of medians")
    times = report["milliseconds"]
    assert isinstance(times, dict)
    reference = statistics.median(next(iter(times.values())))
    for name, values in times.items():
        median = statistics.median(values)
        quarter = statistics.quantiles(values, n=4)[0]
        table.add_row(name, *(f"{v:.1f}" for v in (median, quarter, min(values))), f"{reference / median:.1f}x")
    console = Console()
    console.print(table)
    console.print(report["environment"])


if __name__ == "__main__":
    main()
