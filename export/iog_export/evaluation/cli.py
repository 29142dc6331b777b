"""`iog evaluate`: how good a bundle's masks are, and how many clicks they take."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from functools import partial
from pathlib import Path

import click
from iog.bundle import Bundle
from iog.cli.models import bundle_path
from iog.cli.output import print_rich
from iog.cli.values import ENGINE, Number
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from iog_export.datasets import FORMATS, DataSet, open_layout
from iog_export.datasets.formats import HELP

from .baselines import BASELINES
from .figures import mean_curve
from .gallery import draw_galleries
from .measure import BASELINE_CLICKS, Bench, Deployed, opened
from .objects import digest_of, representative, spread, uncounted
from .plot import draw_curves
from .records import Record, Results, Settings
from .report import Report
from .session import MODEL
from .workers import measured

EPILOG = f"""{HELP}
Of a set named coco, objects of at least 64x64 pixels count. An image that turns out
to be unreadable only when it is measured is a failure, named and in no mean.

\b
OUT receives results.jsonl, an object a line as it is done; report.md and
report.json; iou_over_clicks.png; gallery_SET.jpg. The same command goes on
where it was stopped, and tries again what failed.

\b
Examples:
  iog evaluate models/mine photos
  iog evaluate models/mine photos --sweep --workers 8 --out reports/mine
  iog evaluate models/mine photos --objects 100 --clicks 5 --no-baselines
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", metavar="DIR|NAME")
@click.argument("data", metavar="DATA", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--format", "form", type=click.Choice(list(FORMATS)), help="Of DATA.  [default: recognised]")
@click.option("--list", "listed", type=click.Path(path_type=Path), help="Which photographs.  [default: those of val]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="evaluation", help="Directory.")
@click.option("--clicks", type=click.IntRange(3, 100), default=20, help="At most, the box being two of them.")
@click.option(
    "--looseness",
    type=Number(0, 1),
    default=0.05,
    help="By which share of its width or height each side of the tight box moves outwards.",
)
@click.option(
    "--inside-radius",
    type=Number(0, 256),
    default=0.0,
    help="By up to how many pixels, of the box's longer side scaled to 512, the inside point moves from the "
    "object's centre.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of these movements.")
@click.option(
    "--baselines/--no-baselines",
    default=True,
    help=f"Measure {', '.join(BASELINES)} too, with up to {BASELINE_CLICKS} clicks; GrabCut takes most of the time.",
)
@click.option("--sweep", is_flag=True, help="Measure looser boxes and moved inside points too, with three clicks.")
@click.option("--objects", type=click.IntRange(1), help="At most so many, evenly from the list.  [default: all]")
@click.option("--min-area", type=click.IntRange(1), default=1, help="Leave out objects of fewer pixels.")
@click.option("--backend", type=ENGINE, default="ort", help="The engine; see the README.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@click.option("--workers", type=click.IntRange(1), default=1, help="Processes, each with a model of its own.")
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    help="Of each worker's engine; 0 for one per core.  [default: 0, of several workers 1]",
)
@click.pass_context
def evaluate(
    ctx: click.Context,
    bundle: str,
    data: Path,
    form: str | None,
    listed: Path | None,
    out: Path,
    clicks: int,
    looseness: float,
    inside_radius: float,
    seed: int,
    baselines: bool,
    sweep: bool,
    objects: int | None,
    min_area: int,
    backend: str,
    device: str,
    workers: int,
    threads: int | None,
) -> None:
    """Measure a bundle on photographs whose objects have masks, with a simulated annotator.

    Reports the IoU after 3, 4, 5 and 8 clicks, and how many clicks an IoU of 0.85 and of 0.90 takes.
    """
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    model = Bundle.open(bundle_path(bundle))
    with console.status("reading labels"):
        found = DataSet.open(open_layout(data, "val", listed, form), min_area=min_area)
        counted = representative(found.items)
    for line in (*found.warnings(), *uncounted(found.items)):
        console.print(line, style="yellow")
    items = spread(counted, objects or len(counted))
    settings = Settings(
        bundle=f"{model.manifest.name} {model.digest[:12]}",
        backend=backend,
        device=device,
        looseness=looseness,
        inside_radius=inside_radius,
        clicks=clicks,
        seed=seed,
        baselines=baselines,
        sweep=sweep,
        objects=f"{len(items)} of digest {digest_of(items)[:12]}",
    )
    if threads is None:
        threads = 0 if workers == 1 else 1
    open_bench = partial(Bench.open, found, settings, model.path, threads)
    out.mkdir(parents=True, exist_ok=True)
    with Results(out / "results.jsonl", settings) as results:
        pending = [i for i in items if i.key not in results.records or results.records[i.key].errors]
        if len(pending) < len(items):
            console.print(f"{len(items) - len(pending)} of {len(items)} objects are in {out / 'results.jsonl'} already")
        try:
            with _progress(console) as progress, closing(measured(open_bench, pending, workers)) as records:
                task = progress.add_task(
                    "",
                    total=len(items),
                    completed=len(items) - len(pending),
                    figures=_running(results.records.values()),
                )
                for record in records:
                    results.add(record)
                    progress.update(task, advance=1, figures=_running(results.records.values()))
        except KeyboardInterrupt:
            console.print(f"stopped at {len(results.records)} of {len(items)} objects; the same command goes on")
            raise
        done = [results.records[item.key] for item in items]
    report = Report(model, settings, data, listed, found.skipped, len(found) - len(counted), done)
    report.write(out)
    title = f"{model.manifest.name}, {len(done)} objects, boxes {100 * looseness:g} % loose"
    draw_curves(out / "iou_over_clicks.png", done, list(BASELINES) if baselines else [], clicks, title)
    with (
        console.status("drawing galleries"),
        opened(model.path, backend, device, threads) as predictor,
    ):
        draw_galleries(out, found, done, Deployed(predictor), clicks)
    print_rich(_table(report))
    for failure in report.failures:
        where = f"{failure['name']} object {failure['id']}, {failure['segmenter']}"
        console.print(f"failed {where}: {failure['error']}", style="red")
    console.print(f"wrote {out / 'report.md'}", style="green")
    if not any(MODEL in record.tracks for record in done):
        ctx.exit(1)


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
    )


def _running(records: Iterable[Record]) -> str:
    curve = mean_curve(records, MODEL)
    return ", ".join(f"mean IoU {curve[count]:.3f} @{count}" for count in (3, 5) if count in curve)


def _table(report: Report) -> Table:
    header, *rows = report.rows(report.sets, "set")
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table
