import gc
import hashlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2 as details
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from iog.arrays import Array
from iog.backends.base import Graph
from iog.backends.fake import FakeBackend
from iog.bundle import GraphInfo
from iog.client import _OPTIONS as CLIENT_OPTIONS
from iog.errors import BackendError, InvalidPrompt
from iog.image import Image, ImageLimits
from iog.predictor import Predictor
from iog.rpc.calls import Anteroom, Arrival, Gate, Receiving, Watchdog
from iog.rpc.server import SERVICE, Server, ServerConfig
from iog.rpc.server import _options as server_options
from iog.rpc.servicer import SegmentationServicer
from iog.v1 import segmentation_pb2 as pb
from iog.v1.segmentation_pb2_grpc import SegmentationServiceStub

EXAMPLES = Path(__file__).parents[3] / "examples"
TIMEOUT = 30  # seconds after which a test is broken; nothing here takes one


class GatedBackend(FakeBackend):
    """Its graphs run once `opened` is set; `entered` is set when one waits."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.opened = threading.Event(), threading.Event()

    def open(self, name: str, model: bytes, info: GraphInfo) -> Graph:
        return GatedGraph(super().open(name, model, info), self)


class GatedGraph:
    def __init__(self, graph: Graph, backend: GatedBackend) -> None:
        self._graph, self._backend = graph, backend

    @property
    def info(self) -> GraphInfo:
        return self._graph.info

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        self._backend.entered.set()
        assert self._backend.opened.wait(TIMEOUT)
        return self._graph.run(inputs)

    def close(self) -> None:
        self._graph.close()


class FailingBackend(FakeBackend):
    """Raises at every run."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def count(self, name: str) -> None:
        raise self._error


Connect = Callable[[Server], grpc.Channel]
StartServer = Callable[..., Server]
MakeFile = Callable[..., bytes]
MakePredictors = Callable[..., list[Predictor]]


@pytest.fixture
def connect() -> Iterator[Connect]:
    channels: list[grpc.Channel] = []

    def open_channel(server: Server) -> grpc.Channel:
        channels.append(grpc.insecure_channel(server.address, [("grpc.max_send_message_length", -1)]))
        return channels[-1]

    yield open_channel
    for channel in channels:
        channel.close()


@pytest.fixture
def server(start_server: StartServer) -> Server:
    return start_server()


@pytest.fixture
def stub(server: Server, connect: Connect) -> SegmentationServiceStub:
    return SegmentationServiceStub(connect(server))


def upload(
    stub: SegmentationServiceStub, data: bytes, *, digest: str = "", total: int = 0, chunk: int = 1000
) -> pb.UploadImageResponse:
    parts = [pb.UploadImageRequest(header=pb.UploadHeader(digest=digest, total_bytes=total))]
    parts += [pb.UploadImageRequest(chunk=data[i : i + chunk]) for i in range(0, len(data), chunk)]
    return stub.UploadImage(iter(parts), timeout=TIMEOUT)


def upload_once_there_is_room(stub: SegmentationServiceStub, data: bytes) -> None:
    """The only place for uploads is free once the server's thread has noticed that its client is gone."""
    while True:
        try:
            assert upload(stub, data).digest == sha256(data)
            return
        except grpc.RpcError as e:
            assert e.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # noqa: PT017


def call_forever(stub: SegmentationServiceStub) -> None:
    while True:
        stub.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def click(x: float, y: float, positive: bool = True) -> pb.Click:
    kind = pb.CLICK_KIND_FOREGROUND if positive else pb.CLICK_KIND_BACKGROUND
    return pb.Click(point=pb.Point(x=x, y=y), kind=kind)


