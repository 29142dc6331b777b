"""A network becomes a bundle: split, exported, proved, written."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import iog
import onnx
import onnxruntime
import torch
from iog.backends.ort import OrtBackend
from iog.bundle import (
    FORMAT,
    GRAPHS,
    Bundle,
    CropInfo,
    GuidanceInfo,
    Manifest,
    NetworkInfo,
    Proof,
    Provenance,
    write_bundle,
)
from iog.crop import CropSpec
from iog.guidance import GuidanceSpec
from torch import Tensor, nn

from .networks import IOG
from .split import split, whole
from .to_onnx import OnnxGraph, export_graph, finish, to_half_storage
from .verify import LOGIT_TOLERANCE, cases, check_graph, prove, summary

Precision = Literal["fp32", "fp16"]
KEEP_FLOAT = frozenset({"logits", "cells", "clicks"})  # small, and drawn or thresholded by the runtime in float32
UNPROVED = Proof(cases=(), max_logit_error=0, logit_tolerance=1, mask_disagreement=0, mask_tolerance=1)


@dataclass(frozen=True)
class ExportPlan:
    """What to make of a network.

    crop, guidance: how the network was trained to see images and clicks. checkpoint: where the weights come from.
    """

    name: str
    crop: CropSpec
    guidance: GuidanceSpec
    precision: Precision
    threshold: float
    checkpoint: str
    checkpoint_sha256: str | None
    description: str = ""
    card: str | None = None


def export_bundle(
    network: IOG,
    plan: ExportPlan,
    out: Path,
    photographs: Sequence[Path],
    *,
    replace: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Manifest:
    """Write the bundle of a network into directory `out`, if it is proved on all photographs.

    progress: is told what is done next. Raises ProofFailed, BundleError; then nothing is written.
    """
    network = network.float().eval()
    modules, examples = _parts(network, plan)
    graphs: dict[str, OnnxGraph] = {}
    for name, module in modules.items():
        progress(f"exporting graph {name}")
        outputs = GRAPHS[_kind(network)][name][1]
        model = export_graph(name, module, examples[name], outputs)
        graphs[name] = finish(to_half_storage(model, KEEP_FLOAT) if plan.precision == "fp16" else model, f"{name}.onnx")

    bundle = Bundle(out, _manifest(network, plan, graphs, UNPROVED), "0" * 64, {n: g.model for n, g in graphs.items()})
    backend = OrtBackend()
    for name, module in modules.items():
        progress(f"comparing graph {name} with torch, tensor by tensor")
        check_graph(bundle, backend, name, module, examples[name], LOGIT_TOLERANCE[plan.precision])
    all_cases = cases(photographs)
    results = []
    progress(f"proving the click path on {len(all_cases)} objects")
    for result in prove(network, bundle, all_cases):
        results.append(result)
        progress(f"proved {result[0]}: logits within {result[1]:.1e}, mask within {result[2]:.1e}")

    manifest = _manifest(network, plan, graphs, summary(plan.precision, results))
    progress(f"writing {out}")
    write_bundle(out, manifest, bundle.graphs, plan.card or _card(manifest), replace=replace)
    return manifest


def _kind(network: IOG) -> Literal["split", "single"]:
    return "split" if network.spec.refine else "single"


def _parts(network: IOG, plan: ExportPlan) -> tuple[Mapping[str, nn.Module], Mapping[str, Mapping[str, Tensor]]]:
    """The modules by graph, and inputs to trace them with and to compare them on."""
    spec = plan.guidance
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    first = {"image": noise(2, spec.size, spec.size, 3), "guidance": noise(2, 2, spec.size, spec.size)}
    if not network.spec.refine:
        return {"network": whole(network, size=spec.size)}, {"network": first}
    parts = split(network, size=spec.size, fwhm=spec.fwhm)
    points = torch.tensor([[0, 0], [spec.size // 2, spec.size // 3], [spec.size - 1, 5]], dtype=torch.int32)
    origins = torch.from_numpy(spec.window_origins(points.numpy()))
    window = {"window": noise(3, 2, spec.window, spec.window), "origin": origins}
    with torch.inference_mode():
        features = parts.encoder(*first.values())
        cells = parts.click(*window.values())
    clicks = cells.mean() + cells.std() * torch.randn(2, cells.shape[1], spec.grid, spec.grid, generator=generator)
    names = GRAPHS["split"]["encoder"][1]
    head = {**dict(zip(names, features, strict=True)), "clicks": clicks}
    return (
        {"encoder": parts.encoder, "click": parts.click, "head": parts.head},
        {"encoder": first, "click": window, "head": {k: v.clone() for k, v in head.items()}},
    )


def _manifest(network: IOG, plan: ExportPlan, graphs: Mapping[str, OnnxGraph], proof: Proof) -> Manifest:
    spec = network.spec
    return Manifest.model_validate(
        {
            "format": FORMAT,
            "name": plan.name,
            "description": plan.description,
            "kind": _kind(network),
            "network": NetworkInfo.model_validate(
                {
                    "architecture": "iog-refine" if spec.refine else "iog",
                    "backbone": spec.backbone,
                    "width": spec.width,
                    "normalize": spec.normalize,
                }
            ),
            "guidance": GuidanceInfo(fwhm=plan.guidance.fwhm),
            "crop": CropInfo(**asdict(plan.crop)),
            "threshold": plan.threshold,
            "precision": plan.precision,
            "graphs": {name: graph.info for name, graph in graphs.items()},
            "provenance": Provenance(
                checkpoint=plan.checkpoint,
                checkpoint_sha256=plan.checkpoint_sha256,
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                versions={
                    "iog-runtime": iog.__version__,
                    "torch": torch.__version__,
                    "onnx": onnx.__version__,
                    "onnxruntime": onnxruntime.__version__,
                    "python": platform.python_version(),
                },
            ),
            "proof": proof,
        }
    )


def _card(manifest: Manifest) -> str:
    network, proof = manifest.network, manifest.proof
    return f"""# {manifest.name}

{manifest.description or "Exported from a checkpoint; its author knows what it was trained on and how good it is."}

- Network: {network.architecture}, {network.backbone}, decoder width {network.width}, input {manifest.crop.size}
- Weights: {manifest.provenance.checkpoint} (sha256 {manifest.provenance.checkpoint_sha256 or "none: random"})
- Precision: {manifest.precision}
- Against torch, over {len(proof.cases)} prompts: logits within {proof.max_logit_error:.1e} of their standard deviation,
  at most {proof.mask_disagreement:.1e} of the mask's pixels differ
"""
