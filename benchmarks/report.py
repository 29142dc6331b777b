"""The other benchmarks' figures as a report in Markdown with plots, and as the README's table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from harness import plots
from harness.ratios import against_eager
from harness.record import EAGER, console, run
from harness.rounds import Summary

BEGIN, END = "<!-- benchmark: written by benchmarks/report.py -->", "<!-- /benchmark -->"
SECTIONS = ("click_latency", "server_load", "burst", "soak", "scaling", "gpu")

GTX_1080 = {"multiply_accumulates_per_second": 8.9e12 / 2, "bytes_per_second": 320e9}  # fp32, its maker's figures
PAPER_MS = 20.0  # "on a GTX 1080", Zhang et al., section 4; one forward pass

EPILOG = """\b
Examples:
  python benchmarks/report.py build/benchmarks
  python benchmarks/report.py build/benchmarks --readme README.md

\b
Reads what it finds of click_latency.json, server_load.json, burst.json, soak.json, scaling.json and
gpu.json; writes report.md and plots beside them. `make bench` makes all but the last, which needs a GPU.
"""


@click.command(epilog=EPILOG)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--readme", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Rewrite its table.")
def main(folder: Path, readme: Path | None) -> None:
    """Write FOLDER/report.md and its plots from the JSON files in FOLDER."""
    records = {name: read(path) for name in SECTIONS if (path := folder / f"{name}.json").exists()}
    if not records:
        raise click.UsageError(f"{folder} has none of {', '.join(f'{name}.json' for name in SECTIONS)}: run them first")
    if readme and "click_latency" not in records:
        raise click.UsageError(f"the README's table needs {folder / 'click_latency.json'}: run click_latency.py first")
    sections, machines = list[str](), dict[str, list[str]]()
    for name, record in records.items():
        try:
            heading, *rest = WRITERS[name](record, folder)
            sections += [heading, measured(record), *rest]
            machines.setdefault(machine(record["environment"]), []).append(heading.removeprefix("## "))
        except KeyError as e:
            raise _no_record(folder / f"{name}.json", f"it has no {e}, perhaps of another version") from e
    about = [f"{'; '.join(of)}: {text}" if len(machines) > 1 else text for text, of in machines.items()]
    (folder / "report.md").write_text("\n\n".join(["# Benchmarks", *about, *sections]) + "\n", encoding="utf-8")
    console.print(f"wrote {folder / 'report.md'}")
    if readme:
        rewrite(readme, summary(records["click_latency"]))
        console.print(f"wrote the table in {readme}")


def read(path: Path) -> dict[str, Any]:
    """A benchmark's record. Raises UsageError for a file that is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise _no_record(path, f"it is cut short, or no JSON: {e}") from e
    fields = {"environment", "settings", "results"}
    if not isinstance(record, dict) or fields - record.keys():
        raise _no_record(path, f"it has not all of {', '.join(sorted(fields))}")
    return record


def _no_record(path: Path, problem: str) -> click.UsageError:
    return click.UsageError(f"{path} is no record of a benchmark: {problem}; remove it, or run the benchmark again")


def machine(environment: Mapping[str, Any]) -> str:
    """One paragraph, the same for all that was measured on this machine with these libraries."""
    libraries = ", ".join(f"{name} {version}" for name, version in environment["libraries"].items())
    return (
        f"{environment['cores']} cores of {environment['cpu']} ({', '.join(environment['instructions'])}), "
        f"{environment['memory_bytes'] / 2**30:.0f} GiB, {environment['system']}, Python {environment['python']}; "
        f"{libraries}."
    )


def measured(record: Mapping[str, Any]) -> str:
    """When, beside what else, and of what: sections may be of different runs."""
    environment, bundle = record["environment"], record["settings"].get("bundle")
    date = environment.get("date", "at an unknown time")
    beside = f"load {environment['load_before']} before and {environment['load_after']} after"
    return f"Measured {date}, {beside}" + (f", bundle {bundle}." if bundle else ".")


