"""What is counted when annotators correct at once, and when clicks are new."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import scaling
from harness.scene import prompt
from iog import Predictor, Prompt
from iog.segmentation import Segmentation


def test_first_clicks_are_no_corrections_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second annotator's first click takes long; meanwhile the first one may not begin to correct."""
    clicks: list[int] = []

    class Client:
        def __init__(self, address: str) -> None:
            pass

        def __enter__(self) -> "Client":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def segment(self, image: bytes, asked: Prompt) -> None:
            if not asked.clicks and asked.box.x1 == prompt(scaling.FULL_HD, -2).box.x1:
                time.sleep(0.1)
            clicks.append(len(asked.clicks))

    @contextmanager
    def served(*_: str) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(address="nowhere")

    monkeypatch.setattr(scaling, "Client", Client)
    monkeypatch.setattr(scaling, "served", served)
    line = scaling.annotators(None, [2], seconds=0.0)
    assert clicks == [0, 0, 1, 1]
    assert set(line["corrections a second"]) == {2}


def test_new_clicks_are_computed_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """However rounds are shuffled, and although a predictor remembers what was clicked last."""
    windows: dict[int, list[int]] = defaultdict(list)
    segment = Predictor.segment

    def watched(self: Predictor, image: object, asked: Prompt) -> Segmentation:
        answer = segment(self, image, asked)
        windows[len(asked.clicks)].append(answer.cache.windows)
        return answer

    monkeypatch.setattr(Predictor, "segment", watched)
    with Predictor.open() as predictor:
        scaling.clicks(predictor, [2, 4], rounds=3)
    # Only what is timed has two or four clicks, in both series: once in the round that warms up, once in each of three.
    assert sorted(windows[2]) == [1] * 4 + [2] * 4
    assert sorted(windows[4]) == [1] * 4 + [4] * 4
