"""`iog export`: a checkpoint in, a proved bundle out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import click
from iog.bundle import NAME, check_writable
from iog.cli.values import Number
from iog.guidance import GuidanceSpec
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from .accuracy import Items, open_objects
from .checkpoint import crop_of, load_checkpoint, noted_in, read_metadata, spec_of
from .datasets import FORMATS, open_layout, shared
from .export import ExportPlan, export_bundle
from .networks import IOG, randomize
from .networks.resnet import ARCHITECTURES
from .quantize import MIN_OBJECTS, Calibration
from .tensorrt import GPUS, EnginePlan
from .verify import PHOTOGRAPHS

OBJECTS, MAX_LOSS = 128, 0.5  # of a calibration, unless asked otherwise
DATA = click.Path(path_type=Path, exists=True, file_okay=False)

EPILOG = """\b
Examples:
  iog export --network iog-refine --backbone resnet101 --checkpoint IOG_PASCAL_SBD_REFINEMENT.pth --out pascal
  iog export --checkpoint runs/mine/final.pt --precision fp16 --out mine
  iog export --checkpoint runs/mine/final.pt --precision int8 --calibration photos --accuracy photos --out mine-int8
  iog export --checkpoint runs/mine/final.pt --target tensorrt --out mine-gpu
  iog export --backbone resnet50 --random-weights 7 --size 256 --out /tmp/benchmark
