"""Who comes to the server, and how often; without one."""

import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import server_load
from harness.load import Annotation, Reply


class Crowd:
    """Answers all clicks at once, and remembers who came."""

    def __init__(self) -> None:
        self.came: list[Sequence[Annotation]] = []

    def annotate(self, annotations: Sequence[Annotation]) -> list[Reply]:
        self.came.append(annotations)
        return [Reply(a.start, 0.01, n == 0, "hit", {}) for a in annotations for n in range(len(a.prompts))]


def loaded(crowd: Any, number: int, load: float) -> dict[str, Any]:
    server: Any = SimpleNamespace(resident=lambda: None)
    return server_load.loaded(crowd, server, server_load.Desk(["a"]), number, load, 20.0, 0.5, 4)


def test_as_many_annotators_come_as_the_load_says() -> None:
    for number, load in enumerate((3.0, 12.0, 14.5)):
        crowd = Crowd()
        results = loaded(crowd, number, load)
        starts = [a.start for a in crowd.came[0]]
        counted = [start for start in starts if start >= 2 * 0.5 * 4]
        assert len(counted) == load * 20 / 5
        assert max(starts) < 2 * 0.5 * 4 + 20
        assert starts == sorted(starts)
        assert results["offered_per_second"] == load
        assert results["clicked_per_second"] == load  # nobody had to wait, nor to think


def test_each_load_has_arrivals_of_its_own_the_same_ones_every_time() -> None:
    crowd = Crowd()
    for number in (0, 1, 0):
        loaded(crowd, number, 10.0)
    first, second, again = ([a.start for a in came] for came in crowd.came)
    assert first == again
    assert len(first) == len(second)
    assert abs(np.diff(first) - np.diff(second)).min() > 0


def test_the_capacity_is_what_annotators_get_together_who_never_pause() -> None:
    busy: list[int] = []
    working, lock = [0], threading.Lock()

    class Slow(Crowd):
        def annotate(self, annotations: Sequence[Annotation]) -> list[Reply]:
            assert not any(pause for a in annotations for pause in a.thinking)
            with lock:
                working[0] += 1
                busy.append(working[0])
            time.sleep(0.02)
            with lock:
                working[0] -= 1
            return super().annotate(annotations)

    crowd: Any = Slow()
    capacity = server_load.busy(crowd, server_load.Desk(["a"]), 4, 0.2)
    assert max(busy) == server_load.BUSY
    assert 5 / 0.02 < capacity <= server_load.BUSY * 5 / 0.02  # more than one annotator gets
    objects = [a.prompts[0].box for came in crowd.came for a in came]
    assert len(objects) == len(set(objects))
