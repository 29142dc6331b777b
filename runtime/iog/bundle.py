"""The model bundle: a directory with manifest.json, ONNX graphs and CARD.md. Reading one never runs code from it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import pydantic
from pydantic import BaseModel, ConfigDict, Field

from iog.crop import CropSpec
from iog.errors import BundleError, BundleVersionError
from iog.guidance import GuidanceSpec

FORMAT = 1
MANIFEST = "manifest.json"
CARD = "CARD.md"
DEFAULT_BUNDLE = Path(__file__).parent / "models" / "default"
MAX_MANIFEST_BYTES = 1 << 20

_Tensor: TypeAlias = tuple[str, tuple[int | str, ...]]  # dtype, and shape but for the batch
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"  # of a model
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")]  # no path leads out of the bundle
EngineFile = Annotated[str, Field(pattern=r"^engines/[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}/[a-z]{1,32}\.engine$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorInfo(_Model):
    """One input or output.

    shape: the first dimension is the batch, which may vary: then a name stands for it.
    channels_last: of a map among the features, (B, H, W, C) instead of (B, C, H, W).
    """

    name: str
    dtype: Literal["uint8", "int32", "int64", "float16", "float32"]
    shape: tuple[int | str, ...]
    channels_last: bool = False

    @property
    def nbytes(self) -> int:
        """Of a batch of one."""
        return math.prod(d for d in self.shape[1:] if isinstance(d, int)) * np.dtype(self.dtype).itemsize

    @pydantic.model_serializer(mode="wrap")
    def _serialize(self, serialize: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Where it says nothing, `channels_last` is left out: such bundles are as they were before there was any."""
        found: dict[str, Any] = serialize(self)
        if not self.channels_last:
            del found["channels_last"]
        return found

    @pydantic.field_validator("shape")
    @classmethod
    def _check_shape(cls, shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
        if len(shape) < 2 or any(not isinstance(d, int) or d < 1 for d in shape[1:]):
            raise ValueError(f"shape {shape}; expected a batch and at least one positive number")
        return shape


class GraphInfo(_Model):
    """One ONNX file. macs: multiply-accumulates of one run with a batch of one."""

    file: FileName
    sha256: Sha256
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    macs: int = Field(ge=0)


class StoredFile(_Model):
    """A file of the bundle that is read when it is needed."""

    file: EngineFile
    sha256: Sha256


class EngineInfo(_Model):
    """TensorRT engines of all graphs, built from them for one version of one API and for certain GPUs.

    gpu: a compute capability, "sm90", or "sm80+" for all from there on. precision: of the arithmetic.
    max_logit_error: against torch, as in `Proof`, run on such a GPU; None where none was at hand when they were built.
    """

    api: Literal["tensorrt", "tensorrt_rtx"]
    version: str = Field(pattern=r"^[0-9A-Za-z.]{1,32}$")
    gpu: str = Field(pattern=r"^sm[0-9]{2,3}\+?$")
    precision: Literal["fp32", "fp16", "int8"]
    graphs: dict[str, StoredFile]
    max_logit_error: float | None = Field(default=None, ge=0)


class NetworkInfo(_Model):
    """Which network the graphs were made from."""

    architecture: Literal["iog-refine", "iog"]
    backbone: Literal["resnet18-half", "resnet18", "resnet30", "resnet34", "resnet50", "resnet101"]
    width: int = Field(gt=0)
    normalize: bool


class GuidanceInfo(_Model):
    """How clicks are drawn: see `iog.guidance`."""

    encoding: Literal["gaussian-uint8"] = "gaussian-uint8"
    fwhm: float
    initial: tuple[Literal["inside"], Literal["corners"]] = ("inside", "corners")


class CropInfo(_Model):
    """How the network's frame is cut: see `iog.crop.CropSpec`."""

    size: int = Field(gt=0, multiple_of=32, le=2048)
    relax_pixels: float = Field(ge=0, le=1000)
    relax_fraction: float = Field(ge=0, le=2)
    interpolation: Literal["bilinear", "area"]
    corner_offset: int = Field(ge=0, le=100)
    padding: Literal["zero"] = "zero"


class Provenance(_Model):
    """Where the weights and the graphs come from."""

    checkpoint: str
    checkpoint_sha256: Sha256 | None
    created: str
    versions: dict[str, str]


class Accuracy(_Model):
    """Mean IoU of a simulated annotator's masks on photographs with object masks, by number of clicks.

    iou: of the bundle as deployed; torch: of the network that it was made from, in fp32.
    """

    data: str
    objects: int = Field(gt=0)
    iou: dict[int, float]
    torch: dict[int, float]


class Quantization(_Model):
    """How the layers were chosen that are int8.

    objects: that ranges and losses were measured on; 0 if the proof's photographs gave the ranges and all layers are
        int8. damage: by "graph layer", 1 - IoU between the masks without and with this layer alone in int8.
    kept_float: the layers whose damage was too large. loss: of mean IoU, in all, on objects that gave no ranges, which
        had to be at most max_loss.
    """

    objects: int = Field(ge=0)
    damage: dict[str, float] = {}
    kept_float: tuple[str, ...] = ()
    loss: float | None = None
    max_loss: float | None = None


class Proof(_Model):
    """How far the graphs are from torch, over all cases.

    cases: photographs times click sequences. max_logit_error: in units of the logits' standard deviation.
    mask_disagreement: largest share, of the image's pixels in the crop, that differ. Both tolerances were met, or the
        bundle would not have been written.
    """

    cases: tuple[str, ...]
    max_logit_error: float = Field(ge=0)
    logit_tolerance: float = Field(gt=0)
    mask_disagreement: float = Field(ge=0)
    mask_tolerance: float = Field(gt=0)
    quantization: Quantization | None = None
    accuracy: Accuracy | None = None


FEATURES = ("context", "pooled", "level1", "level2", "detail", "skip")  # in early bundles `skip` is a part of `detail`


TO_CHANNELS_LAST, FROM_CHANNELS_LAST = (0, 2, 3, 1), (0, 3, 1, 2)  # (B, C, H, W) to (B, H, W, C), and back


def is_map(t: TensorInfo) -> bool:
    """Whether it is a map among the features."""
    return t.name in FEATURES and len(t.shape) == 4


GRAPHS: Mapping[str, Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    # kind -> graph -> names of inputs and outputs
    "split": {
        "encoder": (("image", "guidance"), FEATURES),
        "click": (("window", "origin"), ("cells",)),
        "head": ((*FEATURES, "clicks"), ("logits",)),
    },
    "single": {"network": (("image", "guidance"), ("logits",))},
}


class Manifest(_Model):
    """What manifest.json holds."""

    format: int = Field(ge=1, le=FORMAT)
    name: str = Field(pattern=NAME)
    description: str = ""
    kind: Literal["split", "single"]
    prompt: Literal["inside-outside"] = "inside-outside"
    network: NetworkInfo
    guidance: GuidanceInfo
    crop: CropInfo
    threshold: float = Field(gt=0, lt=1)
    precision: Literal["fp32", "fp16", "int8"]
    graphs: dict[str, GraphInfo]
    engines: tuple[EngineInfo, ...] = ()
    provenance: Provenance
    proof: Proof

    @pydantic.model_validator(mode="after")
    def _check_graphs(self) -> Manifest:
        expected = GRAPHS[self.kind]
        if set(self.graphs) != set(expected):
            raise ValueError(f"graphs {sorted(self.graphs)}; a {self.kind} bundle has {sorted(expected)}")
        for engine in self.engines:
            if set(engine.graphs) != set(expected):
                raise ValueError(
                    f"engines of graphs {sorted(engine.graphs)}; a {self.kind} bundle has {sorted(expected)}"
                )
        files = [MANIFEST, CARD, *(graph.file for graph in self.graphs.values())]
        if len(set(files)) < len(files):
            raise ValueError(f"graph files {files[2:]}; expected different names, none of them {MANIFEST} or {CARD}")
        outputs = {t.name: (t.dtype, t.shape[1:]) for graph in self.graphs.values() for t in graph.outputs}
        last = {t.name for graph in self.graphs.values() for t in graph.outputs if t.channels_last}
        tensors = outputs | _tensors(GuidanceSpec(self.crop.size, self.guidance.fwhm), outputs)
        for name, names in expected.items():
            graph = self.graphs[name]
            if self.kind == "split" and "skip" not in tensors:
                names = tuple(n for n in names[0] if n != "skip"), tuple(n for n in names[1] if n != "skip")
            found = tuple(t.name for t in graph.inputs), tuple(t.name for t in graph.outputs)
            if found != names:
                raise ValueError(f"graph {name!r} maps {found[0]} to {found[1]}; expected {names[0]} to {names[1]}")
            for t in (*graph.inputs, *graph.outputs):
                if (t.dtype, t.shape[1:]) != tensors[t.name]:
                    raise ValueError(
                        f"graph {name!r}: {t.name} is {(t.dtype, t.shape[1:])} but for the batch; expected from crop, "
                        f"guidance and the other graphs: {tensors[t.name]}"
                    )
                if t.channels_last != (t.name in last) or (t.channels_last and not is_map(t)):
                    raise ValueError(
                        f"graph {name!r}: channels_last of {t.name} is {t.channels_last}; expected it of maps among "
                        "the features alone, and the same in encoder and head"
                    )
        return self


def _tensors(spec: GuidanceSpec, outputs: Mapping[str, _Tensor]) -> dict[str, _Tensor]:
    """What the runtime feeds and reads: dtype, and shape but for the batch."""
    size, window, cells, grid = spec.size, spec.window, spec.cells, spec.grid
    channels = outputs["cells"][1][:1] if "cells" in outputs else ()
    return {
        "image": ("uint8", (size, size, 3)),
        "guidance": ("uint8", (2, size, size)),
        "window": ("uint8", (2, window, window)),
        "origin": ("int32", (2,)),
        "cells": ("float32", (*channels, cells, cells)),
        "clicks": ("float32", (*channels, grid, grid)),
        "logits": ("float32", (4 * grid, 4 * grid)),
    }


@dataclass(frozen=True)
class Bundle:
    """A bundle whose graphs were all there, with the hashes that the manifest names; `engine` checks engines.

    digest: sha256 of the manifest, which holds the graphs' hashes: it names the whole content.
    """

    path: Path
    manifest: Manifest
    digest: str
    graphs: Mapping[str, bytes]

    @cached_property
    def crop(self) -> CropSpec:
        """How to cut the network's frame."""
        c = self.manifest.crop
        return CropSpec(c.size, c.relax_pixels, c.relax_fraction, c.interpolation, c.corner_offset)

    @cached_property
    def guidance(self) -> GuidanceSpec:
        """How to draw clicks."""
        return GuidanceSpec(self.manifest.crop.size, self.manifest.guidance.fwhm)

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None) -> Bundle:
        """Read and check a bundle; None for the packaged default model.

        Raises BundleError: not a bundle, a file missing, a byte changed; BundleVersionError: a newer format.
        """
        root = Path(path) if path is not None else DEFAULT_BUNDLE
        manifest, digest = read_manifest(root)
        graphs = {name: _read(root, graph.file, graph.sha256) for name, graph in manifest.graphs.items()}
        return cls(root, manifest, digest, graphs)

    def engine(self, stored: StoredFile) -> bytes:
        """Read one of the manifest's engines. Raises BundleError if it is missing or was changed."""
        return _read(self.path, stored.file, stored.sha256)

    def check_engines(self) -> None:
        """Read all of them. Raises BundleError as `engine` does."""
        for engine in self.manifest.engines:
            for stored in engine.graphs.values():
                self.engine(stored)


