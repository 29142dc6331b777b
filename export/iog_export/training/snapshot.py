"""A training's state on disk: what the exporter needs, and what it takes to go on."""

from __future__ import annotations

import contextlib
import datetime
import os
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from iog.crop import CropSpec
from iog.errors import IogError
from iog.guidance import GuidanceSpec

from iog_export.networks import IOG, NetworkSpec

from .samples import Geometry

FORMAT = 1


class SnapshotError(IogError):
    """A checkpoint that cannot be read or written, or one of another training."""


@dataclass(frozen=True)
class Snapshot:
    """The contents of a checkpoint.

    weights: the averaged weights, under the published names; provenance: where they come from;
    resume: the loop's state: live weights, optimizer, passes, seconds, and the settings of its plan; absent from a
        finished training's final file.
    """

    spec: NetworkSpec
    geometry: Geometry
    weights: dict[str, torch.Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)
    resume: dict[str, Any] | None = None

    def write(self, path: Path) -> None:
        """Replace the file in one step: neither a kill nor a full disk leaves half of it, nor loses the one before.

        Raises SnapshotError: it cannot be written.
        """
        partial = path.with_suffix(".partial")
        contents = {
            "format": FORMAT,
            "state_dict": self.weights,
            "spec": asdict(self.spec),
            "crop": asdict(self.geometry.crop),
            "guidance": {"size": self.geometry.guidance.size, "fwhm": self.geometry.guidance.fwhm},
            "provenance": self.provenance,
            "resume": self.resume,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(contents, file)
                file.flush()
                os.fsync(file.fileno())  # or a crash of the machine could leave the new name with nothing behind it
            os.replace(partial, path)
        except (OSError, RuntimeError) as e:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            kept = f"the one of {_age(path)} is as it was" if path.exists() else "there is none yet"
            raise SnapshotError(
                f"checkpoint {path} cannot be written: {_reason(e)}; {kept}. Make room, then go on with --resume"
            ) from e

    @classmethod
    def read(cls, path: Path) -> Snapshot:
        """Raises SnapshotError if the file is none of ours."""
        try:
            contents = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError as e:
            raise SnapshotError(f"{path} does not exist") from e
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as e:
            raise SnapshotError(f"{path} cannot be read as a checkpoint of `iog train`") from e
        if not isinstance(contents, dict) or contents.get("format") != FORMAT:
            raise SnapshotError(f"{path} is no checkpoint of `iog train` in format {FORMAT}")
        try:
            geometry = Geometry(CropSpec(**contents["crop"]), GuidanceSpec(**contents["guidance"]))
            spec = NetworkSpec(**contents["spec"])
            return cls(spec, geometry, contents["state_dict"], contents["provenance"], contents["resume"])
        except (KeyError, TypeError, ValueError) as e:
            raise SnapshotError(f"{path} is no checkpoint of `iog train`: {type(e).__name__}: {e}") from e

    @property
    def settings(self) -> dict[str, Any]:
        """What it says of the network and its frame, by name."""
        return {**asdict(self.spec), **self.geometry.settings}

    def network(self) -> IOG:
        """The network with the averaged weights, in evaluation mode."""
        network = IOG(self.spec)
        network.load_state_dict(self.weights)
        return network.eval()


def _reason(error: BaseException) -> str:
    """In the disk's words: torch raises an error of its own on top of it."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        found = found.__context__
    return str(error).partition("\n")[0]


def _age(path: Path) -> str:
    return datetime.datetime.fromtimestamp(path.stat().st_mtime).strftime("%H:%M")
