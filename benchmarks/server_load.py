"""Many annotators at one server: `--help` says which ways there are to load it."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from harness.load import Annotation, Crowd, Reply, answered_within, percentiles, poisson
from harness.record import Record, console, json_option, run
from harness.rounds import progress
from harness.scene import FULL_HD, another, growing, photograph
from harness.server import Served, served
from iog import Client, Prompt
from iog.cli.values import Number, Seconds, byte_count
from rich.table import Table

BUSY = 4  # annotators at a time who never pause
SHARES = (0.25, 0.5, 0.75, 0.9, 1.2)  # of the capacity, which is what these get together
CAPACITY_S = 3.0  # in which it is measured
ALONE = 15  # clicks of each kind on an idle server
IDLE_S = 0.05  # between them, on average
PHOTOGRAPHS = 8
BURSTS = 3
PUBLISHED = "published"
FLOW = ("offered", "clicked", "answered")  # a second

EPILOG = """\b
Examples:
  python benchmarks/server_load.py
  python benchmarks/server_load.py --load 0.5 --load 0.8 --seconds 60 --think 3
  python benchmarks/server_load.py --burst 64
  python benchmarks/server_load.py --soak 60 --model published

\b
Client and server share the cores of this machine: what the client takes, the server lacks.
--model published is the authors' network, ResNet-101 at 512 in fp16, with random weights; the first time, its
export takes minutes. Ctrl-C stops the server too.
"""


@click.command(epilog=EPILOG)
@click.option("--model", metavar="DIR|published", help="What to serve. [default: the packaged default model]")
@click.option(
    "--load",
    "shares",
    type=Number(0.01, 100),
    multiple=True,
    help=f"Of the capacity; may be repeated. [default: {', '.join(map(str, SHARES))}]",
)
@click.option("--seconds", type=Seconds(1), default=30.0, show_default=True, help="For each load.")
@click.option("--think", type=Seconds(0), default=1.0, show_default=True, help="Mean seconds between clicks.")
@click.option(
    "--corrections", type=click.IntRange(1, 100), default=4, show_default=True, help="After each first click."
)
@click.option(
    "--burst", type=click.IntRange(1), metavar="N", help="Instead: N first clicks at once, one correction each."
)
@click.option("--soak", type=Number(0.01), metavar="MINUTES", help="Instead: click without a pause.")
@click.option("--objects", type=click.IntRange(1), default=500, show_default=True, help="To soak with.")
@click.option("--features-budget", type=byte_count, metavar="SIZE", default="1GiB", show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/benchmarks"), show_default=True)
@json_option
def main(
    model: str | None,
    shares: tuple[float, ...],
    seconds: float,
    think: float,
    corrections: int,
    burst: int | None,
    soak: float | None,
    objects: int,
    features_budget: int,
    work: Path,
    path: Path | None,
) -> None:
    """Load `iog serve` on this machine as annotators do.

    Annotators arrive at random (Poisson), each with one object: a first click, then corrections, each after a time of
    thinking that begins with the reply. Arrivals do not wait for the server: if it is too slow, they queue up. Latency
    runs from when a click was due. A click that the server turns away is counted, not repeated. Loads are shares of the
    capacity, which is measured first: the clicks a second that a few annotators get together who never pause. Clients
    are answered with the network's output, as iog.Client is; masks, which it makes of that, are not made here.
    """
    if burst and soak:
        raise click.UsageError("--burst and --soak are different runs; give one of them")
    bundle = published(work) if model == PUBLISHED else model
    record = Record("server_load", model=model or "default", think=think, corrections=corrections, busy=BUSY)
    options = [*(("--model", str(bundle)) if bundle else ()), "--features-budget", str(features_budget)]
    if burst:
        most = max(64, 2 * burst)
        options += ["--max-concurrency", str(most)]
        record.note(corrections=1, max_concurrency=most)
    with served(*options) as server, Client(server.address, timeout=120) as client:
        ready = server.resident()
        record.note(bundle=client.models()[0].bundle_digest[:12])
        photographs = [photograph(variant=v) for v in range(PHOTOGRAPHS)]
        desk = Desk([client.upload(data) for data in photographs])
        with Crowd(server.address) as crowd:
            alone = idle(crowd, desk)
            results: dict[str, Any] = {"alone": alone}
            if burst:
                results["burst"] = bursts(crowd, desk, burst, think, alone)
            elif soak:
                results["soak"] = soaked(crowd, server, desk, soak * 60, objects, corrections, features_budget, ready)
            else:
                capacity = results["capacity"] = busy(crowd, desk, corrections, min(seconds, CAPACITY_S))
                results["loads"] = [
                    {
                        "share": share,
                        **loaded(crowd, server, desk, number, share * capacity, seconds, think, corrections),
                    }
                    for number, share in enumerate(shares or SHARES)
                ]
        results["peak_resident_bytes"] = server.peak()
    console.print(table(results))
    record.write(results, path)


def published(work: Path) -> Path:
    """The bundle of the authors' network, from `work` or newly exported."""
    from harness.networks import Published  # with torch, which nothing else here needs

    return Published(work / "networks").bundle("fp16")


