"""A training's state on disk: what the exporter needs, and what it takes to go on."""

from __future__ import annotations

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
    """A checkpoint that cannot be read, or one of another architecture."""


@dataclass(frozen=True)
class Snapshot:
    """The contents of a checkpoint.

    weights: the averaged weights, under the published names; provenance: where they come from;
    resume: the loop's state: live weights, optimizer, passes, seconds; absent from a finished training's final file.
    """

    spec: NetworkSpec
    geometry: Geometry
    weights: dict[str, torch.Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)
    resume: dict[str, Any] | None = None

    def write(self, path: Path) -> None:
        """Replace the file in one step, so that a reader never sees half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
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
        torch.save(contents, partial)
        os.replace(partial, path)

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
        geometry = Geometry(CropSpec(**contents["crop"]), GuidanceSpec(**contents["guidance"]))
        spec = NetworkSpec(**contents["spec"])
        return cls(spec, geometry, contents["state_dict"], contents["provenance"], contents["resume"])

    def network(self) -> IOG:
        """The network with the averaged weights, in evaluation mode."""
        network = IOG(self.spec)
        network.load_state_dict(self.weights)
        return network.eval()
