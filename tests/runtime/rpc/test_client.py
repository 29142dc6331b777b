import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from iog import errors
from iog.backends.fake import FakeBackend
from iog.client import Client
from iog.image import Image, ImageLimits, digest_of
from iog.mask import MaskEncoding
from iog.predictor import Predictor
from iog.prompt import MAX_CLICKS, Box, Point, Prompt
from iog.rpc.catalog import Limits
from iog.rpc.server import Server
from iog.segmentation import Segmentation

PROMPT = Prompt(Box(30, 20, 110, 90), Point(70, 50))

StartServer = Callable[..., Server]
Connect = Callable[..., Client]
MakeFile = Callable[..., bytes]
MakePredictors = Callable[..., list[Predictor]]


@pytest.fixture
def connect() -> Iterator[Connect]:
    clients: list[Client] = []

    def open_client(server: Server, **options: object) -> Client:
        clients.append(Client(server.address, **options))  # type: ignore[arg-type]
        return clients[-1]

    yield open_client
    for client in clients:
        client.close()


@pytest.fixture
def server(start_server: StartServer) -> Server:
    return start_server()


@pytest.fixture
def client(server: Server, connect: Connect) -> Client:
    return connect(server)


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Digests of what clients upload, in order."""
    seen: list[str] = []
    upload = Client._upload

    def counted(self: Client, source, deadline) -> str:  # type: ignore[no-untyped-def]
        seen.append(upload(self, source, deadline))
        return seen[-1]

    monkeypatch.setattr(Client, "_upload", counted)
    return seen


def same(a: Segmentation, b: Segmentation) -> bool:
    for name in ("bounds", "image_size", "crop", "threshold", "model", "bundle_digest", "image_digest", "area"):
        assert getattr(a, name) == getattr(b, name), name
    return bool((a.mask == b.mask).all())


@pytest.mark.parametrize("encoding", MaskEncoding)
@pytest.mark.parametrize("model", [None, "small-single"])
def test_a_client_answers_as_the_predictor_does(
    client: Client, make_predictors: MakePredictors, file: bytes, encoding: MaskEncoding, model: str | None
) -> None:
    split, single = make_predictors()
    predictor = single if model else split
    for prompt in (PROMPT, PROMPT.with_click(35, 30, True), PROMPT.with_click(70, 50, False)):
        remote = client.segment(file, prompt, model=model, scores=True, encoding=encoding)
        local = predictor.segment(file, prompt, scores=True)
        assert same(remote, local)
        np.testing.assert_array_equal(remote.logits, local.logits)
        np.testing.assert_array_equal(remote.scores, local.scores)
        assert remote.timings.keys() == local.timings.keys()


def test_every_kind_of_image_is_taken(
    client: Client, make_predictors: MakePredictors, file: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(file)
    decoded = Image.decode(file)
    predictor = make_predictors()[0]
    for source in (file, bytearray(file), path, str(path), decoded, decoded.pixels, decoded.pixels[..., 0]):
        assert same(client.segment(source, PROMPT), predictor.segment(source, PROMPT))


def test_a_file_that_was_first_sent_decoded_is_later_asked_for_by_its_own_name(
    start_server: StartServer,
    connect: Connect,
    uploads: list[str],
    make_predictors: MakePredictors,
    make_file: MakeFile,
) -> None:
    client = connect(start_server(predictors=make_predictors(images_budget=100_000)))  # room for one of 120x160
    file, other = make_file(seed=0), make_file(seed=1)
    client.segment(Image.decode(file), PROMPT)  # as PNG, under another digest
    client.segment(other, PROMPT)
    again = Prompt(Box(30, 20, 90, 90), Point(70, 50))
    for prompt in (again, again.with_click(35, 30, True)):
        client.segment(file, prompt)
    assert uploads[1:] == [digest_of(other), digest_of(file)]


def test_an_image_is_uploaded_once(client: Client, uploads: list[str], file: bytes) -> None:
    for prompt in (PROMPT, PROMPT.with_click(35, 30, True), PROMPT):
        result = client.segment(file, prompt)
    assert uploads == [digest_of(file)]
    assert result.cache.features == "hit"


def test_images_are_told_apart_when_their_memory_is_used_again(
    server: Server, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iog.client._DIGESTED_BYTES", 1)  # all but the last are forgotten
    with Client(server.address) as client:
        for number in range(6):
            data = make_file(80, 120, "BMP") + bytes([number])  # of one length
            for _ in range(2):
                assert client.segment(data, PROMPT).image_digest == digest_of(data)


def test_an_array_is_encoded_and_uploaded_once(client: Client, uploads: list[str], file: bytes) -> None:
    pixels = Image.decode(file).pixels
    results = [client.segment(pixels.copy(), PROMPT) for _ in range(3)]
    assert len(uploads) == 1
    assert [result.cache.features for result in results] == ["miss", "hit", "hit"]
    np.testing.assert_array_equal(results[0].mask, client.segment(file, PROMPT).mask)


def test_what_another_client_uploaded_is_not_uploaded_again(
    server: Server, connect: Connect, uploads: list[str], file: bytes
) -> None:
    assert connect(server).upload(file) == digest_of(file)
    connect(server).segment(file, PROMPT)
    assert len(uploads) == 1


def test_an_image_larger_than_a_message_is_uploaded(client: Client, make_file: MakeFile) -> None:
    large = make_file(1600, 2400, "BMP")
    assert len(large) > 2 * 4 * 2**20
    assert client.segment(large, PROMPT).image_size.width == 2400


def test_an_evicted_image_is_uploaded_again(
    start_server: StartServer,
    connect: Connect,
    uploads: list[str],
    make_predictors: MakePredictors,
    make_file: MakeFile,
) -> None:
    client = connect(start_server(predictors=make_predictors(images_budget=100_000)))  # room for one of 120x160
    files = [make_file(seed=seed) for seed in (0, 1, 0)]
    masks = [client.segment(file, PROMPT).mask for file in files]
    assert uploads == [digest_of(file) for file in files[:2]]  # the first object's features are still held
    np.testing.assert_array_equal(masks[0], masks[2])
    client.segment(files[0], Prompt(Box(30, 20, 90, 90), Point(70, 50)))
    assert uploads == [digest_of(file) for file in files]


def test_a_restart_between_two_clicks_is_not_noticed(
    start_server: StartServer, connect: Connect, uploads: list[str], file: bytes
) -> None:
    first = start_server()
    client = connect(first)
    before = client.segment(file, PROMPT)
    first.stop(0)
    restart = threading.Timer(0.5, start_server, kwargs={"port": first.port})  # the client meets a closed port first
    restart.start()
    after = client.segment(file, PROMPT)
    restart.join()
    assert same(before, after)
    assert len(uploads) == 2


def test_a_killed_server_process_is_outlived(start_server: StartServer, split_bundle: Path, file: bytes) -> None:
    script = """
