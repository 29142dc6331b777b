"""`iog train`: photographs with object masks in, a checkpoint for `iog export` out."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click
import torch
from iog.crop import CropSpec
from iog.guidance import GuidanceSpec
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from iog_export.networks import NetworkSpec
from iog_export.networks.resnet import ARCHITECTURES

from .data import DataSet, Target, read_list
from .evaluation import Summary, ellipse, evaluate, filled_box, representative, spread, summarize, torch_segmenter
from .loop import Plan, Trainer
from .samples import Geometry, Stage

EPILOG = """\b
DATA holds <set>/images/NAME.jpg and <set>/masks/NAME.png: 8-bit masks of the
images' size, 0 background, 1..254 one id per object, 255 ignored. The lists
name <set>/NAME, one per line.

\b
Examples:
  iog train photos --out runs/mine --minutes 120
  iog train photos --out runs/mine --minutes 120 --resume
  iog export --checkpoint runs/mine/final.pt --precision fp16 --out mine

\b
The schedule is one of time: a busy machine makes fewer passes. On a shared one:
  OMP_WAIT_POLICY=passive nice -n 19 iog train ... --threads 1
"""

TARGET_AREA = 24 * 24  # pixels; smaller objects teach little


@click.command(epilog=EPILOG)
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Directory of the run.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), required=True, help="Time to train.")
@click.option("--train-list", type=click.Path(path_type=Path), help="What to train on.  [default: DATA/train.txt]")
@click.option("--val-list", type=click.Path(path_type=Path), help="What to validate on.  [default: DATA/val.txt]")
@click.option("--backbone", type=click.Choice(list(ARCHITECTURES)), default="resnet18", show_default=True)
@click.option("--width", type=click.IntRange(min=2), default=64, show_default=True, help="Decoder channels.")
@click.option("--size", type=click.IntRange(min=128), default=256, show_default=True, help="Side of deployed crops.")
@click.option("--batch", type=click.IntRange(min=2), default=10, show_default=True, help="Objects a step, at --size.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Of the network's arithmetic.  [default: all cores]")
@click.option("--bfloat16/--float32", default=True, show_default=True, help="Arithmetic of the convolutions.")
@click.option("--resume", is_flag=True, help="Go on from OUT/last.pt.")
def train(
    data: Path,
    out: Path,
    minutes: float,
    train_list: Path | None,
    val_list: Path | None,
    backbone: str,
    width: int,
    size: int,
    batch: int,
    seed: int,
    threads: int | None,
    bfloat16: bool,
    resume: bool,
) -> None:
    """Train an IOG network with refinement branch on photographs with object masks.

    An annotator is simulated: almost tight boxes, inside points, and clicks on the largest error of the mask at hand.
    Writes OUT/last.pt every few minutes and OUT/final.pt at the end, then shows figures for the validation list.
    """
    if size % 64:
        raise click.BadParameter(f"{size} is no multiple of 64", param_hint="--size")
    if resume != (out / "last.pt").exists():
        problem = "there is no last.pt to go on from" if resume else "holds a training: pass --resume to go on with it"
        raise click.BadParameter(f"{out}: {problem}", param_hint="--out")
    console = Console(stderr=True, highlight=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console)])
    torch.set_num_threads(threads or os.cpu_count() or 1)
    train_list, val_list = train_list or data / "train.txt", val_list or data / "val.txt"
    with console.status("reading photographs"):
        targets = DataSet.read(data, read_list(train_list), min_area=TARGET_AREA).targets
        validation = representative(DataSet.read(data, read_list(val_list)).targets)
    plan = Plan(
        spec=NetworkSpec(backbone, refine=True, width=width, normalize=True),
        geometry=Geometry(
            CropSpec(size, relax_pixels=0, relax_fraction=0.12, interpolation="area", corner_offset=0),
            GuidanceSpec(size, fwhm=10 * size / 512),
        ),
        minutes=minutes,
        stages=(
            (0.0, Stage(size // 2, 2 * batch)),
            (0.55, Stage(size * 3 // 4 // 32 * 32, 3 * batch // 2)),
            (0.78, Stage(size, batch)),
        ),
        seed=seed,
        bfloat16=bfloat16,
        provenance={"data": _collections(targets), "train_list": train_list.name},
    )
    trainer = Trainer(plan, out)
    if resume:
        trainer.resumed(out / "last.pt")
    logging.info("%d objects to train on, %d to validate on", len(targets), len(validation))
    final = trainer.run(targets, spread(validation, 100))
    segment = torch_segmenter(final.network(), plan.geometry.crop, plan.geometry.guidance)
    with console.status("evaluating"):
        rows = {
            "network": summarize(evaluate(segment, validation)),
            "ellipse": summarize(evaluate(ellipse, validation)),
            "filled box": summarize(evaluate(filled_box, validation)),
        }
    Console().print(_table(rows))


def _collections(targets: tuple[Target, ...]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for target in targets:
        counts[target.photograph.collection] = counts.get(target.photograph.collection, 0) + 1
    return counts


def _table(rows: dict[str, dict[str, Summary]]) -> Table:
    table = Table("segmenter", "set", "objects", "mean IoU, 3, 4, 5 clicks", "IoU below 0.5")
    for segmenter, summaries in rows.items():
        for name, summary in summaries.items():
            means = " ".join(f"{value:.3f}" for value in summary.mean_iou)
            shares = " ".join(f"{value:.0%}" for value in summary.below_half)
            table.add_row(segmenter, name, str(summary.objects), means, shares)
    return table