def read_manifest(root: Path) -> tuple[Manifest, str]:
    """The manifest of a bundle and its sha256, without looking at the graphs."""
    path = root / MANIFEST
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as e:
        raise BundleError(f"{root} is no model bundle: {path.name}: {e.strerror}; make one with `iog export`") from e
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: over {MAX_MANIFEST_BYTES:,} bytes, which no manifest has")
    try:
        raw: Any = json.loads(data)
        version = raw["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise BundleError(f"{path} is no manifest: {type(e).__name__}: {e}") from e
    if not isinstance(version, int) or version > FORMAT:
        raise BundleVersionError(
            f"{path}: bundle format {version!r}; this version of iog-runtime reads up to {FORMAT}: upgrade iog-runtime"
        )
    try:
        return Manifest.model_validate(raw), hashlib.sha256(data).hexdigest()
    except pydantic.ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleError(f"{path}: {where}: {first['msg']} ({e.error_count()} problems in all)") from e


def check_writable(root: Path, *, replace: bool = False) -> None:
    """Look for what would keep `write_bundle` from putting a bundle there, before the work of making one.

    Raises BundleError if `root` exists and `replace` is not asked, or `root` is no bundle, or nothing can be written
    beside it.
    """
    root = root.resolve()
    if root.exists() and not replace:
        raise BundleError(f"{root} exists; choose another directory or pass --force to replace it")
    if root.exists() and not (root.is_dir() and ((root / MANIFEST).exists() or not any(root.iterdir()))):
        raise BundleError(f"{root} exists and is no bundle; it is left as it is: choose another directory")
    beside = next(parent for parent in root.parents if parent.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".{root.name}.", dir=beside))
    except OSError as e:
        raise BundleError(f"{root} cannot be written: {beside}: {e.strerror}; choose another directory") from e