"""


@click.command(epilog=EPILOG)
@click.option(
    "--network",
    type=click.Choice(["iog-refine", "iog"]),
    help="With or without the refinement branch. Without it clicks reuse nothing. [default: iog-refine, "
    "or what `iog train` noted in the checkpoint]",
)
@click.option("--backbone", type=click.Choice(list(ARCHITECTURES)), help="[default: resnet101, or the checkpoint's]")
@click.option("--width", type=click.IntRange(min=2), help="Decoder channels. [default: 256, or the checkpoint's]")
@click.option("--checkpoint", type=click.Path(path_type=Path, dir_okay=False), help="The weights: a torch file.")
@click.option("--random-weights", type=int, metavar="SEED", help="Random weights instead: for benchmarks and tests.")
@click.option(
    "--size",
    type=click.IntRange(64, 2048),
    help="Side of the input, in steps of 32. [default: 512, or the checkpoint's]",
)
@click.option(
    "--corner-offset",
    type=click.IntRange(0, 100),
    help="Network pixels by which the corner points lie outside the box: 10 for models of the authors, trained with "
    "tight boxes; 0 for boxes as people draw them. [default: 10, or the checkpoint's]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="fp16 stores weights and features in half the space; engines without half arithmetic compute in fp32. int8 "
    "computes convolutions with uint8 maps and int8 weights, but for layers that lose too much.",
)
@click.option(
    "--calibration",
    type=DATA,
    help="For int8 and uint8: photographs with object masks, as `iog train` takes them; their training split is used.",
)
@click.option(
    "--calibration-objects",
    type=click.IntRange(MIN_OBJECTS),
    help="At most so many of them. Half give ranges, on the others losses are measured. The features of one half are "
    f"in memory at once: 33 MB an object of ResNet-101 at 512.  [default: {OBJECTS}]",
)
@click.option(
    "--max-loss",
    type=Number(0, 100),
    help="Points of mean IoU that --precision int8 or --features uint8 may lose there, after three clicks and after "
    f"five.  [default: {MAX_LOSS}]",
)
@click.option(
    "--features",
    type=click.Choice(["fp32", "fp16", "uint8"]),
    help="How features are stored between clicks, of networks with refinement branch. [default: fp32 for fp32, "
    "otherwise fp16]",
)
@click.option(
    "--accuracy",
    type=DATA,
    help="Measure mean IoU on the validation split of photographs with masks, the bundle's and the torch network's, "
    "for the proof in the manifest.",
)
@click.option("--accuracy-objects", type=click.IntRange(1), help="At most so many of them. [default: all]")
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMATS)),
    help="Of the folders that --calibration and --accuracy name. [default: recognised]",
)
@click.option(
    "--target",
    type=click.Choice(["onnx", "tensorrt", "tensorrt-rtx"]),
    default="onnx",
    show_default=True,
    help="Beside the ONNX graphs, engines for --backend trt: of TensorRT, for the GPU of this machine, or of "
    "TensorRT-RTX, which needs none to build them.",
)
@click.option(
    "--engine-precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    help="Of the engines' arithmetic. int8 takes its ranges from --calibration, or else from the photographs.  "
    "[default: fp16]",
)
@click.option("--gpu", type=click.Choice(GPUS), help="That TensorRT-RTX builds for. [default: all from Ampere on]")
@click.option("--name", help="Under which the model is served. [default: the name of the output directory]")
@click.option("--description", default="", help="One line for `iog models`.")
@click.option("--card", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A model card to include.")
@click.option(
    "--photograph",
    "photographs",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="Prove on this image, may be repeated. [default: three that come with iog-runtime]",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory of the new bundle.")
@click.option("--force", is_flag=True, help="Replace the bundle that is there.")
def export(
    network: str | None,
    backbone: str | None,
    width: int | None,
    checkpoint: Path | None,
    random_weights: int | None,
    size: int | None,
    corner_offset: int | None,
    precision: Any,
    calibration: Path | None,
    calibration_objects: int | None,
    max_loss: float | None,
    features: Any,
    accuracy: Path | None,
    accuracy_objects: int | None,
    form: str | None,
    target: str,
    engine_precision: Any,
    gpu: str | None,
    name: str | None,
    description: str,
    card: Path | None,
    photographs: tuple[Path, ...],
    out: Path,
    force: bool,
) -> None:
    """Split a PyTorch checkpoint into encoder, click and head graphs, prove them, and write a bundle.

    The bundle is run as it will be deployed, on photographs and click sequences, and compared with the torch network.
    Nothing is written unless both agree within the tolerance that the manifest records.
    """
    if (checkpoint is None) == (random_weights is None):
        raise click.UsageError("give either --checkpoint FILE or --random-weights SEED")
    if size is not None and size % 32:
        raise click.BadParameter(
            f"{size} is no multiple of 32; next ones: {size // 32 * 32}, {-(-size // 32) * 32}", param_hint="--size"
        )
    check_writable(out, replace=force)
    try:
        written = card.read_text(encoding="utf-8") if card else None
    except UnicodeDecodeError as e:
        raise click.BadParameter(f"{card} is no UTF-8 text: {e}", param_hint="--card") from e
    for asked, ranges in (("--precision int8", precision == "int8"), ("--features uint8", features == "uint8")):
        if ranges and checkpoint and not calibration:
            raise click.UsageError(f"{asked} needs --calibration DATA: photographs with object masks")
    if precision == "int8" and features == "uint8":  # ONNX Runtime fuses scales by channel into sums that have none
        raise click.UsageError("--features uint8 does not go with --precision int8; choose fp16 or fp32")
    if calibration and "int8" not in (precision, engine_precision) and features != "uint8":
        raise click.UsageError("--calibration is for --precision int8, --engine-precision int8 and --features uint8")
    if calibration_objects and not calibration:
        raise click.UsageError("--calibration-objects is for --calibration DATA")
    if max_loss is not None and not (calibration and (precision == "int8" or features == "uint8")):
        raise click.UsageError(
            "--max-loss is for --precision int8 and --features uint8, with --calibration DATA; engines are judged by "
            "their masks in the proof"
        )
    if accuracy_objects and not accuracy:
        raise click.UsageError("--accuracy-objects is for --accuracy DATA")
    if form and not (calibration or accuracy):
        raise click.UsageError("--format is for the folders of --calibration and --accuracy")
    if engine_precision and target == "onnx":
        raise click.UsageError("--engine-precision is for --target tensorrt and tensorrt-rtx: onnx has no engines")
    if gpu and target != "tensorrt-rtx":
        raise click.UsageError("--gpu is for --target tensorrt-rtx: others need no choice")
    name = name or out.resolve().name.lower()
    if not re.fullmatch(NAME, name):
        raise click.BadParameter(
            f"{name!r}; expected up to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit first", param_hint="--name"
        )
    if width is not None and width % 2:
        raise click.BadParameter(f"{width} is odd; bottlenecks halve it", param_hint="--width")
    noted = read_metadata(checkpoint) if checkpoint else {}
    with noted_in(checkpoint) if checkpoint and noted else nullcontext():
        spec = spec_of(
            {
                "backbone": "resnet101",
                "refine": True,
                **noted.get("spec", {}),
                **_given(backbone=backbone, width=width, refine=None if network is None else network == "iog-refine"),
            }
        )
        crop = crop_of(
            {
                "size": 512,
                "corner_offset": 10,
                **noted.get("crop", {}),
                **_given(size=size, corner_offset=corner_offset),
            }
        )
        guidance = GuidanceSpec(crop.size, crop.size * _relative_fwhm(noted))
        threshold = noted.get("threshold", 0.5)
        if not 0 < threshold < 1:
            raise ValueError(f"threshold {threshold}; expected a number between 0 and 1")
    if features and not spec.refine:
        raise click.UsageError("--features is for networks with refinement branch: others store nothing between clicks")
    console = Console(stderr=True, highlight=False)

    def warn(line: str) -> None:
        console.print(line, style="yellow", markup=False, soft_wrap=True)

    with console.status("reading labels"):
        ranging = open_layout(calibration, "train", form=form) if calibration else None
        measuring = open_layout(accuracy, "val", form=form) if accuracy else None
        if ranging and measuring and (both := shared(ranging, measuring)):
            problem = f"{len(both)} photographs of its validation split, such as {both[0]}, are in the training split"
            raise click.BadParameter(f"{problem} of --calibration; expected others", param_hint="--accuracy")
        calibrated, measured = None, None
        if ranging:
            objects = open_objects(ranging, calibration_objects or OBJECTS, warn)
            calibrated = Calibration(objects, (MAX_LOSS if max_loss is None else max_loss) / 100)
        if accuracy and measuring:
            measured = f"{accuracy.name}, val", open_objects(measuring, accuracy_objects, warn)
    with console.status("loading weights") as status:
        net = IOG(spec)
        if checkpoint:
            info = load_checkpoint(checkpoint, net)
            source, sha256 = info.file, info.sha256
        else:
            assert random_weights is not None
            randomize(net, random_weights)
            source, sha256 = f"random weights, seed {random_weights}", None
        plan = ExportPlan(
            name=name,
            crop=crop,
            guidance=guidance,
            precision=precision,
            threshold=threshold,
            checkpoint=source,
            checkpoint_sha256=sha256,
            description=description,
            card=written,
            features=features,
            calibration=calibrated,
            accuracy=measured,
            engines=None if target == "onnx" else EnginePlan(_APIS[target], engine_precision or "fp16", gpu),
        )
        manifest = export_bundle(
            net,
            plan,
            out,
            photographs or sorted(PHOTOGRAPHS.glob("*.jpg")),
            replace=force,
            progress=lambda step: _show(console, status, step),
            track=lambda items, what: _tracked(status, items, what),
        )
    proof = manifest.proof
    megabytes = sum(f.stat().st_size for f in out.rglob("*")) / 1e6
    macs = ", ".join(f"{n} {g.macs / 1e9:.2f}" for n, g in manifest.graphs.items())
    console.print(
        f"[green]wrote[/] {escape(str(out))}: {manifest.kind} bundle {manifest.name!r}, {megabytes:.1f} MB, "
        f"GMAC: {macs}\n"
        f"proved on {len(proof.cases)} prompts: logits within {proof.max_logit_error:.1e} of their standard deviation "
        f"(tolerance {proof.logit_tolerance:g}), {proof.mask_disagreement:.1e} of mask pixels differ at most",
        soft_wrap=True,
    )
    if proof.quantization:
        kept = proof.quantization.kept_float
        console.print(f"left in float: {', '.join(kept) or 'nothing that can be int8'}", markup=False)
    if proof.accuracy:
        a = proof.accuracy
        shares = ", ".join(f"{a.iou[n]:.4f} after {n} clicks (torch {a.torch[n]:.4f})" for n in a.iou)
        console.print(f"mean IoU on {a.objects} objects of {a.data}: {shares}", markup=False)


_APIS: Mapping[str, Literal["tensorrt", "tensorrt_rtx"]] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _relative_fwhm(noted: dict[str, Any]) -> float:
    """Width of a click's heat as a share of the frame: published, 10 of 512."""
    guidance = noted.get("guidance")
    return guidance["fwhm"] / guidance["size"] if guidance else 10 / 512


def _tracked(status: Status, items: Items, what: str) -> Iterator[Any]:
    """Pass on the items, with a bar behind the status."""
    for done, item in enumerate(items):
        filled = 20 * done // len(items)
        status.update(f"{what} {'━' * filled}{'╌' * (20 - filled)} {done}/{len(items)}")
        yield item


def _show(console: Console, status: Status, step: str) -> None:
    if not console.is_terminal:
        console.print(step, markup=False)
    status.update(escape(step))
