"""`iog train`: photographs with object masks in, a checkpoint for `iog export` out."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click
import cv2
import torch
from iog.cli.values import Number
from iog.crop import CropSpec
from iog.guidance import GuidanceSpec
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from iog_export.datasets import FORMATS, DataSet, open_layout, shared
from iog_export.datasets.formats import HELP
from iog_export.evaluation.baselines import ellipse, filled_box
from iog_export.evaluation.figures import ALL, Figures
from iog_export.evaluation.objects import representative, spread, uncounted
from iog_export.networks import NetworkSpec
from iog_export.networks.resnet import ARCHITECTURES
from iog_export.segmenter import torch_segmenter

from .board import TensorBoard
from .growth import obstacles
from .initial import Initial
from .interrupt import stop_asked
from .loop import Stopped, Trainer
from .machine import Machine, default_threads, joined
from .monitor import LogLines, Monitor, ProgressBar
from .plan import (
    CLICKS_FROM_SCRATCH,
    CLICKS_FROM_TRAINED,
    LEARNING_RATE_FROM_SCRATCH,
    LEARNING_RATE_FROM_TRAINED,
    Plan,
    growing,
    settling,
)
from .samples import WEIGHTS, Geometry
from .snapshot import Snapshot
from .validation import summarize

EPILOG = f"""{HELP}
\b
Objects under 24x24 pixels are left out; those under 48x48 are drawn less often, and
those that fill under 55 % of their box, the hard ones, more often. Of sets with these
names objects are drawn more or less often than of others: {", ".join(f"{n} {w:g}" for n, w in WEIGHTS.items())}.

\b
Examples:
  iog train photos --init default --out runs/mine --minutes 120
  iog train photos --init default --out runs/mine --minutes 120 --resume
  iog export --checkpoint runs/mine/final.pt --precision fp16 --out mine
  tensorboard --logdir runs
  torchrun --no-python --nproc-per-node 4 iog train photos --out runs/mine ...

\b
The schedule is one of time: a busy machine makes fewer passes. On a shared one:
  OMP_WAIT_POLICY=passive nice -n 19 iog train ... --threads 1
