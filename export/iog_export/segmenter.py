"""A torch network segmenting what prompts ask for, with the runtime's geometry."""

from __future__ import annotations

import numpy as np
import torch
from iog.arrays import BoolArray, UInt8Array
from iog.clicks import NetworkClicks
from iog.crop import Crop, CropSpec
from iog.guidance import GuidanceSpec
from iog.prompt import Prompt, Size
from torch import Tensor

from .evaluation.protocol import Segmenter
from .networks import IOG, Features


def torch_segmenter(
    network: IOG, crop_spec: CropSpec, guidance_spec: GuidanceSpec, threshold: float = 0.5
) -> Segmenter:
    """A network in evaluation mode as a segmenter; it encodes once per object, without refinement branch per click."""
    last: tuple[UInt8Array, Prompt, Features] | None = None
    device = next(network.parameters()).device
    refine = network.spec.refine
    network.eval()

    def floats(values: UInt8Array) -> Tensor:
        return torch.from_numpy(values[None]).to(device).float()

    @torch.inference_mode()
    def segment(pixels: UInt8Array, prompt: Prompt) -> BoolArray:
        nonlocal last
        size = Size(pixels.shape[0], pixels.shape[1])
        prompt = prompt.within(size)
        crop = Crop.around(prompt.box, crop_spec)
        points = NetworkClicks.of(prompt, crop, crop_spec.corner_offset)
        encoded = Prompt(prompt.box, prompt.inside) if refine else prompt
        if last is None or last[0] is not pixels or last[1] != encoded:
            image = crop.extract(pixels, crop_spec.interpolation).transpose(2, 0, 1)
            inputs = np.concatenate([image, points.guidance(guidance_spec, initial_only=refine)])
            last = pixels, encoded, network.encode(floats(inputs))
        clicks = floats(points.guidance(guidance_spec, initial_only=False)) if refine else None
        logits = network.decode(last[2], clicks).logits[0, 0].cpu().numpy()
        mask = np.zeros(pixels.shape[:2], bool)
        x0, y0, x1, y1 = crop.visible(size)
        mask[y0:y1, x0:x1] = crop.scores(logits, size) > threshold
        return mask

    return segment
