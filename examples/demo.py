"""A server, a photograph, three clicks: what `make demo` shows.

Starts `iog serve` with the packaged model, sends it a box and a click inside an object, then two corrections, checks
that each was answered from memory and made the mask better, and draws every step into demo.png.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from iog import Box, Click, Client, Image, Point, Prompt, Segmentation
from iog.arrays import BoolArray
from iog.overlay import PANEL_SIDE, overlay, panel
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "export" / "iog_export" / "photographs" / "astronaut.jpg"
REFERENCE = ROOT / "examples" / "references" / "astronaut.png"

START = Prompt(Box(13, 8, 373, 511), Point(175, 320))
CORRECTIONS = (Click(14, 474, positive=False), Click(146, 503, positive=True))  # behind the sleeve, the cuff
GOOD_IOU = 0.9  # with the reference, after the last click
READY_S = 60.0

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True)
class Step:
    """One request and its answer. iou: with the reference mask. seconds: as the client saw it, upload included."""

    name: str
    prompt: Prompt
    result: Segmentation
    iou: float
    seconds: float


def main() -> int:
    """Run the demo; 0 if every step did what it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a bundle or packaged model [the packaged default]")
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="the picture to write [demo.png]")
    options = parser.parse_args()
    with server(options.model) as address, Client(address) as client:
        console.print(f"server ready on {address}")
        steps = list(clicks(client))
    problems = list(verdict(steps))
    console.print(table(steps))
    PIL.Image.fromarray(picture(steps)).save(options.out)
    console.print(f"wrote {options.out}")
    for problem in problems:
        console.print(f"FAILED: {problem}", style="bold red")
    return 1 if problems else 0


@contextmanager
def server(model: str | None) -> Iterator[str]:
    """A server on a free port, stopped at the end as Ctrl-C would; yields its address."""
    command = [sys.executable, "-m", "iog.cli", "serve", "--port", "0", *(["--model", model] if model else [])]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield ready(process)
            if process.poll() is not None:
                raise SystemExit(f"the server died with exit code {process.returncode}")
        finally:
            process.send_signal(signal.SIGINT)
            _, log = process.communicate(timeout=30)
        if process.returncode != 0:
            raise SystemExit(f"the server stopped with exit code {process.returncode}:\n{log}")


def ready(process: subprocess.Popen[str]) -> str:
    """The address in the server's ready line."""
    assert process.stderr is not None
    log = []
    late = threading.Timer(READY_S, process.kill)
    late.start()
    try:
        for line in process.stderr:
            log.append(line)
            if found := re.search(r"serving .* on (\S+)$", line):
                return found[1]
    finally:
        late.cancel()
    raise SystemExit(f"the server did not start, exit code {process.wait(READY_S)}:\n{''.join(log)}")


def clicks(client: Client) -> Iterator[Step]:
    """Box and inside click, then one correction after the other."""
    reference = np.asarray(PIL.Image.open(REFERENCE)) > 127
    prompt, name = START, "box and inside click"
    for correction in (*CORRECTIONS, None):
        start = time.perf_counter()
        result = client.segment(PHOTO, prompt)
        seconds = time.perf_counter() - start
        yield Step(name, prompt, result, iou(result.mask, reference), seconds)
        if correction is not None:
            prompt = prompt.with_click(correction.x, correction.y, correction.positive)
            name = "foreground click" if correction.positive else "background click"


def iou(a: BoolArray, b: BoolArray) -> float:
    """Intersection over union."""
    return float(np.sum(a & b) / max(1, int(np.sum(a | b))))


def verdict(steps: list[Step]) -> Iterator[str]:
    """What went otherwise than it should."""
    first, *corrected = steps
    if first.result.cache.features != "miss":
        yield f"{first.name}: features were a {first.result.cache.features}; a new server has to compute them"
    for before, step in zip(steps, corrected, strict=False):
        cache, click = step.result.cache, step.prompt.clicks[-1]
        if (cache.features, cache.windows) != ("hit", 1):
            yield f"{step.name}: features {cache.features}, {cache.windows} windows; expected a hit and 1 window"
        if step.iou <= before.iou:
            yield f"{step.name}: IoU went from {before.iou:.3f} to {step.iou:.3f}; a correction should raise it"
        if step.result.mask[int(click.y), int(click.x)] != click.positive:
            yield f"{step.name}: the mask ignores the click at {click}"
    if steps[-1].iou < GOOD_IOU:
        yield f"the last mask has IoU {steps[-1].iou:.3f} with the reference; expected {GOOD_IOU} at least"


def table(steps: list[Step]) -> Table:
    """A row per step, times in ms."""
    stages = ("encoder", "clicks", "head", "mask")
    rows = Table("step", "features", box=None, pad_edge=False, title="times in ms", title_justify="left")
    for name in ("mask px", "IoU", *stages, "all stages", "client"):
        rows.add_column(name, justify="right")
    for step in steps:
        timings = step.result.timings
        seconds = (*(timings.get(stage, 0.0) for stage in stages), sum(timings.values()), step.seconds)
        measured = (f"{step.result.area}", f"{step.iou:.3f}", *(f"{1e3 * s:.1f}" for s in seconds))
        rows.add_row(step.name, step.result.cache.features, *measured)
    return rows


def picture(steps: list[Step]) -> np.ndarray:
    """The steps side by side."""
    pixels = Image.read(PHOTO).pixels
    pictures = []
    for number, step in enumerate(steps, 1):
        server_ms = 1e3 * sum(step.result.timings.values())
        caption = (
            f"{number}. {step.name}\n"
            f"IoU {step.iou:.3f}, {server_ms:.0f} ms on the server, features {step.result.cache.features}"
        )
        pictures.append(overlay(pixels, step.prompt, step.result.mask, caption, long_side=PANEL_SIDE))
    return panel(pictures)


if __name__ == "__main__":
    sys.exit(main())
