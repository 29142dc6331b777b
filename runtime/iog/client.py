"""The same call as Predictor.segment, answered by a server."""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TypeVar

import grpc
import numpy as np

from iog.address import check_address, is_here
from iog.deadline import Deadline
from iog.errors import OutOfMemory, Overloaded, Unavailable, UnknownImage
from iog.features import LRU
from iog.image import Image, ImageLimits, ImageSource, digest_of, read_bytes
from iog.mask import MaskEncoding
from iog.prompt import Prompt
from iog.rpc import convert
from iog.rpc.catalog import Limits, Model
from iog.rpc.status import from_rpc_error
from iog.segmentation import Segmentation
from iog.v1 import segmentation_pb2 as pb
from iog.v1.segmentation_pb2_grpc import SegmentationServiceStub

T = TypeVar("T")

CHUNK_BYTES = 256 * 1024
FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 2.0
_REMEMBERED_NAMES = 1024
# Of images held with their digests: to hash one takes a millisecond for each megabyte.
_DIGESTED_BYTES = 64 << 20
_UPLOADS = 3  # in one call: a server may be restarted, or evict the image, between its upload and its use
_FILES = ImageLimits(max_bytes=(2 << 30) - 1)  # no server takes more; what is too large for one, it says itself

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),  # a connection that a NAT has dropped is noticed between clicks, not at one
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.enable_retries", 0),  # ours know the deadline, and outlast a restart
)


class Client:
    """Calls a server. Thread-safe. To be made after forking, never before: gRPC's threads do not survive a fork."""

    def __init__(
        self,
        target: str,
        *,
        timeout: float = 30.0,
        tls: bool = False,
        root_certificates: bytes | None = None,
    ) -> None:
        """Prepare to call; the connection is made at the first call.

        target: "host:port". timeout: seconds for a call with its upload and retries, unless the call says otherwise;
            for as long a server that does not answer is waited for.
        tls: encrypt; root_certificates: PEM, if the server's certificate is not signed by a public authority.
        Raises ValueError for a target that is no address.
        """
        self._target = check_address(target)
        self._timeout = timeout
        options = [*_OPTIONS, ("grpc.enable_http_proxy", int(not is_here(target)))]
        if tls:
            credentials = grpc.ssl_channel_credentials(root_certificates)
            self._channel = grpc.secure_channel(target, credentials, options=options)
        else:
            self._channel = grpc.insecure_channel(target, options=options)
        self._stub = SegmentationServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._names = _Names()
        self._digests: LRU[int, tuple[bytes, str]] = LRU(_DIGESTED_BYTES, lambda entry: len(entry[0]))

    def segment(
        self,
        image: ImageSource,
        prompt: Prompt,
        *,
        model: str | None = None,
        scores: bool = False,
        encoding: MaskEncoding = MaskEncoding.SCORE_MAP,
        timeout: float | None = None,
    ) -> Segmentation:
        """The mask of the prompted object, as from Predictor.segment.

        image: encoded bytes, a path, an (H, W, 3) uint8 RGB array, or an Image; uploaded only if the server does not
        hold it, arrays and Images as PNG. For many clicks on one pass the same `bytes` or Image each time: files are
        read and arrays hashed at every click. model: a name from `models`; None for the server's default.
        encoding: how the mask travels. By default this client makes it from the network's output, which is the fastest
        on a network of one's own, and spares the server; over a slow line take COCO_RLE, the smallest.
        Raises what Predictor.segment raises, and UnknownModel, Overloaded, Unavailable.
        """
        deadline = self._deadline(timeout)
        source = self._source(image)

        def ask(data: bytes | None = None) -> Segmentation:
            request = convert.request_of(
                self._names.of(source.digest), prompt, model=model, scores=scores, encoding=encoding
            )
            if data is not None:
                request.encoded_image = data
            response = self._call(lambda remaining: self._stub.Segment(request, timeout=remaining), deadline)
            return replace(convert.segmentation_from(response, scores=scores), image_digest=source.digest)

        for _ in range(_UPLOADS):
            try:
                return ask()
            except UnknownImage:
                self._upload(source, deadline)
        return ask(source.encoded()[0])  # a server that holds too few images for all who click at a time

    def upload(self, image: ImageSource, *, timeout: float | None = None) -> str:
        """Give the server an image before the first click on it. Returns the digest that names it in requests."""
        return self._upload(self._source(image), self._deadline(timeout))

    def models(self, *, timeout: float | None = None) -> tuple[Model, ...]:
        """What can be asked for, the default first."""
        return tuple(convert.model_from(model) for model in self._list(timeout).models)

    def limits(self, *, timeout: float | None = None) -> Limits:
        """What the server refuses."""
        return convert.limits_from(self._list(timeout).limits)

    def close(self) -> None:
        """Close the connection; calls in progress fail."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _list(self, timeout: float | None) -> pb.ListModelsResponse:
        request = pb.ListModelsRequest()

        def call(remaining: float | None) -> pb.ListModelsResponse:
            response: pb.ListModelsResponse = self._stub.ListModels(request, timeout=remaining)
            return response

        return self._call(call, self._deadline(timeout))

    def _source(self, image: ImageSource) -> _Source:
        """The image and its digest, which for the same `bytes` object as at the last clicks is known."""
        if not isinstance(image, bytes):
            return _Source.of(image)
        held = self._digests.get(id(image))  # an id is that of this object alone, as long as the object is held
        if held is None:
            held = image, digest_of(image)
            self._digests.put(id(image), held)
        return _Source(held[1], image, None)

    def _upload(self, source: _Source, deadline: Deadline) -> str:
        data, digest = source.encoded()

        def messages() -> Iterator[pb.UploadImageRequest]:
            yield pb.UploadImageRequest(header=pb.UploadHeader(digest=digest, total_bytes=len(data)))
            view = memoryview(data)
            for start in range(0, len(view), CHUNK_BYTES):
                yield pb.UploadImageRequest(chunk=bytes(view[start : start + CHUNK_BYTES]))

        self._call(lambda remaining: self._stub.UploadImage(messages(), timeout=remaining), deadline)
        self._names.learn(source.digest, digest)
        return digest

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline.after(self._timeout if timeout is None else timeout)

    def _call(self, call: Callable[[float | None], T], deadline: Deadline) -> T:
        """The call's answer. Refusals that may pass are retried until the deadline: all calls are idempotent."""
        backoff = FIRST_BACKOFF_S
        while True:
            deadline.check(f"waiting for {self._target}")
            try:
                return call(deadline.remaining())
            except ValueError as e:  # gRPC's way to say so
                raise Unavailable(f"this client of {self._target} was closed; open another one") from e
            except grpc.RpcError as e:
                error = from_rpc_error(e)
                if not isinstance(error, Unavailable | Overloaded | OutOfMemory):
                    raise error from e
                pause = random.uniform(0.5, 1.0) * backoff + getattr(error, "retry_after_s", 0.0)
                remaining = deadline.remaining()
                if remaining is not None and remaining <= pause:
                    error.add_note(f"retried until the timeout; server: {self._target}")
                    raise error from e
            time.sleep(pause)
            backoff = min(2 * backoff, LONGEST_BACKOFF_S)


