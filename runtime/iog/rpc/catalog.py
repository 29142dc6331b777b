"""What a server says about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be asked for by name.

    kind: "split" if work is saved between clicks. input_size: side of the network's frame, in pixels.
    default: used when no model is named.
    """

    name: str
    kind: Literal["split", "single"]
    network: str
    backbone: str
    input_size: int
    prompts: tuple[str, ...]
    precision: str
    bundle_digest: str
    default: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server refuses: encoded bytes and decoded pixels of an image, clicks of a prompt."""

    image_bytes: int
    image_pixels: int
    clicks: int