class Desk:
    """Objects to annotate, spread over the photographs."""

    def __init__(self, images: list[str]) -> None:
        self._images = images
        self._numbers = itertools.count(1)

    def object(self, number: int) -> tuple[str, Prompt]:
        """A photograph's digest and a first prompt, the same for the same number."""
        box, image = divmod(number, len(self._images))
        return self._images[image], another(FULL_HD, box)

    def annotation(self, start: float, corrections: int, think: float, random: np.random.Generator) -> Annotation:
        """All that one annotator will do."""
        digest, first = self.object(next(self._numbers))
        return Annotation(start, digest, growing(first, corrections), random.exponential(think, corrections).tolist())

    def without_pause(self, number: int, corrections: int) -> Annotation:
        """An annotator of that object who clicks as soon as the last click is answered."""
        digest, first = self.object(number)
        return Annotation(0.0, digest, growing(first, corrections), [0.0] * corrections)


def idle(crowd: Crowd, desk: Desk) -> dict[str, float]:
    """Median milliseconds when nobody else clicks: of a first click and a correction, of their encoder and head."""
    random = np.random.default_rng(0)
    replies = [r for _ in range(ALONE) for r in crowd.annotate([desk.annotation(0.0, 1, IDLE_S, random)])]
    found = {
        name: 1e3 * float(np.median([r.latency for r in replies if r.answered and r.first is first]))
        for name, first in (("first", True), ("correction", False))
    }
    corrections = [r for r in replies if not r.first]
    return {
        **found,
        "encoder": stage(replies, "encoder") or stage(replies, "network"),
        "head": stage(corrections, "clicks", "head") or stage(corrections, "network"),
    }


def busy(crowd: Crowd, desk: Desk, corrections: int, seconds: float) -> float:
    """Clicks a second of BUSY annotators together who never pause, after a third of that time to warm up."""
    random = np.random.default_rng(0)

    def annotator(limit: float) -> float:
        start, answered, passed = time.perf_counter(), 0, 0.0
        while passed < limit:
            answered += sum(r.answered for r in crowd.annotate([desk.annotation(0.0, corrections, 0.0, random)]))
            passed = time.perf_counter() - start
        return answered / passed

    with console.status(f"{BUSY} annotators who never pause"), ThreadPoolExecutor(BUSY) as threads:
        for limit in (seconds / 3, seconds):
            rates = list(threads.map(annotator, [limit] * BUSY))
    return sum(rates)


def loaded(
    crowd: Crowd, server: Served, desk: Desk, number: int, load: float, seconds: float, think: float, clicks: int
) -> dict[str, Any]:
    """One load, of so many clicks a second: what came of it, once as many annotators come as go.

    number: of the load; each has arrivals of its own, the same ones every time.
    """
    rate, settled = load / (1 + clicks), 2 * think * clicks  # twice what one thinks: nearly all have gone
    random = np.random.default_rng(number)
    early, counted = poisson(rate, 0.0, settled, random), poisson(rate, settled, seconds, random)
    annotations = [desk.annotation(at, clicks, think, random) for at in (*early, *counted)]
    with console.status(f"{load:.1f} clicks a second, {len(annotations)} annotators"):
        every = crowd.annotate(annotations)
    replies = [r for r in every if settled <= r.due < settled + seconds]
    return {
        "offered_per_second": len(counted) * (1 + clicks) / seconds,
        "clicked_per_second": len(replies) / seconds,
        "answered_per_second": answered_within(every, settled, seconds) / seconds,
        "resident_bytes": server.resident(),
        "correction_milliseconds": [round(1e3 * r.latency, 1) for r in replies if r.answered and not r.first],
        **came_of(replies),
    }