def request(**fields: object) -> pb.SegmentRequest:
    box = pb.Box(a=pb.Point(x=30, y=20), b=pb.Point(x=110, y=90))
    prompt = pb.InsideOutside(box=box, inside=pb.Point(x=70, y=50))
    return pb.SegmentRequest(**{"inside_outside": prompt, **fields})


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, dict[type, object]]:
    """Code, reason and details of an error that a call must meet."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    status = rpc_status.from_call(caught.value)
    assert status is not None, caught.value
    found: dict[type, object] = {}
    for packed in status.details:
        for kind in (details.ErrorInfo, details.BadRequest, details.ResourceInfo, details.RetryInfo):
            message = kind()
            if packed.Unpack(message):
                found[kind] = message
    return caught.value.code(), found[details.ErrorInfo].reason, found


def health_of(channel: grpc.Channel, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT).status


# --- the normal course


def test_upload_then_segment_by_digest(stub: SegmentationServiceStub, file: bytes) -> None:
    uploaded = upload(stub, file, digest=sha256(file), total=len(file))
    assert (uploaded.digest, uploaded.size.height, uploaded.size.width) == (sha256(file), 120, 160)
    assert not uploaded.already_held

    first = stub.Segment(request(digest=uploaded.digest), timeout=TIMEOUT)
    assert first.model == "small-split"
    assert first.image_digest == uploaded.digest
    assert first.png.startswith(b"\x89PNG")
    assert 0 < first.area <= (first.bounds.x1 - first.bounds.x0) * (first.bounds.y1 - first.bounds.y0)
    assert (first.cache.image_hit, first.cache.features) == (True, pb.FEATURE_STATUS_MISS)
    assert {timing.name for timing in first.timings} >= {"encoder", "head", "mask"}
    assert not first.HasField("score_map")

    second = stub.Segment(request(digest=uploaded.digest, clicks=[click(35, 30)]), timeout=TIMEOUT)
    assert (second.cache.features, second.cache.click_windows) == (pb.FEATURE_STATUS_HIT, 1)
    assert second.area > first.area


def test_images_may_come_with_each_request_and_are_decoded_once(stub: SegmentationServiceStub, file: bytes) -> None:
    hits = [stub.Segment(request(encoded_image=file), timeout=TIMEOUT).cache.image_hit for _ in range(2)]
    assert hits == [False, True]
    assert upload(stub, file).already_held


def test_an_image_that_is_held_is_not_read_again(stub: SegmentationServiceStub, file: bytes) -> None:
    upload(stub, file)
    again = stub.UploadImage(
        iter([pb.UploadImageRequest(header=pb.UploadHeader(digest=sha256(file)))]), timeout=TIMEOUT
    )
    assert again.already_held
    assert (again.size.height, again.size.width) == (120, 160)


def test_models_share_images_and_are_asked_for_by_name(stub: SegmentationServiceStub, file: bytes) -> None:
    listed = stub.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT)
    assert [(m.name, m.kind, m.is_default) for m in listed.models] == [
        ("small-split", pb.MODEL_KIND_SPLIT, True),
        ("small-single", pb.MODEL_KIND_SINGLE, False),
    ]
    assert list(listed.models[0].prompts) == [pb.PROMPT_KIND_INSIDE_OUTSIDE]
    assert listed.limits.max_image_bytes == ImageLimits().max_bytes
    digest = upload(stub, file).digest
    for model in listed.models:
        response = stub.Segment(request(digest=digest, model=model.name), timeout=TIMEOUT)
        assert (response.model, response.bundle_digest) == (model.name, model.bundle_digest)


def test_the_score_map_comes_on_request(stub: SegmentationServiceStub, file: bytes) -> None:
    response = stub.Segment(request(encoded_image=file, want_score_map=True), timeout=TIMEOUT)
    grid = response.score_map.grid_size
    logits = np.frombuffer(response.score_map.logits, "<f4")
    assert logits.shape == (grid * grid,)
    assert np.isfinite(logits).all()


def test_concurrent_first_clicks_encode_once(start_server: StartServer, connect: Connect, file: bytes) -> None:
    backend = GatedBackend()
    stub = SegmentationServiceStub(connect(start_server(backend)))
    calls = [stub.Segment.future(request(encoded_image=file), timeout=TIMEOUT) for _ in range(8)]
    assert backend.entered.wait(TIMEOUT)
    backend.opened.set()
    statuses = [call.result().cache.features for call in calls]
    assert statuses.count(pb.FEATURE_STATUS_MISS) == 1
    assert backend.runs["encoder"] == 1


# --- refusals


def test_an_image_that_is_not_held_is_named(stub: SegmentationServiceStub) -> None:
    code, reason, found = refused(lambda: stub.Segment(request(digest="f" * 64), timeout=TIMEOUT))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_HELD")
    assert found[details.ResourceInfo].resource_name == "f" * 64


@pytest.mark.parametrize("digest", ["", "abc", "F" * 64, "f" * 63, "é" * 64])
def test_a_digest_that_names_no_image_is_not_asked_to_be_uploaded(stub: SegmentationServiceStub, digest: str) -> None:
    code, reason, found = refused(lambda: stub.Segment(request(digest=digest), timeout=TIMEOUT))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_INVALID")
    (violation,) = found[details.BadRequest].field_violations  # type: ignore[attr-defined]
    assert violation.field == "digest"
    assert "64 hex digits, in lower case" in violation.description


def test_an_unknown_model_is_answered_with_those_there_are(stub: SegmentationServiceStub, file: bytes) -> None:
    call = request(encoded_image=file, model="nosuch")
    code, reason, found = refused(lambda: stub.Segment(call, timeout=TIMEOUT))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN")
    assert found[details.ErrorInfo].metadata["known"] == "small-split,small-single"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"clicks": [click(float("nan"), 5)]}, "clicks[0]"),
        ({"clicks": [click(40, 40), click(1e300, 5)]}, "clicks[1]"),
        ({"clicks": [click(40, 40), click(500, 40)]}, "clicks[1]"),
        ({"clicks": [click(40, 40)] * 1000}, "clicks"),
        ({"clicks": [pb.Click(point=pb.Point(x=5, y=5))]}, "clicks[0].kind"),
        ({"inside_outside": pb.InsideOutside()}, "inside_outside.box"),
        ({"inside_outside": None}, "prompt"),
        ({"mask_encoding": 42}, "mask_encoding"),
    ],
)
def test_a_bad_value_is_named_by_its_path(
    stub: SegmentationServiceStub, file: bytes, fields: dict[str, object], field: str
) -> None:
    code, reason, found = refused(lambda: stub.Segment(request(encoded_image=file, **fields), timeout=TIMEOUT))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_INVALID")
    assert [violation.field for violation in found[details.BadRequest].field_violations] == [field]


def test_a_box_outside_the_image_is_refused(stub: SegmentationServiceStub, file: bytes) -> None:
    box = pb.Box(a=pb.Point(x=900, y=900), b=pb.Point(x=990, y=990))
    prompt = pb.InsideOutside(box=box, inside=pb.Point(x=950, y=950))
    call = request(encoded_image=file, inside_outside=prompt)
    _, reason, found = refused(lambda: stub.Segment(call, timeout=TIMEOUT))
    assert reason == "PROMPT_INVALID"
    assert "160x120" in found[details.BadRequest].field_violations[0].description


def test_prompts_of_other_models_are_unsupported(stub: SegmentationServiceStub, file: bytes) -> None:
    call = pb.SegmentRequest(encoded_image=file, box_only=pb.BoxOnly())
    code, reason, found = refused(lambda: stub.Segment(call, timeout=TIMEOUT))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_UNSUPPORTED")
    assert "inside_outside" in found[details.BadRequest].field_violations[0].description


def test_a_request_without_image_is_refused(stub: SegmentationServiceStub) -> None:
    assert refused(lambda: stub.Segment(request(), timeout=TIMEOUT))[1] == "IMAGE_INVALID"


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "header"])
def test_bytes_that_are_no_image_are_refused(stub: SegmentationServiceStub, data: bytes) -> None:
    assert refused(lambda: upload(stub, data))[1] == "IMAGE_INVALID"
    assert refused(lambda: stub.Segment(request(encoded_image=data), timeout=TIMEOUT))[1] == "IMAGE_INVALID"


def test_failed_uploads_change_nothing(stub: SegmentationServiceStub, file: bytes, make_file: MakeFile) -> None:
    other = make_file(seed=1)
    half = file[: len(file) // 2]
    assert refused(lambda: upload(stub, file, digest=sha256(other)))[1] == "DIGEST_MISMATCH"
    assert refused(lambda: upload(stub, half, total=len(file)))[1] == "IMAGE_INVALID"
    assert refused(lambda: upload(stub, half))[1] == "IMAGE_INVALID"
    assert refused(lambda: stub.UploadImage(iter([]), timeout=TIMEOUT))[1] == "IMAGE_INVALID"
    chunk_first = iter([pb.UploadImageRequest(chunk=file)])
    assert refused(lambda: stub.UploadImage(chunk_first, timeout=TIMEOUT))[1] == "IMAGE_INVALID"
    for digest in map(sha256, (file, other, half)):
        assert (
            refused(lambda digest=digest: stub.Segment(request(digest=digest), timeout=TIMEOUT))[1] == "IMAGE_NOT_HELD"
        )


def test_images_over_the_limits_are_refused_before_they_are_read(
    start_server: StartServer, connect: Connect, make_file: MakeFile
) -> None:
    limits = ImageLimits(max_bytes=100_000, max_pixels=10_000)
    stub = SegmentationServiceStub(connect(start_server(limits=limits)))
    sent = 0

    def endless() -> Iterator[pb.UploadImageRequest]:
        nonlocal sent
        yield pb.UploadImageRequest(header=pb.UploadHeader())
        while sent < 2**30:
            sent += 65536
            yield pb.UploadImageRequest(chunk=bytes(65536))

    assert refused(lambda: stub.UploadImage(endless(), timeout=TIMEOUT))[1] == "IMAGE_TOO_LARGE"
    assert sent < 2**28
    assert refused(lambda: upload(stub, b"", total=2**40))[1] == "IMAGE_TOO_LARGE"
    assert refused(lambda: upload(stub, make_file(120, 160)))[1] == "IMAGE_TOO_LARGE"  # 19,200 pixels
    with pytest.raises(grpc.RpcError) as caught:  # refused by gRPC itself, from the frame's length
        stub.Segment(request(encoded_image=bytes(2**21)), timeout=TIMEOUT)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_too_many_at_a_time_are_told_when_to_come_back(
    start_server: StartServer, connect: Connect, file: bytes, make_file: MakeFile
) -> None:
    backend = GatedBackend()
    stub = SegmentationServiceStub(connect(start_server(backend, max_segments=1, retry_after_s=2.5)))
    working = stub.Segment.future(request(encoded_image=file), timeout=TIMEOUT)
    assert backend.entered.wait(TIMEOUT)
    code, reason, found = refused(lambda: stub.Segment(request(encoded_image=file), timeout=TIMEOUT))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert found[details.RetryInfo].retry_delay.ToTimedelta().total_seconds() == 2.5
    assert upload(stub, make_file(seed=2)).digest  # uploads are counted apart
    backend.opened.set()
    assert working.result().area > 0
    assert stub.Segment(request(encoded_image=file), timeout=TIMEOUT).area > 0  # there is room again


def test_a_request_that_waits_past_its_deadline_is_not_computed(
    start_server: StartServer, connect: Connect, file: bytes, make_file: MakeFile
) -> None:
    backend = GatedBackend()
    server = start_server(backend)
    stub = SegmentationServiceStub(connect(server))
    working = stub.Segment.future(request(encoded_image=file), timeout=TIMEOUT)
    assert backend.entered.wait(TIMEOUT)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Segment(request(encoded_image=make_file(seed=3)), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    time.sleep(1.0)  # the server counts from when it got the request, which is later
    backend.opened.set()
    working.result()
    server.stop()  # after which all threads have ended
    assert backend.runs["encoder"] == 1


def test_a_call_that_was_cancelled_while_it_waited_is_not_computed(
    start_server: StartServer, make_predictors: MakePredictors, connect: Connect, file: bytes, make_file: MakeFile
) -> None:
    backend = GatedBackend()
    predictors = make_predictors(backend)
    server = start_server(predictors=predictors)
    stub = SegmentationServiceStub(connect(server))
    working = stub.Segment.future(request(encoded_image=file), timeout=TIMEOUT)
    assert backend.entered.wait(TIMEOUT)
    waiting = stub.Segment.future(request(encoded_image=make_file(seed=3)))
    end = time.monotonic() + TIMEOUT
    while len(predictors[0].images) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    waiting.cancel()
    time.sleep(1.0)  # until the server has heard of it
    backend.opened.set()
    working.result()
    server.stop()  # after which all threads have ended
    assert backend.runs["encoder"] == 1


def test_calls_that_were_cancelled_while_they_waited_make_room_for_others(
    start_server: StartServer, connect: Connect, file: bytes, make_file: MakeFile
) -> None:
    backend = GatedBackend()
    stub = SegmentationServiceStub(connect(start_server(backend, max_segments=3)))
    working = stub.Segment.future(request(encoded_image=file), timeout=TIMEOUT)
    assert backend.entered.wait(TIMEOUT)
    # for the device, and for the object that is being encoded
    waiting = [stub.Segment.future(request(encoded_image=data)) for data in (make_file(seed=3), file)]
    time.sleep(1.0)  # until both have come
    assert refused(lambda: stub.Segment(request(encoded_image=file), timeout=TIMEOUT))[1] == "OVERLOADED"
    for call in waiting:
        call.cancel()
    time.sleep(1.0)  # until the server has heard of it
    others = [stub.Segment.future(request(encoded_image=file), timeout=TIMEOUT) for _ in range(2)]
    time.sleep(0.5)
    backend.opened.set()
    assert [call.result().area > 0 for call in (working, *others)] == [True] * 3


class LateContext:
    """Of a call that got its thread after its deadline."""

    status: grpc.Status | None = None

    def time_remaining(self) -> float:
        return 0.0

    def is_active(self) -> bool:
        return True

    def abort_with_status(self, status: grpc.Status) -> None:
        self.status = status
        raise RuntimeError("aborted")


def test_a_deadline_that_has_passed_already_computes_nothing(make_predictors: MakePredictors, file: bytes) -> None:
    backend = FakeBackend()
    predictors = {predictor.bundle.manifest.name: predictor for predictor in make_predictors(backend)}
    images = predictors["small-split"].images
    servicer = SegmentationServicer(
        predictors,
        images,
        ImageLimits(),
        uploads=Gate("uploads", 1, 1.0),
        upload_timeout_s=TIMEOUT,
        watchdog=Watchdog(),
    )
    for call in (
        lambda context: servicer.Segment(request(encoded_image=file), context),
        lambda context: servicer.UploadImage(iter([pb.UploadImageRequest(header=pb.UploadHeader())]), context),
    ):
        context = LateContext()
        with pytest.raises(RuntimeError, match="aborted"):
            call(context)
        assert context.status is not None
        assert context.status.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not backend.runs
    assert len(images) == 0


def test_calls_without_deadline_are_served(stub: SegmentationServiceStub, file: bytes) -> None:
    assert stub.Segment(request(encoded_image=file)).area > 0


# --- defects


def test_a_defect_is_told_by_incident_and_its_traceback_stays_in_the_log(
    start_server: StartServer, connect: Connect, file: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    stub = SegmentationServiceStub(connect(start_server(FailingBackend(ZeroDivisionError("secret path")))))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Segment(request(encoded_image=file), timeout=TIMEOUT)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in caught.value.details()
    incident = re.search(r"incident (\w+)", caught.value.details())
    assert incident
    assert incident[1] in caplog.text
    assert "ZeroDivisionError: secret path" in caplog.text


def test_an_engine_failure_is_told_as_such_and_logged(
    start_server: StartServer, connect: Connect, file: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    stub = SegmentationServiceStub(connect(start_server(FailingBackend(BackendError("kernel died")))))
    code, reason, _ = refused(lambda: stub.Segment(request(encoded_image=file), timeout=TIMEOUT))
    assert (code, reason) == (grpc.StatusCode.INTERNAL, "BACKEND_FAILED")
    assert "kernel died" in caplog.text


def test_a_client_killed_in_mid_upload_leaves_the_server_alive(
    start_server: StartServer, connect: Connect, file: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server(max_uploads=1)
    script = """