Ctrl-C writes a checkpoint and ends; --resume goes on, after a kill as well. A second
Ctrl-C ends at once, with the checkpoint that is there.
"""

TARGET_AREA = 24 * 24  # pixels; smaller objects teach little
EVALUATED = 500  # objects, at the end
INTERRUPTED = 130  # exit code


@click.command(epilog=EPILOG)
@click.argument("data", metavar="DATA", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--format", "form", type=click.Choice(list(FORMATS)), help="Of DATA.  [default: recognised]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Directory of the run.")
@click.option(
    "--minutes",
    type=Number(min=0, min_open=True),
    required=True,
    help="Time to train; validations, and measuring batch norms, are no part of it.",
)
@click.option("--train-list", type=click.Path(path_type=Path), help="What to train on.  [default: that of train]")
@click.option("--val-list", type=click.Path(path_type=Path), help="What to validate on.  [default: that of val]")
@click.option(
    "--init",
    metavar="MODEL",
    help="Start from a bundle (a directory, or a name that `iog models` lists) or from a checkpoint, of `iog train` or "
    "the authors'.  [default: from scratch]",
)
@click.option(
    "--backbone",
    type=click.Choice(list(ARCHITECTURES)),
    help="With --init, the network grows to a larger one of its kind.  [default: resnet18, or that of --init]",
)
@click.option(
    "--width",
    type=click.IntRange(min=2),
    help="Decoder channels; with --init, it grows.  [default: 64, or that of --init]",
)
@click.option("--size", type=click.IntRange(min=128), help="Side of deployed crops.  [default: 256, or that of --init]")
@click.option(
    "--batch",
    type=click.IntRange(min=2),
    default=10,
    show_default=True,
    help="Objects at once, at --size, in each process.",
)
@click.option(
    "--augmentation",
    type=Number(0, 1),
    default=0.4,
    show_default=True,
    help="Strength of distortions, occluders and other colours. Up to 1 where every object is seen dozens of times.",
)
@click.option("--last-augmentation", type=Number(0, 1), help="The same, at the end.  [default: half of --augmentation]")
@click.option("--accumulate", type=click.IntRange(min=1), default=1, show_default=True, help="Batches a step.")
@click.option(
    "--learning-rate",
    type=Number(min=0, min_open=True),
    help=f"At its peak.  [default: {LEARNING_RATE_FROM_SCRATCH:g}, with --init {LEARNING_RATE_FROM_TRAINED:g}]",
)
@click.option(
    "--settled",
    type=Number(min=0, max=1),
    default=Plan.settled,
    show_default=True,
    help="From this share of the time on, train as the network will be deployed: at --size, with fixed batch norms, "
    "from a quarter of the learning rate down. 0 only polishes a trained network.",
)
@click.option(
    "--memory",
    type=Number(min=0),
    default=4.0,
    show_default=True,
    help="GiB of photographs to keep decoded, in each process; the others are decoded each time.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of what is drawn: objects, boxes, clicks, distortions.",
)
@click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:1; auto takes a GPU if there is one."
)
@click.option(
    "--workers", type=click.IntRange(min=0), help="Processes that prepare batches.  [default: for the device]"
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Of the network's arithmetic.  [default: this process's share of the cores]",
)
@click.option(
    "--bfloat16/--float32",
    default=None,
    help="Arithmetic of the convolutions.  [default: bfloat16 if the device has it in hardware, else float16 on a GPU "
    "and float32 on a CPU]",
)
@click.option("--resume", is_flag=True, help="Go on from OUT/last.pt, with the options that it was started with.")
def train(
    data: Path,
    form: str | None,
    out: Path,
    minutes: float,
    train_list: Path | None,
    val_list: Path | None,
    init: str | None,
    backbone: str | None,
    width: int | None,
    size: int | None,
    batch: int,
    augmentation: float,
    last_augmentation: float | None,
    accumulate: int,
    learning_rate: float | None,
    settled: float,
    memory: float,
    seed: int,
    device: str,
    workers: int | None,
    threads: int | None,
    bfloat16: bool | None,
    resume: bool,
) -> None:
    """Train an IOG network with refinement branch on photographs with object masks.

    An annotator is simulated: almost tight boxes, inside points, and clicks on the largest error of the mask at hand.
    Writes OUT/last.pt every few minutes and OUT/final.pt at the end, then shows figures for up to 500 objects of the
    validation list.
    """
    if (out / "final.pt").exists():
        problem = "holds the end of a training: name another directory, or go on from it in another one with --init"
        raise click.BadParameter(f"{out} {problem}", param_hint="--out")
    if resume and not (out / "last.pt").exists():
        raise click.BadParameter(f"{out}: there is no last.pt to go on from", param_hint="--out")
    if not resume and (out / "last.pt").exists():
        problem = "holds a training: pass --resume to go on with it, or name another directory"
        raise click.BadParameter(f"{out} {problem}", param_hint="--out")
    if width is not None and width % 2:
        raise click.BadParameter(f"{width} is odd; bottlenecks halve it", param_hint="--width")
    initial = Initial.read(init) if init is not None else None
    spec = _spec(initial, backbone, width)
    size = size or (initial.size if initial is not None else None) or 256
    if size % 64:
        raise click.BadParameter(f"{size} is no multiple of 64", param_hint="--size")
    arithmetic = None if bfloat16 is None else torch.bfloat16 if bfloat16 else torch.float32
    with joined(device, arithmetic, workers) as machine:
        console = Console(stderr=True, highlight=False, quiet=not machine.leads)
        logging.basicConfig(
            level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console, show_path=False)]
        )
        torch.set_num_threads(threads or default_threads(machine.neighbours))
        cv2.setNumThreads(0)  # annotators and loaders are threads and processes of their own
        lists = open_layout(data, "train", train_list, form), open_layout(data, "val", val_list, form)
        if both := shared(*lists):
            problem = f"{len(both)} of its photographs, such as {both[0]}, are trained on; name others"
            raise click.BadParameter(problem, param_hint="--val-list")
        with console.status("reading photographs"):
            training = DataSet.open(lists[0], min_area=TARGET_AREA, keep=int(memory * 2**30))
            labelled = DataSet.open(lists[1])
            validation = labelled.only(representative(labelled.items))
        for line in (*training.warnings(), *labelled.warnings(), *uncounted(labelled.items)):
            logging.warning("%s", line)
        counts = _collections(training)
        plan = Plan(
            spec=spec,
            geometry=Geometry(
                CropSpec(size, relax_pixels=0, relax_fraction=0.12, interpolation="area", corner_offset=0),
                GuidanceSpec(size, fwhm=10 * size / 512),
            ),
            minutes=minutes,
            stages=(settling if initial else growing)(
                size, batch, augmentation, augmentation / 2 if last_augmentation is None else last_augmentation
            ),
            clicks=CLICKS_FROM_TRAINED if initial else CLICKS_FROM_SCRATCH,
            accumulate=accumulate,
            learning_rate=learning_rate or (LEARNING_RATE_FROM_TRAINED if initial else LEARNING_RATE_FROM_SCRATCH),
            settled=settled,
            seed=seed,
            provenance={
                "data": counts,
                "drawn": {name: weight for name, weight in WEIGHTS.items() if name in counts},
                "train_list": train_list.name if train_list else "train",
                "init": initial.source if initial else None,
            },
        )
        trainer = Trainer(plan, out, machine)
        if resume:
            trainer.resumed(out / "last.pt")
        elif initial is not None:
            trainer.started_from(initial, training)
        logging.info("%d objects to train on, %d to validate on", len(training), len(validation))
        logging.info("%s", _machine_line(machine))
        final = _run(trainer, training, validation, console)
    if not machine.leads:
        return
    network = torch_segmenter(final.network().to(machine.device), plan.geometry.crop, plan.geometry.guidance)
    some = validation.only(spread(validation.items, EVALUATED))
    try:
        with Progress(console=console, transient=True) as progress:
            rows = {
                name: summarize(segment, progress.track(some, description=f"evaluating {name}"))
                for name, segment in {"network": network, "ellipse": ellipse, "filled box": filled_box}.items()
            }
    except KeyboardInterrupt:
        console.print(f"stopped evaluating; {out / 'final.pt'} is complete", markup=False, soft_wrap=True)
        sys.exit(INTERRUPTED)
    Console().print(_table(rows))
    measured = (rows["network"].get(ALL) or next(iter(rows["network"].values()))).objects
    console.print(
        f"on {measured} of {len(validation)} objects; for all, and more figures: "
        f"iog export --checkpoint {out / 'final.pt'} --out DIR, then iog evaluate DIR {data}",
        markup=False,
        soft_wrap=True,
    )


def _spec(initial: Initial | None, backbone: str | None, width: int | None) -> NetworkSpec:
    """The network: that of --init if there is one, grown to what the other options ask for."""
    if initial is None:
        return NetworkSpec(backbone or "resnet18", refine=True, width=width or 64, normalize=True)
    found = initial.network.spec
    asked = replace(found, backbone=backbone or found.backbone, width=width or found.width)
    if unlike := obstacles(found, asked):
        raise click.BadParameter(
            f"{initial.source}: {'; '.join(unlike)}: a network grows to more channels and more blocks of its kind, "
            "never to fewer; leave such options out, or start from another network",
            param_hint="--init",
        )
    return asked


def _run(trainer: Trainer, training: DataSet, validation: DataSet, console: Console) -> Snapshot:
    """Train under the eyes of the user, who may stop it."""
    watched = validation.only(spread(validation.items, 100))
    with ExitStack() as stack:
        stop = stack.enter_context(stop_asked())  # first: Ctrl-C while the monitors start stops as cleanly
        monitors: list[Monitor] = []
        if trainer.machine.leads:
            monitors = [LogLines(), stack.enter_context(TensorBoard(trainer.out / "tensorboard"))]
            if console.is_terminal:
                monitors.append(stack.enter_context(ProgressBar(console)))
        try:
            final = trainer.run(training, watched, monitors, stop)
        except Stopped as e:
            stack.close()
            console.print(str(e), markup=False, soft_wrap=True)
            sys.exit(INTERRUPTED)
        console.print(f"[green]wrote[/] {escape(str(trainer.out / 'final.pt'))}", soft_wrap=True)
        if stop():
            console.print("stopped before it was evaluated")
            sys.exit(INTERRUPTED)
        return final


def _machine_line(machine: Machine) -> str:
    arithmetic = str(machine.arithmetic).removeprefix("torch.")
    processes = f", {machine.processes} processes" if machine.processes > 1 else ""
    return f"on {machine.device} in {arithmetic}, {machine.workers} loading, {machine.annotators} clicking{processes}"


def _collections(data: DataSet) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in data.items:
        counts[item.collection] = counts.get(item.collection, 0) + 1
    return counts


def _table(rows: dict[str, dict[str, Figures]]) -> Table:
    table = Table("segmenter", "set", "objects", "mean IoU, 3, 4, 5 clicks", "IoU below 0.5")
    for segmenter, sets in rows.items():
        for name, figures in sets.items():
            means = " ".join(f"{value:.3f}" for value in figures.iou.values())
            shares = " ".join(f"{value:.0%}" for value in figures.below_half.values())
            table.add_row(segmenter, escape(name), str(figures.objects), means, shares)
    return table
