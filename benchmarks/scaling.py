"""How the cost of a click grows with the image, the clicks, the objects, the annotators and the batch."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType

import click
import numpy as np
from harness.record import Record, console, json_option, run
from harness.rounds import Run, Summary, interleaved
from harness.scene import FULL_HD, SHIFTS, Annotator, another, corrected, frame, growing, photograph, prompt
from harness.server import served
from iog import Client, Predictor, Prompt
from iog.backends import open_backend
from iog.bundle import Bundle
from iog.cli.values import Seconds
from iog.features import RECENT
from iog.image import Image
from iog.prompt import Size
from rich.table import Table

HEIGHTS = (480, 720, 1080, 1440, 2160, 4320)
CLICKS = (1, 2, 5, 10, 20, 50)
OBJECTS = (1, 10, 100, 400)
ANNOTATORS = (1, 2, 4, 8, 16, 32)
BATCHES = (1, 2, 4, 8, 16)
NAME = "{} {}"

Position = tuple[str, int]  # series, and where on the line
Line = dict[str, dict[int, float]]  # series -> position -> value

EPILOG = """\b
Examples:
  python benchmarks/scaling.py --json build/benchmarks/scaling.json
  python benchmarks/scaling.py --model my-model --rounds 9
"""


@click.command(epilog=EPILOG)
@click.option("--model", type=click.Path(path_type=Path), help="A bundle. [default: the packaged default model]")
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of all points of a line, in turn."
)
@click.option(
    "--points", type=click.IntRange(1), default=99, metavar="N", help="Of each line, the first N. [default: all]"
)
@click.option("--seconds", type=Seconds(0), default=3.0, show_default=True, help="For each number of annotators.")
@json_option
def main(model: Path | None, rounds: int, points: int, seconds: float, path: Path | None) -> None:
    """Measure one line for each dimension; all else as with one annotator on a 1080p photograph, in process.

    image height: decoding the image, a first click, a correction. clicks: a correction when so many came before it,
    and the same prompt asked for anew (undo, another annotator). objects: a correction when features of so many are
    held. annotators: corrections a second, and how long one takes, when so many click at once through gRPC. batch:
    encoder and head, per item, when one run has so many.
    """
    record = Record("scaling", model=str(model or "default"), rounds=rounds)
    with Predictor.open(model) as predictor:
        if predictor.bundle.manifest.kind != "split":
            raise click.BadParameter(f"{model} is one graph, without an encoder to reuse", param_hint="--model")
        record.note(bundle=predictor.bundle.digest[:12])
        lines = {
            "image height": line(image_heights(predictor, HEIGHTS[:points]), rounds),
            "clicks": clicks(predictor, CLICKS[:points], rounds),
            "batch": line(batches(Bundle.open(model), BATCHES[:points]), rounds, per_item=True),
        }
    with Predictor.open(model) as predictor:  # which holds no object yet
        lines["objects"] = objects(predictor, OBJECTS[:points], rounds)
    lines["annotators"] = annotators(model, ANNOTATORS[:points], seconds)
    console.print(table(lines))
    record.write(lines, path)


def line(
    runs: Mapping[Position, Run],
    rounds: int,
    before: Mapping[Position, Run] = MappingProxyType({}),
    *,
    per_item: bool = False,
) -> Line:
    """Median milliseconds by series and position. per_item: a run at position n does n things."""
    times = interleaved(named(runs), rounds, named(before))
    result: Line = defaultdict(dict)
    for series, x in runs:
        result[series][x] = Summary.of(times[NAME.format(series, x)]).median / (x if per_item else 1)
    return dict(result)


def named(runs: Mapping[Position, Run]) -> dict[str, Run]:
    """As `interleaved` takes them."""
    return {NAME.format(*position): run for position, run in runs.items()}


def image_heights(predictor: Predictor, heights: Sequence[int]) -> dict[Position, Run]:
    """The object grows with the image."""
    runs: dict[Position, Run] = {}
    for height in heights:
        size = Size(height, height * 16 // 9)
        data, image = photograph(size), frame(size)
        annotator = Annotator(partial(predictor.segment, image), size)
        runs["decode", height] = partial(Image.decode, data)
        runs["first click", height] = annotator.first
        runs["correction", height] = annotator.correction
    return runs


def clicks(predictor: Predictor, counts: Sequence[int], rounds: int) -> Line:
    """With so many clicks in the request: the last of them new, or all of them."""
    image = frame()
    prompts = growing(prompt(image.size), max(counts))
    others = [corrected(prompts[0], max(counts) + number) for number in range(RECENT)]
    runs: dict[Position, Run] = {}
    before: dict[Position, Run] = {}
    for count in counts:
        # What was clicked last is remembered: prompts that begin otherwise take its place.
        for series, seen in (("one new", [*others, prompts[count - 1]]), ("all new", others)):
            runs[series, count] = partial(predictor.segment, image, prompts[count])
            before[series, count] = partial(_each, partial(predictor.segment, image), seen)
    return line(runs, rounds, before)


def _each(act: Callable[[Prompt], object], prompts: Sequence[Prompt]) -> None:
    for asked in prompts:
        act(asked)


def batches(bundle: Bundle, counts: Sequence[int]) -> dict[Position, Run]:
    """Encoder and head alone, on noise."""
    random, backend = np.random.default_rng(0), open_backend("ort")
    runs: dict[Position, Run] = {}
    for name in ("encoder", "head"):
        info = bundle.manifest.graphs[name]
        graph = backend.open(name, bundle.graphs[name], info)
        for count in counts:
            shapes = {t.name: ([count, *(d for d in t.shape if isinstance(d, int))], t.dtype) for t in info.inputs}
            inputs = {key: random.integers(0, 255, shape).astype(dtype) for key, (shape, dtype) in shapes.items()}
            runs[name, count] = partial(graph.run, inputs)
    return runs


def objects(predictor: Predictor, counts: Sequence[int], rounds: int) -> Line:
    """Corrections of one object while so many are held; of a predictor that holds none."""
    image, result = frame(), dict[int, float]()
    annotator = Annotator(partial(predictor.segment, image), image.size)
    numbers = itertools.count()
    for count in counts:
        held = 0
        while held < len(predictor.features) < count:  # as many as the budget allows
            held = len(predictor.features)
            predictor.segment(image, another(image.size, next(numbers), shift=-SHIFTS))
        held = len(predictor.features)
        times = interleaved({f"{held} objects": annotator.correction}, max(rounds, 3))
        (result[held],) = (Summary.of(values).median for values in times.values())
        if held < count:
            break
    return {"correction": result}


def annotators(model: Path | None, counts: Sequence[int], seconds: float) -> Line:
    """Corrections through gRPC, each annotator's next as soon as the last one is answered."""
    per_second, latency = dict[int, float](), dict[int, float]()
    data = photograph()
    with served(*(("--model", str(model)) if model else ())) as server, Client(server.address) as client:
        for count in counts:
            with console.status(f"{count} annotators"), ThreadPoolExecutor(count) as threads:
                begin = partial(Annotator, partial(client.segment, data), FULL_HD)
                begun = list(threads.map(begin, range(-1, -1 - count, -1)))  # all first clicks are answered
                start = time.perf_counter()
                times = [ms for each in threads.map(partial(correcting, seconds=seconds), begun) for ms in each]
            per_second[count] = len(times) / (time.perf_counter() - start)
            latency[count] = float(np.median(times))
    return {"corrections a second": per_second, "median ms": latency}


def correcting(annotator: Annotator, seconds: float) -> list[float]:
    """Milliseconds of one annotator's corrections, one at least."""
    times, end = list[float](), time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        annotator.correction()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def table(lines: Mapping[str, Line]) -> Table:
    """A row a series: positions and values."""
    view = Table("", "", "positions: values, in ms unless the name says otherwise")
    for name, series in lines.items():
        for label, points in series.items():
            view.add_row(name, label, "  ".join(f"{x}: {value:.1f}" for x, value in points.items()))
    return view


if __name__ == "__main__":
    run(main)
