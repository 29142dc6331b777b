"""A device whose memory is full: clicks are answered with less remembered, or refused, and the server lives."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from iog import Box, Client, Point, Prompt
from iog.backends.ort import OrtBackend, OrtGraph
from iog.bundle import Bundle, GraphInfo
from iog.errors import OutOfMemory
from iog.predictor import Predictor
from iog.rpc.server import Server

PROMPT = Prompt(Box(20, 20, 130, 100), Point(70, 60))


class FullSession:
    """An ONNX Runtime session with the message that its CUDA provider has for a full device."""

    def __init__(self, session: object, backend: "FullBackend") -> None:
        self._session, self._backend = session, backend

    def run(self, *arguments: object) -> object:
        self._allocate()
        return self._session.run(*arguments)  # type: ignore[attr-defined]

    def io_binding(self) -> object:
        return self._session.io_binding()  # type: ignore[attr-defined]

    def run_with_iobinding(self, binding: object) -> None:
        self._allocate()
        self._session.run_with_iobinding(binding)  # type: ignore[attr-defined]

    def _allocate(self) -> None:
        if self._backend.failures:
            self._backend.failures -= 1
            raise RuntimeError(
                "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
                "bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(...) "
                "Failed to allocate memory for requested buffer of size 37748736"
            )


class FullBackend(OrtBackend):
    """Its next runs fail for want of memory, `failures` times."""

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.failures = 0

    def open(self, name: str, model: bytes, info: GraphInfo) -> OrtGraph:
        return OrtGraph(name, FullSession(self._session(name, model, [self._provider]), self), info)


@pytest.fixture
def backend() -> FullBackend:
    return FullBackend()


@pytest.fixture
def client(backend: FullBackend, split_bundle: Path, start_server: Callable[..., Server]) -> Iterator[Client]:
    server = start_server(predictors=[Predictor(Bundle.open(split_bundle), backend)])
    with Client(f"localhost:{server.port}") as client:
        yield client


def test_full_once_the_click_is_answered(backend: FullBackend, client: Client, file: bytes) -> None:
    first = client.segment(file, PROMPT)
    clicked = PROMPT.with_click(60, 60, positive=False)
    expected = client.segment(file, clicked)
    backend.failures = 1
    found = client.segment(file, clicked)
    assert found.bounds == expected.bounds
    assert (found.mask == expected.mask).all()
    assert client.segment(file, PROMPT).cache.features == "miss"  # it was all that could be forgotten
    assert (client.segment(file, PROMPT).mask == first.mask).all()


def test_full_for_good_the_click_is_refused_until_there_is_room(
    backend: FullBackend, client: Client, file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iog.client.FIRST_BACKOFF_S", 600.0)  # longer than any click is waited for: none is repeated
    backend.failures = 1 << 20
    for _ in range(3):
        with pytest.raises(OutOfMemory, match="Failed to allocate memory"):
            client.segment(file, PROMPT)
    backend.failures = 0
    assert client.segment(file, PROMPT).area > 0


def test_full_for_a_while_the_client_repeats_the_click(backend: FullBackend, client: Client, file: bytes) -> None:
    backend.failures = 6
    assert client.segment(file, PROMPT).area > 0
    assert backend.failures == 0
