"""What a click costs: this runtime, next to every other way to answer it; `--help` says how it is measured."""

from __future__ import annotations

import itertools
import re
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from harness.competitors import Competitor, Scene, assemble, names
from harness.gauge import SIDE, arithmetic, bandwidth, matrix_product
from harness.networks import Published, use_allowed_cores
from harness.ratios import against_eager
from harness.record import EAGER, Record, console, json_option, run
from harness.rounds import Run, Summary, interleaved
from harness.scene import Annotator, corrected, prompt
from iog.cli.values import Seconds
from iog.segmentation import Segmentation
from iog_export.networks.resnet import ARCHITECTURES
from rich.table import Table

GAUGE = "gauge"
STAGE_CLICKS = 20  # corrections whose stages are timed

EPILOG = """\b
Examples:
  python benchmarks/click_latency.py --json build/benchmarks/click_latency.json
  python benchmarks/click_latency.py --only 'default|eager' --rounds 5
  python benchmarks/click_latency.py --backbone resnet50 --size 384

\b
The first run exports the published network (minutes); it is kept in --work.
Competitors that cannot run here are listed with the reason.
Quiet machine, please: the noise is measured and reported, not removed.
"""


class Stepped(click.IntRange):
    """A whole number from `min` to `max` that is a multiple of `step`."""

    def __init__(self, step: int, min: int, max: int) -> None:
        super().__init__(min, max)
        self._step = step

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Raises BadParameter."""
        number: int = super().convert(value, param, ctx)
        if rest := number % self._step:
            below = number - rest
            self.fail(f"{number} is no multiple of {self._step}; next ones: {below}, {below + self._step}", param, ctx)
        return number


def pattern(text: str) -> re.Pattern[str]:
    """A regular expression. Raises BadParameter."""
    try:
        return re.compile(text)
    except re.error as e:
        raise click.BadParameter(
            f"{text!r} is no regular expression: {e}; quote with \\ what is meant literally"
        ) from e


@click.command(epilog=EPILOG)
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Of all competitors, in turn.")
@click.option("--only", type=pattern, default="", metavar="REGEX", help="Competitors whose names match. [default: all]")
@click.option(
    "--backbone",
    type=click.Choice(list(ARCHITECTURES)),
    default="resnet101",
    show_default=True,
    help="Of the published network.",
)
@click.option("--size", type=Stepped(32, 64, 2048), default=512, show_default=True, help="Side of its input.")
@click.option("--width", type=Stepped(2, 2, 4096), default=256, show_default=True, help="Channels of its decoder.")
@click.option("--compile-limit", type=Seconds(0), default=120.0, show_default=True, help="Seconds for torch.compile.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/benchmarks"), show_default=True)
@json_option
def main(
    rounds: int,
    only: re.Pattern[str],
    backbone: str,
    size: int,
    width: int,
    compile_limit: float,
    work: Path,
    path: Path | None,
) -> None:
    """What a click costs: this runtime, next to every other way to answer it.

    All competitors take turns, round after round, in one run on the same cores: ratios hold on a noisy machine,
    milliseconds belong to it. Crop, heat and mask are the same for all; only the network differs, and how often it
    runs. GrabCut, which has none, gets the published network's frame, and discs where that one gets heat. Ratios are
    to PyTorch eager on the same network.
    """
    use_allowed_cores()
    published = Published(work / "networks", backbone, size, width)
    record = Record("click_latency", rounds=rounds, network=str(published), only=only.pattern)
    with ExitStack() as stack:
        scene = Scene(published, stack, compile_limit)
        competitors, missing = assemble(scene, only)
        if not competitors:
            problem = f"{only.pattern!r} matches none that can run here of: {'; '.join(names())}"
            raise click.BadParameter(problem, param_hint="--only")
        results = measure(competitors, scene, rounds)
    results["missing"] = missing
    console.print(table(results))
    record.write(results, path)


def measure(competitors: dict[str, Competitor], scene: Scene, rounds: int) -> dict[str, Any]:
    """Times of every row, stages, deviations of the logits, and the machine's limits."""
    gauge, _ = matrix_product()
    square = np.ones((1, SIDE, SIDE), np.float32)
    rows, runs = [], dict[str, Run]({GAUGE: lambda: gauge.run({"a": square})})
    for name, competitor in competitors.items():
        annotator = Annotator(competitor.answer, scene.image.size)
        for kind in competitor.clicks:
            row = f"{name}: {kind}" if kind == "correction" else f"{name}: {kind} click"
            rows.append({"name": row, "competitor": name, "click": kind, "network": competitor.network})
            runs[row] = annotator.first if kind == "first" else annotator.correction
    times = interleaved(runs, rounds)
    gauged = Summary.of(times.pop(GAUGE))
    return {
        "rows": [{**row, "milliseconds": times[row["name"]]} for row in rows],
        "noise": gauged.spread,
        "multiply_accumulates_per_second": arithmetic(),
        "bytes_per_second": bandwidth(),
        "graphs": scene.traffic,
        "stages": stages(competitors, scene),
        "deviations": deviations(competitors, scene),
    }


def stages(competitors: dict[str, Competitor], scene: Scene) -> dict[str, dict[str, float]]:
    """Median milliseconds of each stage of a warm correction, for our competitors.

    "rest" is the caller's time that no stage has: for calls through gRPC the client, the wire and the encodings.
    """
    result = {}
    for name, competitor in competitors.items():
        if name.startswith("iog-runtime"):
            laps: dict[str, list[float]] = defaultdict(list)
            asked = prompt(scene.image.size)
            competitor.answer(asked)
            for number in range(STAGE_CLICKS):
                asked = corrected(asked, number)
                start = time.perf_counter()
                answer = competitor.answer(asked)
                total = time.perf_counter() - start
                assert isinstance(answer, Segmentation)
                for stage, seconds in answer.timings.items():
                    laps[stage].append(1e3 * seconds)
                laps["rest"].append(1e3 * (total - sum(answer.timings.values())))
                laps["all"].append(1e3 * total)
                laps["all but the head"].append(1e3 * (total - answer.timings.get("head", 0.0)))
            result[name] = {stage: float(np.median(values)) for stage, values in laps.items()}
    return result


def deviations(competitors: dict[str, Competitor], scene: Scene) -> dict[str, float]:
    """The largest difference from PyTorch's logits, in their standard deviations, for all of the published network."""
    if EAGER not in competitors:
        return {}
    asked = prompt(scene.image.size)
    for number in range(3):
        asked = corrected(asked, number)
    same = {n: c.logits(asked) for n, c in competitors.items() if c.network == competitors[EAGER].network}
    logits = {name: values for name, values in same.items() if values is not None}
    expected = logits[EAGER]
    return {name: float(np.abs(values - expected).max() / expected.std()) for name, values in logits.items()}


def table(results: dict[str, Any]) -> Table:
    """Medians, quartiles, minima, and the ratio to PyTorch eager; a section a network."""
    view = Table("", "median ms", "p25", "min", "against eager", title=f"noise {results['noise']:.0%}")
    ratios = against_eager(results["rows"])
    for _, rows in itertools.groupby(results["rows"], key=lambda row: row["network"]):
        view.add_section()
        for row in rows:
            times = Summary.of(row["milliseconds"])
            figures = (f"{v:.1f}" for v in (times.median, times.p25, times.minimum))
            view.add_row(row["name"], *figures, ratios[row["name"]])
    return view


if __name__ == "__main__":
    run(main)
