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
    FEATURES,
    FORMAT,
    GRAPHS,
    Accuracy,
    Bundle,
    CropInfo,
    GuidanceInfo,
    Manifest,
    NetworkInfo,
    Proof,
    Provenance,
    Quantization,
    check_writable,
    write_bundle,
)
from iog.crop import CropSpec
from iog.errors import BackendUnavailable
from iog.guidance import GuidanceSpec
from torch import Tensor, nn

from .accuracy import Track, deployed_ious, mean_ious, untracked
from .datasets import DataSet
from .networks import IOG
from .quantize import Calibration, check_loss, quantize, record
from .segmenter import torch_segmenter
from .split import split, whole
from .storage import channel_ranges, store_as_half, store_as_uint8, store_channels_last
from .tensorrt import EnginePlan, build_engines, prove_engines, target
from .to_onnx import OnnxGraph, Precision, export_graph, finish, to_half_storage
from .verify import LOGIT_TOLERANCE, Case, cases, check_graph, prove, summary

Storage = Literal["fp32", "fp16", "uint8"]
COARSENESS = ("fp32", "fp16", "uint8", "int8")
UNPROVED = Proof(cases=(), max_logit_error=0, logit_tolerance=1, mask_disagreement=0, mask_tolerance=1)


@dataclass(frozen=True)
class ExportPlan:
    """What to make of a network.

    crop, guidance: how the network was trained to see images and clicks. checkpoint: where the weights come from.
    features: how they are stored between encoder and head; None for fp32 in fp32 bundles and fp16 in others.
    calibration: for int8 and for uint8 features; without it the proof's photographs give the ranges, every layer is
        int8, and no loss is measured.
    accuracy: objects to measure the bundle and the torch network on, and a name for them.
    engines: TensorRT engines to build beside the ONNX graphs.
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
    features: Storage | None = None
    calibration: Calibration | None = None
    accuracy: tuple[str, DataSet] | None = None
    engines: EnginePlan | None = None

    @property
    def storage(self) -> Storage:
        """Of the features."""
        return self.features or ("fp32" if self.precision == "fp32" else "fp16")

    @property
    def tolerance(self) -> str:
        """By which the proof judges: that of the coarsest rounding in the bundle."""
        coarsest = max(self.precision, self.storage, key=COARSENESS.index)
        return "random-int8" if coarsest in ("uint8", "int8") and self.checkpoint_sha256 is None else coarsest


def export_bundle(
    network: IOG,
    plan: ExportPlan,
    out: Path,
    photographs: Sequence[Path],
    *,
    replace: bool = False,
    progress: Callable[[str], None] = lambda step: None,
    track: Track = untracked,
) -> Manifest:
    """Write the bundle of a network into directory `out`, if it is proved on all photographs.

    progress: is told what is done next; track: shows how far that is.
    Raises InvalidImage, CalibrationError, DataError, ProofFailed, BundleError, BackendError; then nothing is written.
    """
    check_writable(out, replace=replace)
    if plan.engines:
        target(plan.engines)  # not after minutes of other work
    all_cases = cases(photographs, plan.crop)
    network = network.float().eval()
    modules, examples = _parts(network, plan)
    exact: dict[str, OnnxGraph] = {}
    for name, module in modules.items():
        progress(f"exporting graph {name}")
        outputs = GRAPHS[_kind(network)][name][1]
        model = export_graph(name, module, examples[name], outputs)
        exact[name] = finish(model, f"{name}.onnx")

    plain = Bundle(out, _manifest(network, plan, exact, UNPROVED), "0" * 64, {n: g.model for n, g in exact.items()})
    backend = OrtBackend()
    for name, module in modules.items():
        progress(f"comparing graph {name} with torch, tensor by tensor")
        check_graph(plain, backend, name, module, examples[name], LOGIT_TOLERANCE["fp32"])
    given = plan.calibration.ranging if plan.calibration else all_cases
    graphs, quantization = _in_precision(plan, plain, exact, given, progress, track)
    bundle = Bundle(out, _manifest(network, plan, graphs, UNPROVED), "0" * 64, {n: g.model for n, g in graphs.items()})
    if plan.storage == "uint8" and plan.calibration:
        check_loss(plain, bundle, plan.calibration, progress, track)
    results = []
    progress(f"proving the click path on {len(all_cases)} objects")
    for result in prove(network, bundle, all_cases, precision=plan.tolerance):
        results.append(result)
        progress(f"proved {result[0]}: logits within {result[1]:.1e}, mask within {result[2]:.1e}")

    proof = summary(plan.tolerance, results).model_copy(update={"quantization": quantization})
    if plan.accuracy:
        proof = proof.model_copy(update={"accuracy": _accuracy(network, bundle, *plan.accuracy, track)})
    manifest = _manifest(network, plan, graphs, proof)
    files: dict[str, bytes] = {}
    if plan.engines:
        progress(f"building {plan.engines.api} engines in {plan.engines.precision}")
        samples = record(plain, given, track) if plan.engines.precision == "int8" else ()
        engines, files = build_engines(plain, plan.engines, samples)
        manifest = manifest.model_copy(update={"engines": (engines,)})
        try:
            engines = prove_engines(network, manifest, bundle.graphs, files, all_cases)
            manifest = manifest.model_copy(update={"engines": (engines,)})
        except BackendUnavailable as e:
            progress(f"the engines could not be proved here, and the manifest says so: {e}")
    progress(f"writing {out}")
    write_bundle(out, manifest, bundle.graphs, plan.card or _card(manifest), engines=files, replace=replace)
    return manifest


def _in_precision(
    plan: ExportPlan,
    plain: Bundle,
    exact: Mapping[str, OnnxGraph],
    given: DataSet | Sequence[Case],
    progress: Callable[[str], None],
    track: Track,
) -> tuple[dict[str, OnnxGraph], Quantization | None]:
    """The graphs of an fp32 bundle with weights, arithmetic and features as planned. given: to take ranges from."""
    models = {name: onnx.load_from_string(graph.model) for name, graph in exact.items()}
    quantization, last = None, False
    if plan.precision == "int8":
        quantized, quantization = quantize(plain, exact, given, plan.calibration, progress, track)
        models |= quantized
        last = "head" in quantized  # a float one would have to turn them at every click
        if last:
            for model in models.values():
                store_channels_last(model, FEATURES)
    elif plan.precision == "fp16":
        models = {name: to_half_storage(model) for name, model in models.items()}
    if plan.storage == "fp16":
        for model in models.values():
            store_as_half(model, FEATURES)
    elif plan.storage == "uint8":
        progress("recording what the graphs are given")
        samples = record(plain, given, track)
        ranges = channel_ranges((s.heads[0] for s in samples if s.heads), FEATURES if "head" in models else ())
        for model in models.values():
            store_as_uint8(model, ranges)
    return {name: finish(model, f"{name}.onnx", channels_last=last) for name, model in models.items()}, quantization


def _accuracy(network: IOG, bundle: Bundle, name: str, objects: DataSet, track: Track) -> Accuracy:
    found = deployed_ious(bundle, objects, track, "mean IoU of the bundle")
    segment = torch_segmenter(network, bundle.crop, bundle.guidance, bundle.manifest.threshold)
    expected = mean_ious(segment, objects, track, "mean IoU of the torch network")
    return Accuracy(data=name, objects=found.objects, iou=found.iou, torch=expected.iou)


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
