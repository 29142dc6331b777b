"""A prompt's points in the network's frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from iog.arrays import PointArray, UInt8Array
from iog.crop import Crop
from iog.errors import InvalidPrompt
from iog.guidance import GuidanceSpec, draw
from iog.prompt import Prompt


@dataclass(frozen=True)
class NetworkClicks:
    """Where the guidance lies, in network pixels.

    initial: (5, 2) the inside point, then the four corners: what the encoder sees.
    refinements: (x, y, positive) of the corrections, in the order they were placed.
    """

    initial: PointArray
    refinements: tuple[tuple[int, int, bool], ...]

    @classmethod
    def of(cls, prompt: Prompt, crop: Crop, corner_offset: int) -> NetworkClicks:
        """Bring a prompt into the network's frame.

        A negative click outside the crop is left out: the mask cannot reach it.
        Raises InvalidPrompt for a positive one.
        """
        inside = crop.to_network([(prompt.inside.x, prompt.inside.y)])
        corners = crop.corners(prompt.box, corner_offset)
        refinements = []
        if prompt.clicks:
            points = crop.to_network([(click.x, click.y) for click in prompt.clicks])
            for i, (click, (x, y)) in enumerate(zip(prompt.clicks, points.tolist(), strict=True)):
                if 0 <= x < crop.size and 0 <= y < crop.size:
                    refinements.append((x, y, click.positive))
                elif click.positive:
                    raise InvalidPrompt(
                        f"clicks[{i}]",
                        f"{click} is on the object but outside what the network sees around the box "
                        f"(x {crop.x0}..{crop.x1}, y {crop.y0}..{crop.y1}); draw a box around the whole object",
                    )
        return cls(np.concatenate([inside, corners]), tuple(refinements))

    @cached_property
    def points(self) -> PointArray:
        """(5 + n, 2) the initial points, then the refinements."""
        extra = np.array([(x, y) for x, y, _ in self.refinements], np.int32).reshape(-1, 2)
        return np.concatenate([self.initial, extra])

    @cached_property
    def foreground(self) -> PointArray:
        """(m, 2) the inside point and the positive refinements."""
        return self.points[[0, *(5 + i for i, (_, _, positive) in enumerate(self.refinements) if positive)]]

    @cached_property
    def background(self) -> PointArray:
        """(m, 2) the corners and the negative refinements."""
        return self.points[
            [1, 2, 3, 4, *(5 + i for i, (_, _, positive) in enumerate(self.refinements) if not positive)]
        ]

    def divided(self, *, initial_only: bool) -> tuple[PointArray, PointArray]:
        """Foreground and background points, of the initial ones or of all."""
        return (self.initial[:1], self.initial[1:]) if initial_only else (self.foreground, self.background)

    def guidance(self, spec: GuidanceSpec, *, initial_only: bool) -> UInt8Array:
        """(2, S, S) foreground and background heat, of the initial points or of all."""
        heat = np.zeros((2, spec.size, spec.size), np.uint8)
        for channel, points in zip(heat, self.divided(initial_only=initial_only), strict=True):
            draw(channel, points, spec)
        return heat