def write_bundle(
    root: Path,
    manifest: Manifest,
    graphs: Mapping[str, bytes],
    card: str,
    *,
    engines: Mapping[str, bytes] | None = None,
    replace: bool = False,
) -> None:
    """Write a bundle, all of it or nothing: into a directory beside `root` that is renamed when it has been read back.

    engines: by the names that the manifest has for their files.
    Raises BundleError as `check_writable` does, or if the manifest does not describe the graphs.
    """
    check_writable(root, replace=replace)
    root = root.resolve()
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        written, old = temporary / "new", temporary / "old"
        written.mkdir()
        for name, data in graphs.items():
            (written / manifest.graphs[name].file).write_bytes(data)
        (written / CARD).write_text(card, encoding="utf-8")
        (written / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for file, data in (engines or {}).items():
            (written / file).parent.mkdir(parents=True, exist_ok=True)
            (written / file).write_bytes(data)
        bundle = Bundle.open(written)
        bundle.check_engines()
        try:
            if root.exists():
                root.rename(old)
            written.rename(root)
        except BaseException:  # an interrupt, too, between the two
            if old.exists() and not root.exists():
                old.rename(root)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(root: Path, file: str, sha256: str) -> bytes:
    path = root / file
    try:
        data = path.read_bytes()
    except OSError as e:
        raise BundleError(f"{path}: {e.strerror}; the bundle is incomplete: copy or export it again") from e
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise BundleError(
            f"{path}: sha256 {digest[:12]}… ({len(data):,} bytes), the manifest says {sha256[:12]}…; "
            "the file was changed or truncated: copy or export the bundle again"
        )
    return data