import itertools, sys
import grpc
from iog.v1 import segmentation_pb2 as pb
from iog.v1.segmentation_pb2_grpc import SegmentationServiceStub

def parts():
    yield pb.UploadImageRequest(header=pb.UploadHeader())
    for i in itertools.count():
        yield pb.UploadImageRequest(chunk=bytes(1000))
        if i == 10:
            print("sending", flush=True)
            sys.stdin.read()

SegmentationServiceStub(grpc.insecure_channel(sys.argv[1])).UploadImage(parts())
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, server.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        assert client.stdout
        assert client.stdout.readline() == b"sending\n"
        client.kill()
    upload_once_there_is_room(SegmentationServiceStub(connect(server)), file)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("name", sorted({name for name, _ in (*server_options(ServerConfig()), *CLIENT_OPTIONS)}))
def test_grpc_knows_the_option(name: str) -> None:
    """It ignores those that it does not know: idle clients were once disconnected for pings that we meant to allow."""
    assert name.encode() in Path(cygrpc.__file__).read_bytes()


def test_an_upload_that_stalls_loses_its_place(start_server: StartServer, connect: Connect, file: bytes) -> None:
    stub = SegmentationServiceStub(connect(start_server(max_uploads=1, upload_timeout_s=0.3)))
    stalled = threading.Event()

    def parts() -> Iterator[pb.UploadImageRequest]:
        yield pb.UploadImageRequest(header=pb.UploadHeader())
        stalled.wait(TIMEOUT)

    with pytest.raises(grpc.RpcError) as caught:
        stub.UploadImage(parts(), timeout=TIMEOUT)
    stalled.set()
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    upload_once_there_is_room(stub, file)


