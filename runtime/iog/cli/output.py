"""Where results go: files, and tables for people."""

from __future__ import annotations

import contextlib
import io
import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iog.arrays import UInt8Array

if TYPE_CHECKING:
    from rich.console import RenderableType

    from iog.segmentation import Segmentation

SUFFIXES = {"png": (".png",), "rle": (".json",), "polygons": (".json",)}
PICTURES = (".png", ".jpg", ".jpeg")


def check_target(option: str, path: Path, suffixes: tuple[str, ...], image: Path) -> None:
    """Refuse, before any work, a file that could not or should not be written. Raises UsageError."""
    problem = None
    if path.suffix.lower() not in suffixes:
        problem = f"the name of this file ends in {' or '.join(suffixes)}"
    elif not path.parent.is_dir():
        problem = f"directory {str(path.parent)!r} does not exist; make it first"
    elif path.is_dir():
        problem = "is a directory; expected a file"
    elif path.exists() and path.samefile(image):
        problem = "is the image itself; choose another name"
    if problem:
        raise click.UsageError(f"{option} {str(path)!r}: {problem}", click.get_current_context())


def encoded(result: Segmentation, form: str) -> bytes:
    """The mask as a file: "png", a full-frame gray image of 0 and 255; "rle" and "polygons", JSON."""
    from iog import mask

    if form == "png":
        return mask.to_png(result.mask)
    size, bounds = result.image_size, result.bounds
    document: dict[str, Any] = {"size": [size.height, size.width]}
    if form == "rle":
        document["counts"] = mask.to_rle(result.region, bounds, size).decode("ascii")
    else:
        document["bounds"] = bounds._asdict()
        document["rings"] = [{"points": ring.points.tolist(), "hole": ring.hole} for ring in result.rings]
    return json.dumps(document).encode() + b"\n"


def picture(pixels: UInt8Array, path: Path) -> bytes:
    """(H, W, 3) RGB as PNG or JPEG, by the name of its file."""
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG" if path.suffix.lower() == ".png" else "JPEG", quality=92)
    return file.getvalue()


def write_file(path: Path, data: bytes) -> None:
    """Write all of a file or nothing: on a full disk, or interrupted, the file that was there stays.

    Raises OSError that names `path`.
    """
    target = path.resolve()  # of a link, what it points to is replaced
    try:
        if target.exists() and not target.is_file():  # a pipe or a device
            target.write_bytes(data)
            return
        temporary = target.with_name(f".iog-{secrets.token_hex(8)}.tmp")
        temporary.touch(exist_ok=False)
        try:
            temporary.write_bytes(data)
            with contextlib.suppress(OSError):  # there is none to take after, or the file system has no modes
                temporary.chmod(target.stat().st_mode)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from e


def print_rich(content: RenderableType, *, err: bool = False) -> None:
    """Print for people; without colours where nobody looks."""
    from rich.console import Console

    console = Console(stderr=err, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200  # lines in files and pipes are not folded
    console.print(content)
