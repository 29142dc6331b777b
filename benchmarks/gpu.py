"""What clicks cost on a GPU: first click and correction end to end, and heads a second by batch; `--help` says how."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from harness.record import Record, console, json_option, run
from harness.rounds import Summary
from harness.scene import Annotator, frame
from iog import Predictor
from iog.backends import open_backend
from iog.backends.base import Backend, open_graphs, stack
from iog.backends.cuda import CudaMemory
from iog.backends.surgery import pad
from iog.bundle import Bundle
from iog.prompt import Prompt
from rich.table import Table

BATCHES = (1, 2, 4, 8, 16, 32, 64)
STAGES = ("crop", "encoder", "clicks", "head", "network", "mask")
WARM_UP = 10  # runs before those that count
EPILOG = """\b
Examples:
  python benchmarks/gpu.py
  python benchmarks/gpu.py --model mine-gpu --backend trt --json build/benchmarks/gpu.json
"""


@click.command(epilog=EPILOG)
@click.option("--model", type=click.Path(path_type=Path), help="A bundle. [default: the packaged one]")
@click.option("--backend", type=click.Choice(["ort", "trt"]), default="ort", show_default=True)
@click.option("--device", type=click.Choice(["cuda", "tensorrt"]), default="cuda", show_default=True, help="Of ort.")
@click.option(
    "--clicks", type=click.IntRange(2), default=300, show_default=True, help="Of each kind, after warming up."
)
@json_option
def main(model: Path | None, backend: str, device: str, clicks: int, path: Path | None) -> None:
    """What clicks cost on a GPU. Needs one, and says so.

    First click and correction: one annotator, in process, a 1080p photograph that is decoded already. Heads a second:
    batches of heads of as many objects, whose features lie in the arena; click maps go up and logits come back.
    """
    memory = CudaMemory()
    gpu = {"name": memory.name, "compute_capability": memory.compute_capability}
    memory.close()
    engine = open_backend(backend, device=device, fall_back=False)
    bundle = Bundle.open(model)
    record = Record("gpu", model=bundle.manifest.name, backend=backend, device=device, clicks=clicks, gpu=gpu)
    record.note(bundle=bundle.digest[:12])
    times = end_to_end(bundle, engine, clicks)
    results = {
        "clicks": {name: vars(Summary.of(values)) for name, values in times.items()},
        "heads": heads(bundle, engine, clicks),
    }
    console.print(table(gpu, results))
    record.write(results, path)


def end_to_end(bundle: Bundle, engine: Backend, clicks: int) -> dict[str, list[float]]:
    """Milliseconds of `clicks` first clicks and of as many corrections, and of their stages."""
    times: dict[str, list[float]] = defaultdict(list)
    with Predictor(bundle, engine) as predictor:
        image, stages = frame(), dict[str, float]()

        def segment(request: Prompt) -> None:
            stages.clear()
            stages.update(predictor.segment(image, request).timings)

        annotator = Annotator(segment, image.size)
        for name, act in (("first click", annotator.first), ("correction", annotator.correction)):
            for number in range(-WARM_UP, clicks):
                start = time.perf_counter()
                act()
                milliseconds = (time.perf_counter() - start) * 1e3
                if number >= 0:
                    times[name].append(milliseconds)
                    for stage in filter(stages.__contains__, STAGES):
                        times[f"{name}: {stage}"].append(stages[stage] * 1e3)
    return dict(times)


def heads(bundle: Bundle, engine: Backend, runs: int) -> list[dict[str, float]]:
    """Heads a second by batch, of objects with features of their own."""
    if bundle.manifest.kind != "split":
        return []
    graphs = open_graphs(engine, bundle)
    spec, random = bundle.guidance, np.random.default_rng(0)
    pixels = random.integers(0, 256, (1, spec.size, spec.size, 3), np.uint8)
    corners = random.integers(0, spec.size, (4, 2), np.int32)
    objects = [  # on a device: slots of the arena
        graphs["encoder"].run({"image": pixels, "points": pad([corners[:1] + number], [corners])})
        for number in range(max(BATCHES))
    ]
    (click_map,) = (t for t in graphs["head"].info.inputs if t.name == "clicks")
    names = [t.name for t in graphs["encoder"].info.outputs]
    results = []
    for batch in BATCHES:
        features = {name: stack([held[i] for held in objects[:batch]]) for i, name in enumerate(names)}
        clicks = random.normal(size=(batch, *(int(d) for d in click_map.shape[1:]))).astype(np.float32)
        times = []
        for number in range(-WARM_UP, runs):
            start = time.perf_counter()
            graphs["head"].run({**features, "clicks": clicks})
            if number >= 0:
                times.append((time.perf_counter() - start) * 1e3)
        summary = Summary.of(times)
        results.append({"batch": batch, "heads_per_second": batch / summary.median * 1e3, **vars(summary)})
    for graph in graphs.values():
        graph.close()
    return results


def table(gpu: dict[str, str], results: dict[str, Any]) -> Table:
    """Medians, quartiles and minima."""
    shown = Table(title=f"{gpu['name']} ({gpu['compute_capability']})")
    for column in ("", "median ms", "p25", "p75", "minimum", "heads a second"):
        shown.add_column(column, justify="right" if column else "left")
    rows = [(name, times, "") for name, times in results["clicks"].items()]
    rows += [(f"head, batch {h['batch']}", h, f"{h['heads_per_second']:.0f}") for h in results["heads"]]
    for name, times, rate in rows:
        shown.add_row(name, *(f"{times[key]:.2f}" for key in ("median", "p25", "p75", "minimum")), rate)
    return shown


if __name__ == "__main__":
    run(main)