@contextmanager
def never_arriving(channel: grpc.Channel, method: str, count: int) -> Iterator[list[grpc.Future]]:
    """Calls whose request is on its way until the block ends."""
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(TIMEOUT)
        yield from ()

    calls = [channel.stream_unary(method).future(nothing(), timeout=TIMEOUT) for _ in range(count)]
    try:
        yield calls
    finally:
        over.set()
        for call in calls:
            call.cancel()


@pytest.mark.parametrize(
    "method",
    [
        f"/{SERVICE}/Segment",
        f"/{SERVICE}/ListModels",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    ],
)
def test_requests_that_never_arrive_keep_nobody_from_clicking(
    start_server: StartServer,
    connect: Connect,
    file: bytes,
    method: str,
    wait_for: Callable[[Callable[[], bool]], None],
) -> None:
    """More of them than there are threads."""
    channel = connect(start_server(max_segments=4, max_uploads=1))
    stub = SegmentationServiceStub(channel)

    def answered() -> bool:
        try:
            assert stub.Segment(request(encoded_image=file), timeout=TIMEOUT).area > 0
            assert stub.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT).models
            health = health_of(channel, "")
        except grpc.RpcError as e:
            if e.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            return False
        return health == health_pb2.HealthCheckResponse.SERVING

    with never_arriving(channel, method, 200):
        wait_for(answered)  # those that never arrive give up their places after a second
        for _ in range(5):
            assert answered()