import sys
from iog.predictor import Predictor
from iog.rpc.server import Server, ServerConfig
server = Server([Predictor.open(sys.argv[1], backend="fake")], ServerConfig(port=0))
server.start()
print(server.port, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, split_bundle], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        with Client(f"127.0.0.1:{port}") as client:
            before = client.segment(file, PROMPT)
            process.kill()
            process.wait()
            start_server(port=port)
            assert same(before, client.segment(file, PROMPT))


def test_a_call_that_was_cut_off_is_repeated(start_server: StartServer, connect: Connect, file: bytes) -> None:
    entered, opened = threading.Event(), threading.Event()

    class Held(FakeBackend):
        def count(self, name: str) -> None:
            entered.set()
            assert opened.wait(30)

    first = start_server(Held())
    client = connect(first)
    with ThreadPoolExecutor() as threads:
        pending = threads.submit(client.segment, file, PROMPT)
        assert entered.wait(30)
        stopping = threads.submit(first.stop, 0)
        opened.set()
        stopping.result(30)
        start_server(port=first.port)
        assert pending.result(30).area > 0


def test_an_unreachable_server_is_unavailable_after_the_timeout(
    start_server: StartServer, connect: Connect, file: bytes
) -> None:
    server = start_server()
    server.stop(0)
    with pytest.raises(errors.Unavailable) as caught:
        connect(server).segment(file, PROMPT, timeout=0.4)
    assert server.address in str(caught.value.__notes__)


