"""What competitors are asked."""

import re
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from harness import competitors
from harness.networks import Published
from harness.scene import corrected, prompt
from iog import Prompt
from iog.arrays import BoolArray, UInt8Array
from iog.crop import Crop


def test_grabcut_gets_the_frame_of_the_published_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple[int, ...], Prompt]] = []
    real = competitors.grabcut

    def grabcut(pixels: UInt8Array, moved: Prompt) -> BoolArray:
        asked.append((pixels.shape, moved))
        return real(pixels, moved)

    monkeypatch.setattr(competitors, "grabcut", grabcut)
    with ExitStack() as stack:
        scene = competitors.Scene(Published(tmp_path, "resnet18", 64, 8), stack)
        found, missing = competitors.assemble(scene, re.compile("^OpenCV GrabCut$"))
        request = prompt(scene.image.size)
        for number in range(3):
            request = corrected(request, number)
        mask = found["OpenCV GrabCut"].answer(request)
    assert not missing
    ((shape, moved),) = asked
    assert shape == (64, 64, 3)
    crop = Crop.around(request.box, scene.host.crop)
    assert moved.box.pixels == (*crop.corners(request.box, 0)[0], *crop.corners(request.box, 0)[3])
    assert [c.positive for c in moved.clicks] == [c.positive for c in request.clicks]
    assert isinstance(mask, np.ndarray)
    assert mask.shape == (1080, 1920)
    x0, y0, x1, y1 = request.box.pixels
    assert 0.2 < mask[y0 : y1 + 1, x0 : x1 + 1].mean() < 0.9
    assert mask[y0 : y1 + 1, x0 : x1 + 1].sum() > 0.95 * mask.sum()