def test_requests_that_never_arrive_are_few_and_end(
    start_server: StartServer, connect: Connect, file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iog.rpc.server._ON_THEIR_WAY", 8)
    channel = connect(start_server(max_segments=4, upload_timeout_s=0.5))
    with never_arriving(channel, f"/{SERVICE}/Segment", 20) as calls:
        codes = [call.exception(TIMEOUT).code() for call in calls]
    assert codes.count(grpc.StatusCode.CANCELLED) == 8
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 12


def test_requests_that_never_arrive_keep_no_question_from_its_answer(
    start_server: StartServer,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    wait_for: Callable[[Callable[[], bool]], None],
) -> None:
    monkeypatch.setattr("iog.rpc.server._ON_THEIR_WAY", 8)
    channel = connect(start_server(max_segments=4))
    with never_arriving(channel, f"/{SERVICE}/Segment", 20) as calls:
        wait_for(lambda: sum(call.done() for call in calls) == 12)  # whichever; the others have their places
        assert {call.code() for call in calls if call.done()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert health_of(channel, "") == health_pb2.HealthCheckResponse.SERVING
        assert SegmentationServiceStub(channel).ListModels(pb.ListModelsRequest(), timeout=TIMEOUT).models


@pytest.mark.parametrize(
    ("max_bytes", "places"), [(64 << 20, 64), (8 << 20, 256), (1 << 30, 32), (100, 256)], ids=["64M", "8M", "1G", "100"]
)
def test_of_large_images_no_more_are_on_their_way_than_may_be_worked_on(
    make_predictors: MakePredictors, max_bytes: int, places: int
) -> None:
    config = ServerConfig(limits=ImageLimits(max_bytes=max_bytes), max_segments=32)
    server = Server(make_predictors(), config)
    assert server._segments_on_their_way == places
    server.stop(0)


def test_a_click_on_a_held_object_needs_no_image(
    start_server: StartServer, connect: Connect, make_predictors: MakePredictors, make_file: MakeFile
) -> None:
    stub = SegmentationServiceStub(connect(start_server(predictors=make_predictors(images_budget=100_000))))
    one, two = make_file(seed=0), make_file(seed=1)
    first = stub.Segment(request(encoded_image=one), timeout=TIMEOUT)
    stub.Segment(request(encoded_image=two), timeout=TIMEOUT)  # there is room for one
    again = stub.Segment(request(digest=first.image_digest), timeout=TIMEOUT)
    assert (again.cache.image_hit, again.cache.features) == (False, pb.FEATURE_STATUS_HIT)
    assert again.png == first.png
    other = request(digest=first.image_digest)
    other.inside_outside.box.b.x -= 20
    code, reason, _ = refused(lambda: stub.Segment(other, timeout=TIMEOUT))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_HELD")


@pytest.mark.parametrize("held", [True, False])
def test_the_example_sends_the_image_itself_where_uploads_are_not_held(
    start_server: StartServer,
    make_predictors: MakePredictors,
    file: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    held: bool,
) -> None:
    predictors = make_predictors()
    if not held:
        monkeypatch.setattr(predictors[0].images, "put", lambda digest, image: None)
    decoded: list[bytes] = []
    decode = Image.decode
    monkeypatch.setattr(Image, "decode", lambda data, *limits: decoded.append(data) or decode(data, *limits))
    server = start_server(predictors=predictors)
    (tmp_path / "image.png").write_bytes(file)
    arguments = [server.address, tmp_path / "image.png", "30", "20", "110", "90", "70", "50"]
    command = [sys.executable, EXAMPLES / "reflect.py", *arguments]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT).stdout)
    assert answer["imageDigest"] == hashlib.sha256(file).hexdigest()
    assert decoded == [file] * (1 if held else 2)  # uploaded, and sent with the request


