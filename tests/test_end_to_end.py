"""The whole product with the packaged model: a mask is a function of its request, wherever that is answered."""

import itertools
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from iog import Box, Client, Point, Predictor, Prompt
from iog.image import Image
from iog.rpc.server import Server, ServerConfig
from iog.segmentation import Segmentation

PHOTOGRAPHS = Path(__file__).parents[1] / "export" / "iog_export" / "photographs"
CHELSEA = PHOTOGRAPHS / "chelsea.jpg"
FIRST = Prompt(Box(130, 15, 330, 290), Point(220, 120))
SECOND = FIRST.with_click(190, 240, True)
THIRD = SECOND.with_click(300, 20, False)
OTHER = FIRST.with_click(140, 200, False).with_click(250, 60, True)


def assert_same(a: Segmentation, b: Segmentation) -> None:
    assert a.logits is not None
    assert b.logits is not None
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-3)
    assert np.count_nonzero(a.mask != b.mask) * 10_000 <= a.mask.size
    assert a.bundle_digest == b.bundle_digest


@pytest.fixture
def predictor() -> Iterator[Predictor]:
    with Predictor.open() as opened:
        yield opened


@pytest.fixture
def server(predictor: Predictor) -> Iterator[Server]:
    with Server([predictor], ServerConfig(port=0)) as running:
        yield running


def test_the_answer_does_not_depend_on_what_was_asked_before_nor_on_where_it_was_computed(server: Server) -> None:
    answers: dict[Prompt, list[Segmentation]] = {p: [] for p in (FIRST, SECOND, THIRD, OTHER)}
    for prompt in answers:  # in process, each from scratch
        with Predictor.open() as cold:
            answers[prompt].append(cold.segment(CHELSEA, prompt, scores=True))
    with Client(server.address) as client:  # one warm server: corrections, undo, another annotator, everything again
        for order in itertools.islice(itertools.permutations(answers), 0, None, 5):
            for prompt in order:
                answers[prompt].append(client.segment(CHELSEA, prompt, scores=True))
    for first, *others in answers.values():
        for other in others:
            assert_same(first, other)


def test_corrections_run_no_encoder_and_only_their_own_window(predictor: Predictor) -> None:
    image = Image.read(CHELSEA)
    first = predictor.segment(image, FIRST)
    assert (first.cache.features, first.cache.windows) == ("miss", 5)
    for prompt in (SECOND, THIRD):
        result = predictor.segment(image, prompt)
        assert (result.cache.features, result.cache.windows) == ("hit", 1)
        assert "encoder" not in result.timings
    undone = predictor.segment(image, FIRST)
    assert (undone.cache.features, undone.cache.windows) == ("hit", 0)


def test_sixteen_first_clicks_at_once_encode_the_object_once(server: Server) -> None:
    start = threading.Barrier(16)
    statuses: Counter[str] = Counter()

    def click() -> None:
        with Client(server.address) as client:
            client.upload(CHELSEA)
            start.wait()
            statuses[client.segment(CHELSEA, FIRST).cache.features] += 1

    threads = [threading.Thread(target=click) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses["miss"] == 1
    assert statuses.total() == 16


def test_features_stay_within_their_budget(predictor: Predictor) -> None:
    one = predictor.segment(CHELSEA, FIRST)
    assert one.cache.features == "miss"
    entry = predictor.features.nbytes
    predictor.features.budget = int(2.5 * entry)
    for i in range(6):
        box = Box(100 + 10 * i, 20, 320, 280)
        predictor.segment(CHELSEA, Prompt(box, Point(220, 120)))
        assert predictor.features.nbytes <= predictor.features.budget
        assert predictor.features.nbytes == len(predictor.features) * entry
    assert predictor.segment(CHELSEA, FIRST).cache.features == "miss"


def start_server(port: int) -> tuple["subprocess.Popen[str]", int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "iog.cli", "serve", "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "127.0.0.1:" in line:
            return process, int(line.rsplit("127.0.0.1:", 1)[1].split()[0])
    raise AssertionError("the server ended before it was ready")


def test_a_server_killed_between_two_clicks_is_not_noticed() -> None:
    process, port = start_server(0)
    restarted = None
    try:
        with Client(f"127.0.0.1:{port}", timeout=60) as client:
            before = client.segment(CHELSEA, FIRST, scores=True)
            assert client.segment(CHELSEA, FIRST, scores=True).cache.features == "hit"
            process.send_signal(signal.SIGKILL)
            process.wait()
            restarted, _ = start_server(port)
            second = client.segment(CHELSEA, SECOND, scores=True)
            assert second.cache.features == "miss"  # it uploaded the image again, and nobody had to know
            assert_same(before, client.segment(CHELSEA, FIRST, scores=True))
    finally:
        for each in (process, restarted):
            if each is not None:
                each.kill()
                each.wait()
                assert each.stdout is not None
                each.stdout.close()
