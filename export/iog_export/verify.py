"""The proof of an export: the bundle, run as it will be deployed, against the torch network it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from iog.arrays import FloatArray
from iog.backends.base import Backend
from iog.backends.ort import OrtBackend
from iog.bundle import Bundle, Proof
from iog.clicks import NetworkClicks
from iog.crop import Crop, CropSpec
from iog.errors import InvalidImage, IogError
from iog.image import Image
from iog.predictor import Predictor
from iog.prompt import Box, Point, Prompt
from torch import Tensor, nn

from .networks import IOG

PHOTOGRAPHS = Path(__file__).parent / "photographs"

# In units of the logits' (or the tensor's) standard deviation; share of the visible crop's pixels.
# Of eight bits, in the features (uint8) or in the arithmetic (int8), the masks count, not how far logits are off. Those
# of random weights, for benchmarks, mean nothing: eight bits may change all of them, and the manifest shows that they
# were not judged.
LOGIT_TOLERANCE = {"fp32": 1e-3, "fp16": 0.2, "uint8": 1e3, "int8": 1e3, "random-int8": 1e3}
MASK_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "uint8": 3e-2, "int8": 0.1, "random-int8": 1.0}


class ProofFailed(IogError):
    """The exported graphs do not compute what the checkpoint computes; nothing was written."""


@dataclass(frozen=True)
class Case:
    """One photograph and an annotator's prompts on it, one after another."""

    name: str
    image: Image
    prompts: tuple[Prompt, ...]


def cases(photographs: Sequence[Path], crop_spec: CropSpec) -> list[Case]:
    """Two objects in each photograph, the second at the image's border, each with corrections added and taken back.

    The clicks lie in the middle, overlap each other, and reach over the border of the crop, which `crop_spec` cuts out.
    Raises InvalidImage, with the file's name.
    """
    result = []
    for path in photographs:
        try:
            image = Image.read(path)
        except InvalidImage as e:
            raise type(e)(f"{path}: {e}") from e
        h, w = image.size.height, image.size.width
        for name, (x0, y0, x1, y1) in {
            "inner": (0.25 * w, 0.2 * h, 0.8 * w, 0.85 * h),
            "border": (0, 0.4 * h, 0.55 * w, h - 1),
        }.items():
            box = Box(x0, y0, x1, y1)
            bw, bh = x1 - x0, y1 - y0
            first = Prompt(box, Point(x0 + 0.5 * bw, y0 + 0.45 * bh))
            second = first.with_click(x0 + 0.3 * bw, y0 + 0.7 * bh, positive=True)
            third = second.with_click(x0 + 0.32 * bw, y0 + 0.72 * bh, positive=False)
            left, _, _, below = Crop.around(box, crop_spec).visible(image.size)
            fourth = third.with_click(left, below - 1, positive=False)
            undone = first.with_click(x0 + 0.9 * bw, y0 + 0.1 * bh, positive=True)
            result.append(Case(f"{path.name} {name}", image, (first, second, third, fourth, undone)))
    return result


def check_graph(
    bundle: Bundle, backend: Backend, graph: str, module: nn.Module, inputs: Mapping[str, Tensor], tolerance: float
) -> None:
    """Compare one graph with the module it was exported from, tensor by tensor. Raises ProofFailed."""
    info = bundle.manifest.graphs[graph]
    opened = backend.open(graph, bundle.graphs[graph], info)
    dtypes = {t.name: np.dtype(t.dtype) for t in info.inputs}
    found = opened.run({name: value.numpy().astype(dtypes[name]) for name, value in inputs.items()})
    opened.close()
    with torch.inference_mode():
        expected = module(*inputs.values())
    for tensor, have, want in zip(
        info.outputs, found, expected if isinstance(expected, tuple) else (expected,), strict=True
    ):
        reference = want.double().numpy()
        error = float(np.abs(have.astype(np.float64) - reference).max() / max(reference.std(), 1e-12))
        if not error <= tolerance:  # NaN fails too
            raise ProofFailed(
                f"graph {graph!r}, tensor {tensor.name!r}: off by {error:.2g} of its standard deviation, "
                f"the tolerance is {tolerance:g}; nothing was written"
            )


def prove(
    network: IOG,
    bundle: Bundle,
    all_cases: Sequence[Case],
    backend: Backend | None = None,
    precision: str | None = None,
) -> Iterator[tuple[str, float, float]]:
    """Run every case through the deployed click path and through the network; yields (case, logit error, mask error).

    backend, precision: what it is deployed on; None for ONNX Runtime on the CPU in the bundle's precision.
    Raises ProofFailed at the first case over the tolerance of the precision.
    """
    precision = precision or bundle.manifest.precision
    with Predictor(bundle, backend or OrtBackend()) as predictor:
        for case in all_cases:
            for step, prompt in enumerate(case.prompts):
                name = f"{case.name} #{step}"
                result = predictor.segment(case.image, prompt, scores=True)
                assert result.logits is not None
                reference = reference_logits(network, bundle, case.image, prompt)
                error = float(np.abs(result.logits - reference).max() / reference.std())
                size, crop = case.image.size, result.crop
                x0, y0, x1, y1 = crop.visible(size)
                limit = bundle.manifest.threshold
                differ = (crop.scores(result.logits, size) > limit) != (crop.scores(reference, size) > limit)
                mask_error = float(np.count_nonzero(differ)) / ((x1 - x0) * (y1 - y0))
                tolerances = LOGIT_TOLERANCE[precision], MASK_TOLERANCE[precision]
                for what, value, tolerance, unit in (
                    ("logits", error, tolerances[0], "of the logits' standard deviation"),
                    ("mask", mask_error, tolerances[1], "of the pixels"),
                ):
                    if not value <= tolerance:  # NaN fails too
                        raise ProofFailed(
                            f"{name}: {what} off by {value:.2g} {unit}, the tolerance is {tolerance:g}; "
                            "nothing was written"
                        )
                yield name, error, mask_error


def reference_logits(network: IOG, bundle: Bundle, image: Image, prompt: Prompt) -> FloatArray:
    """(S/4, S/4) logits of the torch network for a prompt, with the bundle's crop and guidance."""
    crop = Crop.around(prompt.within(image.size).box, bundle.crop)
    clicks = NetworkClicks.of(prompt.within(image.size), crop, bundle.crop.corner_offset)
    frame = torch.from_numpy(crop.extract(image.pixels, bundle.crop.interpolation)).permute(2, 0, 1)
    refine = network.spec.refine
    seen = torch.from_numpy(clicks.guidance(bundle.guidance, initial_only=refine))
    everything = torch.from_numpy(clicks.guidance(bundle.guidance, initial_only=False))[None].float()
    with torch.inference_mode():
        inputs = torch.cat([frame, seen])[None].float()  # (1, 5, S, S)
        logits: Tensor = network.eval()(inputs, everything if refine else None).logits[0, 0]
    array: FloatArray = logits.float().numpy()
    return array


def summary(bundle_precision: str, results: Sequence[tuple[str, float, float]]) -> Proof:
    """What the manifest records."""
    return Proof(
        cases=tuple(name for name, _, _ in results),
        max_logit_error=max(error for _, error, _ in results),
        logit_tolerance=LOGIT_TOLERANCE[bundle_precision],
        mask_disagreement=max(error for _, _, error in results),
        mask_tolerance=MASK_TOLERANCE[bundle_precision],
    )