def bursts(crowd: Crowd, desk: Desk, annotators: int, think: float, alone: dict[str, float]) -> dict[str, Any]:
    """All first clicks at once; each annotator corrects once, most of them while the encoder runs for others."""
    random, replies, during = np.random.default_rng(0), list[Reply](), list[Reply]()
    for number in range(BURSTS):
        with console.status(f"burst {number + 1} of {BURSTS}: {annotators} annotators"):
            new = crowd.annotate([desk.annotation(0.0, 1, think, random) for _ in range(annotators)])
        encoded = max(r.due + r.latency for r in new if r.first)
        replies += new
        during += [r for r in new if not r.first and r.due < encoded]
    return {
        "annotators": annotators,
        "bursts": BURSTS,
        "encoder_runs": sum(r.outcome == "miss" for r in replies if r.first),
        "encoder_runs_for_corrections": sum(r.outcome in ("miss", "joined") for r in replies if not r.first),
        "corrections_while_encoding": percentiles([r.latency for r in during if r.answered]) | {"count": len(during)},
        "of_these_on_the_server": percentiles([sum(r.stages.values()) for r in during if r.answered]),
        "two_heads_and_an_encoder_ms": {
            "alone": 2 * alone["head"] + alone["encoder"],
            "in the burst": 2 * stage(replies, "clicks", "head") + stage(replies, "encoder"),
        },
        **came_of(replies),
    }


def soaked(
    crowd: Crowd,
    server: Served,
    desk: Desk,
    seconds: float,
    objects: int,
    clicks: int,
    budget: int,
    ready: int | None,
) -> dict[str, Any]:
    """Objects chosen at random, again and again, by annotators who never pause; the server's memory after each four.

    ready: bytes that the server held before its first request.
    """
    random, unseen = np.random.default_rng(0), iter(range(objects))
    resident, replies, seen = list[int](), list[Reply](), set[int]()
    start = time.monotonic()
    with progress() as bar:
        task = bar.add_task("soaking", total=seconds)
        while (passed := time.monotonic() - start) < seconds:
            chosen = list(itertools.islice(unseen, 1))  # each at least once, if the time allows
            chosen += random.integers(0, objects, BUSY - len(chosen)).tolist()
            seen.update(chosen)
            replies += crowd.annotate([desk.without_pause(number, clicks) for number in chosen])
            resident.append(server.resident() or 0)
            bar.update(task, completed=passed, description=f"{len(replies)} clicks on {len(seen)} objects")
    quarters = np.array_split(resident, 4)
    return {
        "seconds": seconds,
        "objects": len(seen),
        "budget_bytes": budget,
        "resident_before_bytes": ready,
        "resident_quarter_bytes": [int(np.median(q)) for q in quarters if len(q)],
        "resident_bytes": resident,
        **came_of(replies),
    }


def stage(replies: list[Reply], *names: str) -> float:
    """Median milliseconds of these stages together, over the replies that had them."""
    seconds = [sum(r.stages[name] for name in names) for r in replies if all(name in r.stages for name in names)]
    return 1e3 * float(np.median(seconds)) if seconds else 0.0


def came_of(replies: list[Reply]) -> dict[str, Any]:
    """Counts, and latencies in milliseconds."""
    answered = [r for r in replies if r.answered]
    return {
        "clicks": len(replies),
        "corrections": sum(not r.first for r in replies),
        "rejected": sum(r.outcome == "rejected" for r in replies),
        "failed": sum(r.outcome == "failed" for r in replies),
        "hit_rate": sum(r.outcome == "hit" for r in answered) / max(1, len(answered)),
        "first": percentiles([r.latency for r in answered if r.first]),
        "correction": percentiles([r.latency for r in answered if not r.first]),
    }


def table(results: dict[str, Any]) -> Table:
    """Every load with its latencies; or the burst; or the soak."""
    alone = ", ".join(f"{name} {ms:.1f} ms" for name, ms in results["alone"].items())
    capacity = f"; capacity {results['capacity']:.1f} clicks a second" if "capacity" in results else ""
    view = Table(title=f"alone: {alone}{capacity}")
    columns = ("", *(f"{each}/s" for each in FLOW), "clicks", "rejected", "hits", "first p50", "p99")
    for column in (*columns, "correction p50", "p95", "p99"):
        view.add_column(column, justify="right")
    named = {f"load {load['share']:.0%}": load for load in results.get("loads", ())}
    named |= {name: results[name] for name in ("burst", "soak") if name in results}
    for name, came in named.items():
        flow = [came.get(f"{each}_per_second") for each in FLOW]
        shown = [came["first"].get(p) for p in ("p50", "p99")]
        shown += [came["correction"].get(p) for p in ("p50", "p95", "p99")]
        cells = (f"{came['clicks']}", f"{came['rejected']}", f"{came['hit_rate']:.0%}")
        view.add_row(name, *map(figure, flow), *cells, *map(figure, shown))
    return view


def figure(value: float | None) -> str:
    """With one digit."""
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    run(main)