def test_a_lack_of_memory_outside_of_an_engine_is_told_as_one(
    server: Server, connect: Connect, file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise MemoryError("Unable to allocate 61.0 MiB")

    monkeypatch.setattr("iog.rpc.convert.response_of", full)
    stub = SegmentationServiceStub(connect(server))
    code, reason, _ = refused(lambda: stub.Segment(request(encoded_image=file), timeout=TIMEOUT))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")


def test_a_call_without_a_request_is_refused(server: Server, connect: Connect) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        connect(server).stream_unary(f"/{SERVICE}/Segment")(iter(()), timeout=TIMEOUT)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "without a request" in caught.value.details()


def test_clicks_by_the_hundred_thousand_are_refused(server: Server, connect: Connect, file: bytes) -> None:
    stub = SegmentationServiceStub(connect(server))
    asked = request(encoded_image=file)
    asked.clicks.extend([pb.Click()] * 100_000)
    code, reason, _ = refused(lambda: stub.Segment(asked, timeout=TIMEOUT))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_INVALID")


# --- the server's life


def test_health_is_told_per_service(server: Server, connect: Connect) -> None:
    channel = connect(server)
    assert health_of(channel, "") == health_pb2.HealthCheckResponse.SERVING
    assert health_of(channel, SERVICE) == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health_of(channel, "nosuch")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_watchers_learn_of_the_shutdown(server: Server, connect: Connect) -> None:
    watch = health_pb2_grpc.HealthStub(connect(server)).Watch(
        health_pb2.HealthCheckRequest(service=SERVICE), timeout=TIMEOUT
    )
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    stopping = threading.Thread(target=server.stop, args=(1,))
    stopping.start()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    stopping.join(TIMEOUT)
    assert not stopping.is_alive()


def test_services_that_are_not_there_can_be_watched_and_leave_nothing(server: Server, connect: Connect) -> None:
    stub = health_pb2_grpc.HealthStub(connect(server))
    for name in ("nosuch", "another"):
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()
    assert len(server._health._send_response_callbacks) == 1


def test_watches_have_places_of_their_own(
    start_server: StartServer,
    connect: Connect,
    file: bytes,
    monkeypatch: pytest.MonkeyPatch,
    wait_for: Callable[[Callable[[], bool]], None],
) -> None:
    monkeypatch.setattr("iog.rpc.server._WATCHES", 2)
    channel = connect(start_server())
    stub = health_pb2_grpc.HealthStub(channel)

    def watched() -> Any:
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        return watch

    first, _ = watched(), watched()
    with pytest.raises(grpc.RpcError) as caught:
        watched()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert SegmentationServiceStub(channel).Segment(request(encoded_image=file), timeout=TIMEOUT).area > 0
    first.cancel()

    def room() -> bool:
        try:
            return watched() is not None
        except grpc.RpcError:
            return False

    wait_for(room)


def test_a_request_is_let_go_by_those_who_passed_it_on() -> None:
    class Request:
        """Some of which hold a large image."""

    def segment(asked: Request, context: object) -> bool:
        seen = weakref.ref(asked)
        del asked
        return seen() is None

    gate, anteroom = Gate("calls", 1, 1.0), Anteroom("calls", 1, 1.0)
    arrival = Arrival(anteroom, 1.0, gate)
    handler = grpc.unary_unary_rpc_method_handler(segment)
    wrapped = Receiving({}, arrival, arrival, Watchdog()).intercept_service(
        lambda _: handler, SimpleNamespace(method="/a/B")
    )
    assert wrapped.stream_unary((Request() for _ in range(1)), SimpleNamespace())


def test_refused_bytes_are_let_go() -> None:
    """Even if nobody collects garbage."""

    class Data(bytearray):
        """Of a request, up to 65 MiB; other than bytes, it can be watched."""

    def refuse(data: bytes) -> None:
        raise InvalidPrompt("clicks", f"{len(data)} bytes of them")

    def abort(status: object) -> None:
        raise RuntimeError

    arrival = Arrival(Anteroom("calls", 1, 1.0), 1.0, Gate("calls", 1, 1.0), refuse)
    handler = grpc.unary_unary_rpc_method_handler(lambda asked, context: asked)
    wrapped = Receiving({}, arrival, arrival, Watchdog()).intercept_service(
        lambda _: handler, SimpleNamespace(method="/a/B")
    )
    gc.collect()
    gc.disable()
    try:
        data = Data(100)
        seen = weakref.ref(data)
        requests = map(wrapped.request_deserializer, [data])
        del data
        with pytest.raises(RuntimeError):
            wrapped.stream_unary(requests, SimpleNamespace(abort_with_status=abort))
        del requests
        assert seen() is None
    finally:
        gc.enable()


def test_reflection_lists_the_services_and_can_be_switched_off(start_server: StartServer, connect: Connect) -> None:
    open_server, closed_server = start_server(), start_server(reflection=False)
    services = ProtoReflectionDescriptorDatabase(connect(open_server)).get_services()
    assert set(services) >= {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    with pytest.raises(grpc.RpcError) as caught:
        ProtoReflectionDescriptorDatabase(connect(closed_server)).get_services()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_idle_reflection_leaves_threads_for_others(start_server: StartServer, connect: Connect, file: bytes) -> None:
    channel, over = connect(start_server(max_segments=1, max_uploads=1)), threading.Event()

    def idle() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        over.wait(TIMEOUT)

    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    codes = []
    streams = [stub.ServerReflectionInfo(idle()) for _ in range(30)]
    for stream in streams:
        try:
            next(stream)
        except grpc.RpcError as e:
            codes.append(e.code())
    assert SegmentationServiceStub(channel).Segment(request(encoded_image=file), timeout=TIMEOUT).area > 0
    over.set()
    for stream in streams:
        stream.cancel()
    assert len(codes) == 26
    assert set(codes) == {grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_a_client_without_stubs_learns_all_from_the_server(server: Server, tmp_path: Path, make_file: MakeFile) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(make_file())
    example = Path(__file__).parents[3] / "examples" / "reflect.py"
    command = [sys.executable, "-W", "error", example, server.address, path, *["30", "20", "110", "90", "70", "50"]]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert '"polygons"' in answer
    assert '"model": "small-split"' in answer


def test_a_taken_port_is_one_clear_error(server: Server, make_predictors: MakePredictors) -> None:
    second = Server(make_predictors(), ServerConfig(port=server.port))
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{server.port}"):
        second.start()


def test_every_address_of_a_host_must_be_free(server: Server, make_predictors: MakePredictors) -> None:
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{server.port}: another server has this port"):
        Server(make_predictors(), ServerConfig(host="localhost", port=server.port)).start()
    with pytest.raises(OSError, match=r"cannot listen on no\.such\.host\.invalid"):
        Server(make_predictors(), ServerConfig(host="no.such.host.invalid", port=0)).start()


def test_a_stopped_server_frees_its_port(start_server: StartServer, connect: Connect) -> None:
    first = start_server()
    first.stop()
    assert health_of(connect(start_server(port=first.port)), "") == health_pb2.HealthCheckResponse.SERVING


def test_stopping_lets_requests_in_progress_finish_and_takes_no_more(
    start_server: StartServer, connect: Connect, file: bytes
) -> None:
    backend = GatedBackend()
    server = start_server(backend)
    stub = SegmentationServiceStub(connect(server))
    working = stub.Segment.future(request(encoded_image=file), timeout=TIMEOUT)
    assert backend.entered.wait(TIMEOUT)
    stopping = threading.Thread(target=server.stop, args=(TIMEOUT,))
    stopping.start()
    late = SegmentationServiceStub(connect(server))
    with pytest.raises(grpc.RpcError) as caught:
        call_forever(late)  # until the port is closed
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    backend.opened.set()
    assert working.result().area > 0
    stopping.join(TIMEOUT)
    assert not stopping.is_alive()


@contextmanager
def killed_in_the_end(process: subprocess.Popen[str]) -> Iterator[None]:
    """What fails meanwhile is told, instead of waiting for the process."""
    try:
        yield
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_drain_and_end_the_process(number: signal.Signals, split_bundle: Path) -> None:
    script = """
import logging, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs this may ignore it
from iog.predictor import Predictor
from iog.rpc.server import ServerConfig, serve
logging.basicConfig(level=logging.INFO, format="%(message)s")
serve([Predictor.open(sys.argv[1], backend="fake")], ServerConfig(port=0))
print("clean end")
"""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, split_bundle],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        ready = process.stderr.readline()
        assert re.fullmatch(r"serving small-split on 127\.0\.0\.1:[1-9]\d*\n", ready)
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "clean end\n")
    assert "stopped" in err


@pytest.mark.parametrize("starter", [(), ("sh", "-c", 'trap "" INT; exec "$@"', "sh")], ids=["default", "ignored"])
def test_a_second_ctrl_c_ends_a_server_that_drains(split_bundle: Path, starter: tuple[str, ...]) -> None:
    script = """
import logging, sys
import iog.rpc.servicer
from iog.predictor import Predictor
from iog.rpc.server import ServerConfig, serve
logging.basicConfig(level=logging.INFO, format="%(message)s")
read = iog.rpc.servicer.read_header

def read_header(*arguments):
    logging.info("an upload has begun")
    return read(*arguments)

iog.rpc.servicer.read_header = read_header
serve([Predictor.open(sys.argv[1], backend="fake")], ServerConfig(port=0, grace_s=600))
"""
    released = threading.Event()

    def parts() -> Iterator[pb.UploadImageRequest]:
        yield pb.UploadImageRequest(header=pb.UploadHeader())
        released.wait(TIMEOUT)

    with (
        subprocess.Popen(
            [*starter, sys.executable, "-c", script, split_bundle], stderr=subprocess.PIPE, text=True
        ) as process,
        killed_in_the_end(process),
    ):
        assert process.stderr
        address = process.stderr.readline().split()[-1]
        with grpc.insecure_channel(address) as channel:
            upload = SegmentationServiceStub(channel).UploadImage.future(parts())
            assert "an upload has begun" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            assert "draining" in process.stderr.readline()
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            _, log = process.communicate(timeout=TIMEOUT)
            released.set()
            assert isinstance(upload.exception(), grpc.RpcError)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in log


def test_tls_is_spoken_with_a_certificate(start_server: StartServer, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"],
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    server = start_server(tls_certificate=certificate, tls_key=key)
    credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
    with grpc.secure_channel(server.address, credentials) as channel:
        assert health_of(channel, SERVICE) == health_pb2.HealthCheckResponse.SERVING


def test_predictors_that_cannot_be_served_together_are_refused(make_predictors: MakePredictors) -> None:
    one, other = make_predictors(), make_predictors()
    with pytest.raises(ValueError, match="distinct"):
        Server([one[0], one[0]])
    with pytest.raises(ValueError, match="expected one or more"):
        Server([])
    with pytest.raises(ValueError, match="image caches"):
        Server([one[0], other[1]])


@pytest.mark.parametrize(
    "wrong",
    [
        {"tls_key": Path("k")},
        {"max_segments": 0},
        {"limits": ImageLimits(max_bytes=2**31)},  # gRPC counts with C's int
        {"max_connection_age_s": 30 * 86400.0},
        {"max_connection_age_s": 0.0},
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected|together"):
        ServerConfig(**wrong)  # type: ignore[arg-type]


def test_ready_is_logged_with_the_address(start_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "iog.rpc")
    server = start_server()
    assert f"serving small-split, small-single on {server.address}" in caplog.text
    with socket.create_connection(("127.0.0.1", server.port)):
        pass