def test_a_full_server_is_asked_again_until_the_timeout(
    start_server: StartServer, connect: Connect, make_predictors: MakePredictors, file: bytes
) -> None:
    entered, opened = threading.Event(), threading.Event()

    class Held(FakeBackend):
        def count(self, name: str) -> None:
            entered.set()
            assert opened.wait(30)

    client = connect(start_server(Held(), max_segments=1, retry_after_s=0.05))
    with ThreadPoolExecutor() as threads:
        working = threads.submit(client.segment, file, PROMPT)
        assert entered.wait(30)
        with pytest.raises(errors.Overloaded) as caught:
            client.segment(file, PROMPT, timeout=0.3)
        assert caught.value.retry_after_s == 0.05
        waiting = threads.submit(client.segment, file, PROMPT)
        opened.set()
        assert waiting.result(30).area == working.result(30).area


def test_a_target_without_a_port_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="'localhost' is no server's address; expected host:port"):
        Client("localhost")


def test_errors_are_those_of_the_predictor(client: Client, make_predictors: MakePredictors, file: bytes) -> None:
    bad = [
        (file, Prompt(Box(900, 900, 990, 990), Point(950, 950))),
        (file, PROMPT.with_click(40, 40, True).with_click(159, 119, True)),
        (b"no image", PROMPT),
        (file[:400], PROMPT),
        ("/no/such/file.jpg", PROMPT),
    ]
    for image, prompt in bad:
        with pytest.raises(errors.IogError) as remote:
            client.segment(image, prompt)
        with pytest.raises(errors.IogError) as local:
            make_predictors()[0].segment(image, prompt)
        assert type(remote.value) is type(local.value)
        assert str(remote.value) == str(local.value)
        assert vars(remote.value) == vars(local.value)


def test_other_errors_are_typed_too(start_server: StartServer, connect: Connect, file: bytes) -> None:
    client = connect(start_server(limits=ImageLimits(max_bytes=100)))
    with pytest.raises(errors.ImageTooLarge, match="at most 100"):
        client.upload(file)
    with pytest.raises(errors.UnknownModel) as caught:
        client.segment(file, PROMPT, model="nosuch")
    assert (caught.value.name, caught.value.known) == ("nosuch", ("small-split", "small-single"))
    with pytest.raises(errors.DeadlineExceeded):
        client.segment(file, PROMPT, timeout=0)


def test_a_closed_client_says_so(server: Server, file: bytes) -> None:
    with Client(server.address) as client:
        client.upload(file)
    with pytest.raises(errors.Unavailable, match="was closed"):
        client.segment(file, PROMPT)


def test_names_of_any_alphabet_and_length_come_back(client: Client, file: bytes) -> None:
    with pytest.raises(errors.UnknownModel) as caught:
        client.segment(file, PROMPT, model="模" * 1000)
    assert caught.value.name.startswith("模模")


def test_models_and_limits(client: Client) -> None:
    models = client.models()
    assert [(m.name, m.kind, m.default, m.prompts) for m in models] == [
        ("small-split", "split", True, ("inside-outside",)),
        ("small-single", "single", False, ("inside-outside",)),
    ]
    assert client.limits() == Limits(ImageLimits().max_bytes, ImageLimits().max_pixels, MAX_CLICKS)


def test_a_client_is_shared_by_threads(client: Client, make_file: MakeFile) -> None:
    files = [make_file(seed=seed) for seed in range(4)]
    expected = [client.segment(file, PROMPT).area for file in files]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda i: client.segment(files[i % 4], PROMPT).area, range(40)))
    assert found == expected * 10


def test_importing_the_client_loads_no_engine() -> None:
    script = "import sys, iog.client; print([m for m in ('torch', 'onnxruntime', 'iog.predictor') if m in sys.modules])"
    command = [sys.executable, "-W", "error", "-c", script]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"