def latency(record: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """What a click costs."""
    results = record["results"]
    ratios, eager = against_eager(results["rows"]), eager_network(results["rows"])
    plots.latency(folder / "latency.png", results["rows"], ratios)
    plots.distributions(folder / "latency_cdf.png", {r["name"]: r["milliseconds"] for r in results["rows"]})
    yield "## What a click costs"
    yield (f"Milliseconds, medians of {record['settings']['rounds']} rounds in which all took turns. {noise(results)}")
    yield "![Latency](latency.png)"
    yield markdown(
        ("", "runs", "median", "p25", "min", f"against eager {eager}", "logits off by, in their std"),
        [
            (
                row["name"],
                row["network"],
                *(f"{v:.1f}" for v in (times.median, times.p25, times.minimum)),
                ratios[row["name"]],
                _deviation(results["deviations"].get(row["competitor"])),
            )
            for row in results["rows"]
            for times in [Summary.of(row["milliseconds"])]
        ],
    )
    for name, reason in results["missing"].items():
        yield f"- {name}: not run, because {reason}"
    yield "![Distribution](latency_cdf.png)"
    if results["stages"]:
        yield "### Stages of a warm correction"
        yield "Milliseconds, medians. *rest* is what no stage has: through gRPC the client, the wire and the encodings."
        names = list(dict.fromkeys(stage for stages in results["stages"].values() for stage in stages))
        yield markdown(
            ("", *names),
            [(name, *(f"{s[n]:.2f}" if n in s else "" for n in names)) for name, s in results["stages"].items()],
        )
    if results["graphs"]:
        yield from limits(results, record["settings"]["network"], folder)


def limits(results: Mapping[str, Any], network: str, folder: Path) -> Iterator[str]:
    """Measured times against what the machine, and a GTX 1080, would allow."""
    here = {key: results[key] for key in GTX_1080}
    best = {
        graph: min(row["milliseconds"])
        for graph, competitor in GRAPH_ROWS.items()
        for row in results["rows"]
        if graph in results["graphs"] and row["name"] == competitor
    }
    floats = {name: graph for name, graph in results["graphs"].items() if not _is_int8(name)}
    plots.roofline(folder / "roofline.png", floats, {n: ms for n, ms in best.items() if n in floats}, here)
    yield f"### Against the hardware: {network}"
    yield (
        f"This machine was measured to reach {2e-9 * here['multiply_accumulates_per_second']:.0f} GFLOP/s in a matrix "
        f"product and {here['bytes_per_second'] / 1e9:.0f} GB/s in a copy. A GTX 1080 has 8.9 TFLOP/s (fp32) and 320 "
        "GB/s. *At least* is the larger of arithmetic and traffic at those peaks, where traffic counts weights, inputs "
        "and outputs once; both are of float arithmetic, hence nothing for int8. "
        f"The paper reports {PAPER_MS:g} ms for one pass of the whole network on a GTX 1080."
    )
    rows = []
    for name, graph in results["graphs"].items():
        fastest = f"{best[name]:.1f}" if name in best else ""
        rows.append(
            (
                name,
                f"{graph['macs'] / 1e9:.2f}",
                f"{graph['bytes'] / 1e6:.0f}",
                fastest,
                "" if _is_int8(name) else f"{floor_ms(graph, here):.1f}",
                "" if _is_int8(name) else f"{floor_ms(graph, GTX_1080):.2f}",
                f"{PAPER_MS:g}" if name == WHOLE else "",
            )
        )
    yield markdown(
        ("graph", "GMAC", "MB", "click here, best ms", "at least here", "at least on a GTX 1080", "paper, ms"), rows
    )
    yield "![Roofline](roofline.png)"


def _is_int8(graph: str) -> bool:
    return graph.endswith("int8")


WHOLE = "whole network"
GRAPH_ROWS = {
    WHOLE: "ONNX Runtime, whole network: any click",
    "naive rest": "naive split behind the backbone, ONNX Runtime: correction",
    "default model's encoder": "iog-runtime, default model: first click",
    "default model's head": "iog-runtime, default model: correction",
    **{f"encoder, {p}": f"iog-runtime, ONNX Runtime {p}: first click" for p in ("fp32", "fp16", "int8")},
    **{f"head, {p}": f"iog-runtime, ONNX Runtime {p}: correction" for p in ("fp32", "fp16", "int8")},
}


def floor_ms(graph: Mapping[str, float], device: Mapping[str, float]) -> float:
    """The least time that a device's peaks allow for a graph."""
    return 1e3 * max(
        graph["macs"] / device["multiply_accumulates_per_second"], graph["bytes"] / device["bytes_per_second"]
    )


UNMASKED = (
    "Answers are the network's output, from which clients make masks: what that takes is not in these figures, and a "
    "server that is asked for masks has to do it itself."
)


def load(record: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Throughput against latency."""
    results, settings = record["results"], record["settings"]
    plots.load(folder / "load.png", results["loads"])
    plots.distributions(
        folder / "load_cdf.png", {f"load {at['share']:.0%}": at["correction_milliseconds"] for at in results["loads"]}
    )
    yield "## Many annotators"
    yield (
        f"Model {settings['model']}. Annotators arrive at random, make a first click and {settings['corrections']} "
        f"corrections and think {settings['think']:g} s between them on average; client and server share the cores. "
        f"{alone(results)} {settings['busy']} annotators who never pause get {results['capacity']:.1f} clicks a second "
        "together: of this capacity each load is a share. *Offered* is all that those click who come in the measured "
        "time, *clicked* what was due in it, *answered* the answers that came in it. "
        f"{UNMASKED}"
    )
    yield "![Throughput and latency](load.png)"
    columns = ("offered/s", "clicked/s", "answered/s", "hits", "rejected", "failed", "first p50", "p95", "p99")
    yield markdown(
        ("load", *columns, "correction p50", "p95", "p99", "server MB"),
        [
            (
                f"{at['share']:.0%}",
                *(f"{at[f'{each}_per_second']:.1f}" for each in ("offered", "clicked", "answered")),
                f"{at['hit_rate']:.0%}",
                f"{at['rejected']}",
                f"{at['failed']}",
                *(_ms(at["first"].get(p)) for p in ("p50", "p95", "p99")),
                *(_ms(at["correction"].get(p)) for p in ("p50", "p95", "p99")),
                _mb(at["resident_bytes"]),
            )
            for at in results["loads"]
        ],
    )
    yield "![Distribution of corrections](load_cdf.png)"


def burst(record: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Corrections while encoders run."""
    results, settings = record["results"], record["settings"]
    b = results["burst"]
    bound = b["two_heads_and_an_encoder_ms"]
    while_encoding = b["corrections_while_encoding"]
    yield f"## A burst of {b['annotators']} annotators"
    yield (
        f"Model {settings['model']}, {b['bursts']} bursts: all first clicks at once, one correction each. "
        f"{alone(results)} The encoder ran {b['encoder_runs']} times for first clicks and "
        f"{b['encoder_runs_for_corrections']} times for corrections; {b['rejected']} clicks were rejected, "
        f"{b['failed']} failed. Of {while_encoding['count']} corrections sent while first clicks were still waiting, "
        f"the median took {_ms(while_encoding.get('p50'))} ms and p99 {_ms(while_encoding.get('p99'))} ms; from the "
        f"request's start on the server to its logits, p99 {_ms(b['of_these_on_the_server'].get('p99'))} ms. "
        f"Two heads and an encoder run take {_ms(bound['alone'])} ms alone, {_ms(bound['in the burst'])} in the burst. "
        f"{UNMASKED}"
    )


def soak(record: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Memory over time."""
    results, settings = record["results"], record["settings"]
    s = results["soak"]
    plots.memory(folder / "memory.png", s)
    most = results["peak_resident_bytes"]
    grown = most - s["resident_before_bytes"] if most and s["resident_before_bytes"] else None
    yield "## Memory"
    yield (
        f"Model {settings['model']}, {s['clicks']} clicks on {s['objects']} objects in {s['seconds'] / 60:.1f} minutes "
        f"without a pause, a features budget of {_mb(s['budget_bytes'])} MB; {s['rejected']} clicks rejected, "
        f"{s['failed']} failed. The server held {_mb(s['resident_before_bytes'])} MB when it was ready and "
        f"{_mb(most)} MB at most, {_mb(grown)} MB more: "
        f"{_share(grown and grown / s['budget_bytes']) or 'an unknown part'} of the budget. Medians of the four "
        f"quarters of the time: {', '.join(_mb(q) for q in s['resident_quarter_bytes'])} MB."
    )
    yield "![Memory](memory.png)"


def scaling(record: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Lines."""
    plots.scaling(folder / "scaling.png", record["results"])
    yield "## How it scales"
    yield f"Model {record['settings']['model']}. Milliseconds, medians, unless the name says otherwise."
    yield "![Scaling](scaling.png)"
    for name, series in record["results"].items():
        positions = list(next(iter(series.values())))
        yield markdown(
            (name, *positions),
            [(label, *(f"{points[x]:.1f}" for x in positions)) for label, points in series.items()],
        )


def gpu(record: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """On a GPU."""
    settings, results = record["settings"], record["results"]
    yield f"## On a GPU: {settings['gpu']['name']}"
    yield (
        f"Model {settings['model']}, backend {settings['backend']}, {settings['clicks']} clicks of each kind. "
        "Milliseconds; a batch is of heads of as many objects."
    )
    names = ("median", "p25", "p75", "minimum")
    yield markdown(
        ("", *names, "heads a second"),
        [
            *((name, *(f"{times[n]:.2f}" for n in names), "") for name, times in results["clicks"].items()),
            *(
                (f"head, batch {at['batch']}", *(f"{at[n]:.2f}" for n in names), f"{at['heads_per_second']:.0f}")
                for at in results["heads"]
            ),
        ],
    )


WRITERS = {"click_latency": latency, "server_load": load, "burst": burst, "soak": soak, "scaling": scaling, "gpu": gpu}


def summary(record: Mapping[str, Any]) -> str:
    """The README's table."""
    results, environment = record["results"], record["environment"]
    ratios = against_eager(results["rows"])
    rows = [
        (row["network"], row["name"], f"{times.median:.0f}", f"{times.minimum:.0f}", ratios[row["name"]])
        for row in results["rows"]
        for times in [Summary.of(row["milliseconds"])]
    ]
    return (
        f"{environment['cores']} cores of {environment['cpu']}, all competitors taking turns, medians of "
        f"{record['settings']['rounds']} rounds, load {environment['load_before']} before the run. {noise(results)} "
        "The ratios hold better than the milliseconds.\n\n"
        + markdown(("network", "", "median ms", "min", f"against eager {eager_network(results['rows'])}"), rows)
        + ("\n\n" + INT8_NOTE if any("int8" in row["name"] for row in results["rows"]) else "")
    )


INT8_NOTE = (
    "int8 here: all convolutions but the click branch, with random weights, hence the fastest that an export can be; "
    "one with `--calibration` keeps in float what loses too much."
)


def eager_network(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the ratios are given to."""
    return next((row["network"] for row in rows if row["competitor"] == EAGER), "")


def rewrite(readme: Path, text: str) -> None:
    """Put the text between the README's markers."""
    before = readme.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(before)) != 1:
        raise click.UsageError(f"{readme}: expected one place between {BEGIN} and {END}")
    readme.write_text(pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", before), encoding="utf-8")


def noise(results: Mapping[str, Any]) -> str:
    """A sentence."""
    return (
        f"Noise: a fixed matrix product, timed in every round, varied by {results['noise']:.0%} between its quartiles."
    )


def alone(results: Mapping[str, Any]) -> str:
    """A sentence."""
    times = results["alone"]
    return (
        f"Alone, a first click takes {times['first']:.1f} ms, of which the encoder {times['encoder']:.1f}, and a "
        f"correction {times['correction']:.1f}, of which the head with its click map {times['head']:.1f}."
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _mb(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.0f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _deviation(value: float | None) -> str:
    return "" if value is None else f"{value:.1g}"


if __name__ == "__main__":
    run(main)
