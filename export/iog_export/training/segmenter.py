"""A network as it stands in training, segmenting what prompts ask for with the runtime's geometry."""

from __future__ import annotations

import numpy as np
import torch
from iog.arrays import BoolArray, UInt8Array
from iog.clicks import NetworkClicks
from iog.crop import Crop, CropSpec
from iog.guidance import GuidanceSpec
from iog.prompt import Box, Point, Prompt, Size
from torch import Tensor

from iog_export.evaluation.protocol import Segmenter
from iog_export.networks import IOG, Features


def torch_segmenter(
    network: IOG, crop_spec: CropSpec, guidance_spec: GuidanceSpec, threshold: float = 0.5
) -> Segmenter:
    """A network in evaluation mode as a segmenter, with the runtime's geometry; it encodes once per object."""
    last: tuple[UInt8Array, Box, Point, Features] | None = None
    device = next(network.parameters()).device
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
        if last is None or last[0] is not pixels or last[1:3] != (prompt.box, prompt.inside):
            image = crop.extract(pixels, crop_spec.interpolation).transpose(2, 0, 1)
            inputs = np.concatenate([image, points.guidance(guidance_spec, initial_only=True)])
            last = pixels, prompt.box, prompt.inside, network.encode(floats(inputs))
        heat = points.guidance(guidance_spec, initial_only=False)
        logits = network.decode(last[3], floats(heat)).logits[0, 0].cpu().numpy()
        mask = np.zeros(pixels.shape[:2], bool)
        x0, y0, x1, y1 = crop.visible(size)
        mask[y0:y1, x0:x1] = crop.scores(logits, size) > threshold
        return mask

    return segment
