"""Checkpoints, the authors' or ours, into a network of ours: everything fits, or an error says what does not."""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from iog.bundle import CropInfo
from iog.crop import CropSpec
from iog.errors import IogError
from torch import Tensor

from .networks import IOG, NetworkSpec
from .networks.resnet import ARCHITECTURES, Bottleneck

StateDict = Mapping[str, Tensor]


class CheckpointError(IogError):
    """A checkpoint that cannot be read, or is not one of the network asked for."""


@dataclass(frozen=True)
class CheckpointInfo:
    """Where a network's weights came from.

    sha256: hex digest of the file.
    """

    file: str
    sha256: str
    tensors: int


def load_checkpoint(path: str | Path, network: IOG) -> CheckpointInfo:
    """Fill `network` with the weights in `path`; on an error it is left as it was."""
    path = Path(path)
    try:
        with path.open("rb") as f:
            sha256 = hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise CheckpointError(f"checkpoint {path} cannot be read: {e.strerror or e}") from e
    state = read_state_dict(path)
    _check(path, state, network)
    network.load_state_dict(state, strict=False)  # strict but for the counters that _check lets pass
    return CheckpointInfo(path.name, sha256, len(state))


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by key, without running code from it.

    The file holds them as they are or under "state_dict"; a common "module." of DataParallel is taken off.
    """
    try:
        # The authors' files of 2020 are bare pickles, which cannot be mapped.
        zipped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        damaged = _damaged_part(path) if zipped else None
    except pickle.UnpicklingError as e:
        raise CheckpointError(
            f"checkpoint {path} holds more than tensors, or is no torch file; code in it is never run. "
            "Save the weights alone, torch.save(network.state_dict(), path), and load that"
        ) from e
    except Exception as e:  # on damaged files torch.load fails in every way that a parser can
        raise CheckpointError(
            f"checkpoint {path} is no torch file, or is incomplete ({type(e).__name__}); download or save it again"
        ) from e
    if damaged is not None:
        raise CheckpointError(f"checkpoint {path}: the checksum of {damaged} is wrong; download or save it again")
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise CheckpointError(
            f"checkpoint {path} holds a {type(content).__name__}; expected tensors by name, or those under 'state_dict'"
        )
    if content and all(key.startswith("module.") for key in content):
        return {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def _damaged_part(path: Path) -> str | None:
    """The first part of a file that is not what was written: torch checks no part of a mapped file."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `iog train` notes beside the weights ("spec", "crop", "guidance", ...); empty for other checkpoints.

    The values are plain: code in a checkpoint is never run. Files that cannot be read are left to `load_checkpoint`.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception:  # load_checkpoint says what is wrong
        return {}
    if not isinstance(content, Mapping) or not isinstance(content.get("spec"), Mapping):
        return {}
    return {key: value for key, value in content.items() if key != "state_dict"}


@contextmanager
def noted_in(path: str | Path) -> Iterator[None]:
    """Around the use of what `read_metadata` found. Raises CheckpointError: it cannot be used, and why."""
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError) as e:
        problem = " ".join(str(e).split())
        raise CheckpointError(f"checkpoint {path} has settings of its own, which are not usable: {problem}") from e


def spec_of(settings: Mapping[str, Any]) -> NetworkSpec:
    """The network that is noted. Raises TypeError, ValueError."""
    _check_known(settings, NetworkSpec)
    return NetworkSpec(**settings)


def crop_of(settings: Mapping[str, Any]) -> CropSpec:
    """The crop that is noted, if a bundle can have it. Raises TypeError, ValueError."""
    _check_known(settings, CropSpec)
    crop = CropSpec(**settings)
    CropInfo(**asdict(crop))
    return crop


def _check_known(settings: Mapping[str, Any], kind: type[NetworkSpec | CropSpec]) -> None:
    known = [field.name for field in fields(kind)]
    if unknown := [str(name) for name in settings if name not in known]:
        raise ValueError(f"{', '.join(unknown)}: unknown to this version of iog, which expects {', '.join(known)}")


def infer_spec(state: StateDict) -> NetworkSpec | None:
    """The network that a state dict belongs to, or None for none of ours. It does not tell `normalize`."""
    blocks = {m[0] for key in state if (m := re.match(r"backbone\.layer\d\.\d+\.", key))}
    depths = tuple(sum(block.startswith(f"backbone.layer{i}.") for block in blocks) for i in (1, 2, 3, 4))
    bottlenecks = "backbone.layer1.0.conv3.weight" in state
    first = state.get("backbone.conv1.weight")  # (stem, 5, 7, 7)
    last = state.get("Fine_net.final_predict.1.weight")  # (1, width, 3, 3)
    if last is None or last.ndim != 4 or last.shape[1] < 2 or last.shape[1] % 2:
        return None
    stem = 64 if first is None or first.ndim != 4 else len(first)
    found = depths, bottlenecks, stem
    for name, architecture in ARCHITECTURES.items():
        if (architecture.depths, architecture.block is Bottleneck, architecture.stem) == found:
            refine = any(key.startswith("iog_points.") for key in state)
            return NetworkSpec(name, refine=refine, width=last.shape[1])
    return None


def _check(path: Path, state: StateDict, network: IOG) -> None:
    expected = network.state_dict()
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]  # absent before 2018
    extra = [k for k in state if k not in expected]
    misshaped = [
        f"{k} is {list(state[k].shape)}, expected {list(v.shape)}"
        for k, v in expected.items()
        if k in state and state[k].shape != v.shape
    ]
    odd = [k for k, v in expected.items() if k in state and not _is_plain(state[k], v.is_floating_point())]
    if missing or extra or misshaped or odd:
        problems = [
            f"{len(names)} tensor{'s' * (len(names) > 1)} {what} ({_first(names)})"
            for names, what in (
                (missing, "missing"),
                (extra, "unknown"),
                (misshaped, "of another shape"),
                (odd, "of another type"),
            )
            if names
        ]
        raise CheckpointError(
            f"checkpoint {path} is not {_describe(network.spec)}: {'; '.join(problems)}. {_advice(state, network.spec)}"
        )
    if broken := [k for k, v in state.items() if not torch.isfinite(v).all()]:
        raise CheckpointError(
            f"checkpoint {path} has NaN or infinite values in {len(broken)} of {len(state)} tensors "
            f"({_first(broken)}); its training diverged: use an earlier one"
        )


def _is_plain(tensor: Tensor, floating: bool) -> bool:
    """Whether it holds real numbers, all of them: quantized, sparse and complex tensors are no weights of ours."""
    return tensor.layout is torch.strided and not tensor.is_meta and tensor.is_floating_point() == floating


def _advice(state: StateDict, spec: NetworkSpec) -> str:
    found = infer_spec(state)
    if found is None:
        return "It is not an IOG checkpoint"
    if (found.backbone, found.refine, found.width) == (spec.backbone, spec.refine, spec.width):
        return "It is of that kind, but incomplete or altered: use the file as it was published or trained"
    return f"It looks like {_describe(found)}: name that network"


def _describe(spec: NetworkSpec) -> str:
    return f"{spec.backbone} {'with' if spec.refine else 'without'} refinement branch, width {spec.width}"


def _first(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
