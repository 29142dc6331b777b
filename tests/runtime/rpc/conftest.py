"""Small real servers: models without a network (the fake backend), everything else as in production."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from iog.backends.base import Backend
from iog.backends.fake import FakeBackend
from iog.bundle import Bundle
from iog.predictor import ImageCache, Predictor
from iog.rpc.server import Server, ServerConfig

MakePredictors = Callable[..., list[Predictor]]


@pytest.fixture
def make_predictors(split_bundle: Path, single_bundle: Path) -> MakePredictors:
    """Makes predictors that share images: "small-split", the default, and "small-single"."""

    def make(backend: Backend | None = None, images_budget: int = 64 << 20) -> list[Predictor]:
        backend, images = backend or FakeBackend(), ImageCache(images_budget)
        return [Predictor(Bundle.open(path), backend, images=images) for path in (split_bundle, single_bundle)]

    return make


@pytest.fixture
def start_server(make_predictors: MakePredictors) -> Iterator[Callable[..., Server]]:
    """Starts servers on free ports; a backend, predictors and fields of ServerConfig may be given."""
    running: list[Server] = []

    def start(backend: Backend | None = None, predictors: list[Predictor] | None = None, **config: object) -> Server:
        config = {"port": 0, "grace_s": 5.0, **config}
        server = Server(predictors or make_predictors(backend), ServerConfig(**config))  # type: ignore[arg-type]
        server.start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.stop(0)


@pytest.fixture(scope="session")
def make_file() -> Callable[..., bytes]:
    """Encodes an image of random patches, another one for each seed."""

    def make(height: int = 120, width: int = 160, format: str = "PNG", seed: int = 0) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).resize((width, height)).save(file, format)
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def file(make_file: Callable[..., bytes]) -> bytes:
    """An encoded image, 160x120."""
    return make_file()