@dataclass(frozen=True)
class _Source:
    """An image as a caller gave it. digest: of `data` if there are encoded bytes, of the pixels otherwise."""

    digest: str
    data: bytes | None
    image: Image | None

    @classmethod
    def of(cls, image: ImageSource) -> _Source:
        if isinstance(image, np.ndarray):
            image = Image.from_array(image)
        if isinstance(image, Image):
            return cls(image.digest, None, image)
        data = bytes(image) if isinstance(image, bytes | bytearray | memoryview) else read_bytes(image, _FILES)
        return cls(digest_of(data), data, None)

    def encoded(self) -> tuple[bytes, str]:
        """What to upload, and its digest."""
        if self.data is not None:
            return self.data, self.digest
        assert self.image is not None
        data = self.image.to_png()
        return data, digest_of(data)


class _Names:
    """The digests under which the server holds images whose encoded bytes are our own doing (arrays, Images)."""

    def __init__(self) -> None:
        self._uploaded: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, digest: str) -> str:
        """The server's name for it, as far as known."""
        with self._lock:
            return self._uploaded.get(digest, digest)

    def learn(self, digest: str, uploaded: str) -> None:
        """Remember what was uploaded in its place, the last time."""
        with self._lock:
            self._uploaded.pop(digest, None)
            if digest == uploaded:
                return
            self._uploaded[digest] = uploaded
            if len(self._uploaded) > _REMEMBERED_NAMES:
                self._uploaded.popitem(last=False)
