"""What a training starts from instead of chance: a bundle, or a checkpoint, ours or the authors'."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from iog.bundle import Bundle
from iog.cli.models import bundle_path

from iog_export.checkpoint import (
    CheckpointError,
    crop_of,
    infer_spec,
    load_checkpoint,
    noted_in,
    read_metadata,
    read_state_dict,
    spec_of,
)
from iog_export.networks import IOG, NetworkSpec
from iog_export.unsplit import unsplit


@dataclass(frozen=True)
class Initial:
    """A trained network.

    source: its file or bundle, and the sha256 of it. size: side of the crops that it was made for, if that is known.
    folded: whether its batch norms were folded away, so that they have no statistics.
    """

    network: IOG
    source: str
    size: int | None
    folded: bool

    @classmethod
    def read(cls, path: str) -> Initial:
        """Read a checkpoint, a bundle's directory, or the packaged bundle of that name.

        Raises CheckpointError, BundleError: it cannot be read, or is not of an IOG network with refinement branch.
        """
        if not Path(path).is_file():
            bundle = Bundle.open(bundle_path(path))
            source = f"bundle {bundle.manifest.name}, sha256 {bundle.digest}"
            return cls(unsplit(bundle), source, bundle.crop.size, folded=True)
        noted = read_metadata(path)
        with noted_in(path):
            noted_spec = spec_of(noted["spec"]) if noted else None
            size = crop_of(noted["crop"]).size if "crop" in noted else None
        spec = noted_spec or infer_spec(read_state_dict(Path(path)))
        if spec is not None and not spec.refine:
            raise CheckpointError(
                f"checkpoint {path} is {spec}, without refinement branch; `iog train` trains networks with one: "
                "it needs a checkpoint of such a network"
            )
        network = IOG(spec or NetworkSpec())
        info = load_checkpoint(path, network)  # says what is wrong with a file of another network
        return cls(network.eval(), f"{info.file}, sha256 {info.sha256}", size, folded=False)
