"""`iog segment`: one object of one image."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iog.backends import DEVICES
from iog.cli import values
from iog.cli.models import bundle_path, connect, server_options
from iog.cli.output import PICTURES, SUFFIXES, check_target, encoded, picture, print_rich, write_file
from iog.prompt import Box, Click, Point, Prompt

if TYPE_CHECKING:
    from iog.segmentation import Segmentation

STDOUT = Path("-")
# Options about where it runs: a server has chosen that itself.
LOCAL = ("backend", "device", "threads", "max_image_pixels")

EPILOG = """\b
Examples:
  iog segment cat.jpg --box 40,12,300,290 --inside 170,150 -o mask.png
  iog segment cat.jpg --box 40,12,300,290 --inside 170,150 \\
      --click 60,250,fg --click 290,30,bg -o mask.png --overlay look.png
  iog segment cat.jpg --box 40,12,300,290 --inside 170,150 -o mask.png --server localhost:50051

\b
Draw the box almost tight, rather too large than cutting the object; click inside
near the object's centre. Coordinates are pixels of the upright image (EXIF
orientation applied), x to the right, y down, from the top left corner. In the JSON
report and in files, bounds are x0 <= x < x1, y0 <= y < y1.
"""


@click.command(epilog=EPILOG)
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--box",
    type=values.box,
    metavar="X0,Y0,X1,Y1",
    required=True,
    help="Two opposite corners, in any order.",
)
@click.option("--inside", type=values.point, metavar="X,Y", required=True, help="A point on the object.")
@click.option(
    "--click",
    "clicks",
    envvar="IOG_SEGMENT_CLICK",
    type=values.correction,
    metavar="X,Y,fg|bg",
    multiple=True,
    help="A correction: the point is on the object, or beside it; may be repeated.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The mask's file; - for standard output."
)
@click.option(
    "--format",
    "form",
    envvar="IOG_SEGMENT_FORMAT",
    type=click.Choice(list(SUFFIXES)),
    default="png",
    help="png: 0 and 255 in the image's size. rle: COCO's, as JSON. polygons: rings of pixel centres, as JSON.",
)
@click.option("--overlay", type=click.Path(path_type=Path), help="A picture of image, mask and clicks (PNG or JPEG).")
@click.option("--model", metavar="DIR|NAME", help="A bundle, a packaged model, or one of the server's. [its default]")
@server_options
@click.option("--backend", type=values.ENGINE, default="ort", help="The engine; see the README.")
@click.option("--device", type=click.Choice(DEVICES), default="cpu", help="Of ONNX Runtime.")
@click.option("--threads", type=values.THREADS, default=0, help="On the CPU; 0 for one per core that may be used.")
@click.option(
    "--max-image-pixels", type=values.PIXELS, default=values.DEFAULT_PIXELS, help="Larger images are refused."
)
@click.option("--timeout", type=values.Seconds(min=0.001), default=30.0, help="In seconds.")
@click.option("--timings/--no-timings", default=None, help="A table of stages. [on a terminal]", show_default=False)
@click.option("--json", "as_json", envvar="IOG_SEGMENT_JSON", is_flag=True, help="Report as JSON.")
@click.pass_context
def segment(
    ctx: click.Context,
    image: Path,
    box: Box,
    inside: Point,
    clicks: tuple[Click, ...],
    output: Path,
    form: str,
    overlay: Path | None,
    model: str | None,
    server: str | None,
    tls: bool,
    root_certificates: Path | None,
    backend: str,
    device: str,
    threads: int,
    max_image_pixels: int,
    timeout: float,
    timings: bool | None,
    as_json: bool,
) -> None:
    """Mask the object in IMAGE that a box and a click inside it point out; further clicks correct the mask.

    Runs here, or on a --server. Reports the mask's area and bounds, what was remembered, and how long the stages took.
    """
    if output == STDOUT:
        if sys.stdout is None:  # the shell has closed it
            raise click.UsageError("--output -: standard output is closed", ctx)
    else:
        check_target("--output", output, SUFFIXES[form], image)
    if overlay is not None:
        check_target("--overlay", overlay, PICTURES, image)
        if output != STDOUT and overlay.resolve() == output.resolve():
            raise click.UsageError(f"--overlay and --output both name {str(output)!r}", ctx)
    if server is not None:
        given = [name for name in LOCAL if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
        if given:
            raise click.UsageError(
                f"--{given[0].replace('_', '-')} is the server's choice; leave it out with --server", ctx
            )
    prompt = Prompt(box, inside, clicks)

    from iog.errors import InvalidImage
    from iog.image import Image, ImageLimits, read_bytes

    limits, opened = ImageLimits(max_pixels=max_image_pixels), time.perf_counter()
    with ExitStack() as stack:
        ask: Callable[[], Segmentation]
        if server is not None:
            client, theirs = connect(server, timeout, tls, root_certificates)
            stack.enter_context(client)
            limits = ImageLimits(theirs.image_bytes, theirs.image_pixels)
            data = read_bytes(image, limits)
            ask = partial(client.segment, data, prompt, model=model, timeout=timeout)
        else:
            from iog.predictor import Predictor

            data = read_bytes(image, limits)
            predictor = Predictor.open(bundle_path(model), backend, device=device, threads=threads, limits=limits)
            stack.enter_context(predictor)
            ask = partial(predictor.segment, data, prompt, timeout=timeout)
        start = time.perf_counter()
        try:
            result = ask()
        except InvalidImage as e:
            raise InvalidImage(f"{image}: {e}") from e
        end = time.perf_counter()
    if output == STDOUT:
        click.echo(encoded(result, form), nl=False)
    else:
        write_file(output, encoded(result, form))
    if overlay is not None:
        from iog import overlay as pictures

        caption = f"{result.model}: {_extent(result)}"
        drawn = pictures.overlay(Image.decode(data, limits).pixels, prompt, result.mask, caption)
        write_file(overlay, picture(drawn, overlay))
    for ignored in _out_of_sight(prompt, result):
        click.echo(f"note: {ignored}", err=True)
    report = _report(image, output, result, open_ms=1e3 * (start - opened), total_ms=1e3 * (end - start))
    err = output == STDOUT
    if as_json:
        click.echo(json.dumps(report), err=err)
        return
    click.echo(_line(report, result), err=err)
    if timings is None:
        stream = sys.stderr if err else sys.stdout
        timings = stream is not None and stream.isatty()
    if timings:
        _print_table(report, err)


def _report(image: Path, output: Path, result: Segmentation, open_ms: float, total_ms: float) -> dict[str, Any]:
    cache = result.cache
    return {
        "image": str(image),
        "image_digest": result.image_digest,
        "image_size": {"height": result.image_size.height, "width": result.image_size.width},
        "output": str(output),
        "model": result.model,
        "bundle_digest": result.bundle_digest,
        "area": result.area,
        "bounds": result.bounds._asdict(),
        "cache": {"image": cache.image, "features": cache.features, "windows": cache.windows},
        "open_ms": round(open_ms, 3),
        "total_ms": round(total_ms, 3),
        "stages_ms": {name: round(1e3 * seconds, 3) for name, seconds in result.timings.items()},
    }


def _out_of_sight(prompt: Prompt, result: Segmentation) -> Iterator[str]:
    """Of the clicks that the network is not told of: background, and beyond the crop."""
    crop = result.crop
    for each in prompt.within(result.image_size).clicks:
        seen = crop.x0 <= each.x < crop.x1 + 1 and crop.y0 <= each.y < crop.y1 + 1
        if not (each.positive or seen):
            where = f"x {crop.x0}..{crop.x1}, y {crop.y0}..{crop.y1}"
            yield f"the click at {each} changes nothing: the network sees {where}, and beyond it there is no mask"


def _line(report: dict[str, Any], result: Segmentation) -> str:
    stages = ", ".join(f"{name} {ms:.1f}" for name, ms in report["stages_ms"].items() if ms >= 0.05)
    return (
        f"{report['output']}: {_extent(result)}; image {'hit' if result.cache.image else 'miss'}, "
        f"features {result.cache.features}; {report['total_ms']:.1f} ms ({stages})"
    )


def _extent(result: Segmentation) -> str:
    if not result.area:
        return "empty mask"
    share = 100 * result.area / (result.image_size.height * result.image_size.width)
    x0, y0, x1, y1 = result.bounds
    return f"{result.area} px ({share:.1f} % of {result.image_size}), x {x0}..{x1 - 1}, y {y0}..{y1 - 1}"


def _print_table(report: dict[str, Any], err: bool) -> None:
    from rich.table import Table

    table = Table("stage", box=None, pad_edge=False)
    table.add_column("ms", justify="right")
    stages = report["stages_ms"]
    for name, ms in stages.items():
        table.add_row(name, f"{ms:.1f}")
    table.add_row("outside the stages", f"{report['total_ms'] - sum(stages.values()):.1f}", style="dim")
    table.add_row("total", f"{report['total_ms']:.1f}", style="bold", end_section=True)
    table.add_row("before: open the model or connect", f"{report['open_ms']:.1f}", style="dim")
    print_rich(table, err=err)
