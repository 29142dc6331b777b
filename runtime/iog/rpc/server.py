"""A gRPC server's life: bind, announce, serve, drain. No state outside of the object, so that tests start many."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from iog.image import DEFAULT_LIMITS, ImageLimits
from iog.predictor import Predictor
from iog.rpc.calls import Anteroom, Arrival, Gate, Receiving, Watchdog
from iog.rpc.convert import check_encoded
from iog.rpc.servicer import Health, Reflection, SegmentationServicer
from iog.v1 import segmentation_pb2 as pb
from iog.v1.segmentation_pb2_grpc import add_SegmentationServiceServicer_to_server

logger = logging.getLogger("iog.rpc")

SERVICE = pb.DESCRIPTOR.services_by_name["SegmentationService"].full_name

# Beyond those that work: threads that turn requests away, answer health checks and reflection.
_SPARE_THREADS = 16
_MESSAGE_OVERHEAD = 1 << 20  # prompt and framing around the largest image
_POLL_S = 0.1
_STREAMS = 256  # calls of one connection, or as many as are served: so many answers may wait for one who reads none
_MAX_INT = 2**31 - 1  # of gRPC's options
# Of the spare threads; the rest turn requests away.
_REFLECTIONS = 4
_REFLECTION_TIMEOUT_S = 60.0
_QUESTIONS = 8  # health, ListModels
_QUESTIONS_ON_THEIR_WAY = 64
_QUESTION_TIMEOUT_S = 10.0
_WATCHES = 64  # of health, which last; they take no threads
# Calls whose request has not arrived: slow lines that send an image with each click. What has come of them is held:
# so many bytes, or as much as those that work may, if that is more.
_ON_THEIR_WAY = 256
_ARRIVING_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How to serve.

    host: the address to listen on; anyone who reaches it may use the server. port: 0 for any free one.
    limits: of images; give the predictors the same.
    max_segments, max_uploads: in progress at a time; more are refused as Overloaded. Uploads count apart, so that
        clients on slow lines do not keep others from clicking.
    retry_after_s: what those refused are told.
    upload_timeout_s: an upload, or a request with its image, that takes longer to arrive is cancelled: one that stalls
        must not keep its place for ever.
    max_connection_age_s: connections are renewed after this time, so that replicas added later get their share; None
        for never.
    grace_s: on shutdown, requests in progress have this time to finish.
    tls_certificate, tls_key: PEM files; both or none.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    limits: ImageLimits = field(default=DEFAULT_LIMITS)
    max_segments: int = 64
    max_uploads: int = 16
    retry_after_s: float = 1.0
    upload_timeout_s: float = 300.0
    reflection: bool = True
    max_connection_age_s: float | None = 1800.0
    grace_s: float = 10.0
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together; set both or none")
        if self.max_segments < 1 or self.max_uploads < 1:
            raise ValueError(
                f"{self.max_segments} segments and {self.max_uploads} uploads at a time; expected 1 or more"
            )
        if self.limits.max_bytes > _MAX_INT - _MESSAGE_OVERHEAD:
            raise ValueError(
                f"images of up to {self.limits.max_bytes:,} bytes; gRPC takes messages of {_MAX_INT:,}: "
                f"expected at most {_MAX_INT - _MESSAGE_OVERHEAD:,}"
            )
        age = self.max_connection_age_s
        if age is not None and not 1 <= age <= _MAX_INT / 1000:
            raise ValueError(
                f"connections of at most {age:g} seconds; expected 1 to {_MAX_INT // 1000:,}, 24 days, or never"
            )


class Server:
    """Serves predictors by the names of their bundles. The predictors stay the caller's, to close after `stop`."""

    def __init__(self, predictors: Sequence[Predictor], config: ServerConfig | None = None) -> None:
        """Prepare to serve; the first predictor is the default.

        Raises ValueError if names collide or the predictors do not share one image cache.
        """
        self.config = config = config or ServerConfig()
        named = {predictor.bundle.manifest.name: predictor for predictor in predictors}
        if not predictors or len(named) < len(predictors):
            raise ValueError(
                f"{len(predictors)} predictors named {sorted(named)}; expected one or more, of distinct names"
            )
        images = predictors[0].images
        if any(predictor.images is not images for predictor in predictors):
            raise ValueError("predictors with image caches of their own; pass one `images` to all of them")
        on_their_way = self._segments_on_their_way + _QUESTIONS_ON_THEIR_WAY
        threads = config.max_segments + config.max_uploads + on_their_way + _SPARE_THREADS
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="iog-rpc")
        self._watchdog = Watchdog()
        self._server = grpc.server(
            self._threads,
            interceptors=[self._receiving()],
            options=_options(config),
            maximum_concurrent_rpcs=threads,
        )
        self._health = Health(SERVICE)
        self._names = list(named)
        self._port: int | None = None
        servicer = SegmentationServicer(
            named,
            images,
            config.limits,
            uploads=Gate("uploads", config.max_uploads, config.retry_after_s),
            upload_timeout_s=config.upload_timeout_s,
            watchdog=self._watchdog,
        )
        add_SegmentationServiceServicer_to_server(servicer, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        if config.reflection:
            names = SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME
            gate = Gate("reflections", _REFLECTIONS, config.retry_after_s)
            reflected = Reflection(names, gate, _REFLECTION_TIMEOUT_S, self._watchdog)
            add_ServerReflectionServicer_to_server(reflected, self._server)

    def _receiving(self) -> Receiving:
        config = self.config

        def gate(what: str, width: int) -> Gate:
            return Gate(what, width, config.retry_after_s)

        def anteroom(what: str, width: int) -> Anteroom:
            return Anteroom(f"{what} that have not arrived", width, config.retry_after_s)

        segments = Arrival(
            anteroom("requests", self._segments_on_their_way),
            config.upload_timeout_s,
            gate("segmentations", config.max_segments),
            check_encoded,
        )
        asked = anteroom("questions", _QUESTIONS_ON_THEIR_WAY)
        questions = Arrival(asked, _QUESTION_TIMEOUT_S, gate("questions", _QUESTIONS))
        watches = Arrival(asked, _QUESTION_TIMEOUT_S, gate("watches", _WATCHES))
        return Receiving({f"/{SERVICE}/Segment": segments}, questions, watches, self._watchdog)

    @property
    def _segments_on_their_way(self) -> int:
        return max(self.config.max_segments, min(_ON_THEIR_WAY, _ARRIVING_BYTES // self.config.limits.max_bytes))

    @property
    def port(self) -> int:
        """That the server listens on, once started."""
        if self._port is None:
            raise RuntimeError("the server was not started")
        return self._port

    @property
    def address(self) -> str:
        """host:port, once started."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{host}:{self.port}"

    def start(self) -> None:
        """Listen. Raises OSError if the address is taken or is not this machine's."""
        host, port = self.config.host, self.config.port
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        credentials = _credentials(self.config)
        _check_free(host, port)
        try:
            if credentials is None:
                self._port = self._server.add_insecure_port(target)
            else:
                self._port = self._server.add_secure_port(target, credentials)
        except RuntimeError as e:
            unusable = "" if credentials is None else ", or certificate and key are no PEM files that belong together"
            raise OSError(
                errno.EADDRINUSE,
                f"cannot listen on {target}: another server has this port, or the host is not here{unusable}",
            ) from e
        self._watchdog.start()
        self._server.start()
        logger.info("serving %s on %s", ", ".join(self._names), self.address)

    def stop(self, grace_s: float | None = None, hurry: threading.Event | None = None) -> None:
        """Take no more requests, let those in progress finish, and return when no thread works any more.

        grace_s: the time they have (None: the config's); hurry: ends that time once set. Then they are cancelled; a
        running inference still ends first.
        """
        self._health.enter_graceful_shutdown()
        stopped = self._server.stop(self.config.grace_s if grace_s is None else grace_s)
        if hurry is not None:
            while not stopped.wait(_POLL_S):
                if hurry.is_set():
                    self._server.stop(0)
                    break
        stopped.wait()
        self._watchdog.stop()
        self._threads.shutdown()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def serve(predictors: Sequence[Predictor], config: ServerConfig | None = None) -> None:
    """Serve until SIGINT, SIGTERM, or SIGHUP where that is not ignored, then drain.

    To be called from the main thread, which alone gets signals.
    Raises OSError if the address is taken, KeyboardInterrupt if a second signal ended the drain.
    """
    asked_to_stop, hurry = threading.Event(), threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        # NB: an exception raised here could strike inside gRPC and leave it half shut down, for ever.
        (hurry if asked_to_stop.is_set() else asked_to_stop).set()

    stopping = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` asks for
        stopping.append(signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in stopping}
    try:
        server = Server(predictors, config)
        server.start()
        while not asked_to_stop.wait(_POLL_S):  # NB: a signal that comes just before the wait does not end it
            pass
        logger.info("draining for up to %g s; a second signal ends it", server.config.grace_s)
        server.stop(hurry=hurry)
        if hurry.is_set():
            raise KeyboardInterrupt
        logger.info("stopped")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_free(host: str, port: int) -> None:
    """Raises OSError, with the reason, if any address of the host cannot be listened on: gRPC is content with one."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as e:
        raise OSError(errno.EADDRNOTAVAIL, f"cannot listen on {host}:{port}: {e}") from e
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family is socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as e:  # of a family that this machine has not, gRPC uses the others
            if e.errno in (errno.EADDRINUSE, errno.EACCES):
                taken = "another server has this port" if e.errno == errno.EADDRINUSE else e.strerror
                raise OSError(e.errno, f"cannot listen on {address[0]}:{port}: {taken}") from e


def _options(config: ServerConfig) -> list[tuple[str, Any]]:
    age = config.max_connection_age_s
    return [
        ("grpc.so_reuseport", 0),  # otherwise a second server on the same port starts, and gets half of the requests
        ("grpc.max_receive_message_length", config.limits.max_bytes + _MESSAGE_OVERHEAD),
        ("grpc.max_send_message_length", -1),  # masks are bounded by the images
        ("grpc.max_concurrent_streams", max(_STREAMS, config.max_segments + config.max_uploads)),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # what clients behind NATs may ask of us
        ("grpc.keepalive_permit_without_calls", 1),
        *([] if age is None else [("grpc.max_connection_age_ms", int(age * 1000))]),
        ("grpc.max_connection_age_grace_ms", min(int(config.upload_timeout_s * 1000) + 60_000, _MAX_INT)),
    ]


def _credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    if config.tls_key is None or config.tls_certificate is None:
        return None
    return grpc.ssl_server_credentials([(config.tls_key.read_bytes(), config.tls_certificate.read_bytes())])
