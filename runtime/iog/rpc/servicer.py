"""The RPCs: convert, call the predictor, convert. Each runs on a thread of its own and may block."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_reflection.v1alpha.reflection import ReflectionServicer
from grpc_status import rpc_status

from iog.deadline import Deadline
from iog.errors import (
    BackendError,
    Internal,
    InvalidImage,
    IogError,
    Overloaded,
    UnknownImage,
    UnknownModel,
)
from iog.image import Image, ImageLimits
from iog.mask import MaskEncoding
from iog.predictor import ImageCache, Predictor
from iog.prompt import MAX_CLICKS
from iog.rpc import convert
from iog.rpc.catalog import Limits
from iog.rpc.status import to_status
from iog.rpc.upload import read_chunks, read_header
from iog.v1 import segmentation_pb2 as pb
from iog.v1.segmentation_pb2_grpc import SegmentationServiceServicer

logger = logging.getLogger("iog.rpc")


class Gate:
    """Admits so many at a time and turns the others away at once: in a queue without bounds all would be late."""

    def __init__(self, what: str, width: int, retry_after_s: float) -> None:
        self._refusal = f"{width} {what} are in progress already; repeat in {retry_after_s:g} s"
        self._retry_after_s = retry_after_s
        self._free = threading.Semaphore(width)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be one of those inside. Raises Overloaded if there is no room."""
        if not self._free.acquire(blocking=False):
            raise Overloaded(self._refusal, self._retry_after_s)
        try:
            yield
        finally:
            self._free.release()


class SegmentationServicer(SegmentationServiceServicer):
    """iog.v1.SegmentationService. The first predictor is the default; all share one cache of decoded images."""

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        images: ImageCache,
        limits: ImageLimits,
        *,
        segments: Gate,
        uploads: Gate,
        upload_timeout_s: float,
    ) -> None:
        self._predictors = predictors
        self._default = next(iter(predictors))
        self._images = images
        self._limits = limits
        self._segments = segments
        self._uploads = uploads
        self._upload_timeout_s = upload_timeout_s

    def UploadImage(  # noqa: N802 the proto's names
        self, request_iterator: Iterator[pb.UploadImageRequest], context: grpc.ServicerContext
    ) -> pb.UploadImageResponse:
        """See the proto."""
        with _errors_told(context), self._uploads.entered():
            deadline = _deadline(context)
            with _cancelled_after(self._upload_timeout_s, context):
                header = read_header(request_iterator, self._limits)
                held = self._images.get(header.digest)
                if held is not None:
                    return _uploaded(held, True)
                data, digest = read_chunks(request_iterator, header, self._limits)
            deadline.check("receiving the image")
            image, how = self._images.get_or_compute(digest, lambda: Image.decode(data, self._limits, digest), deadline)
            return _uploaded(image, how == "hit")

    def Segment(self, request: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:  # noqa: N802
        """See the proto."""
        with _errors_told(context), self._segments.entered():
            deadline = _deadline(context)
            predictor = self._predictor(request.model)
            prompt = convert.prompt_from(request, predictor.bundle.manifest.name)
            encoding = convert.encoding_from(request)
            image = self._image(request)
            prediction = predictor.predict(image, prompt, timeout=deadline)
            if encoding is MaskEncoding.SCORE_MAP:
                return convert.response_without_mask(prediction)
            return convert.response_of(prediction.segmentation(scores=request.want_score_map), encoding)

    def ListModels(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:  # noqa: N802
        """See the proto."""
        return pb.ListModelsResponse(
            models=[convert.model_of(p.bundle, name == self._default) for name, p in self._predictors.items()],
            limits=convert.limits_of(Limits(self._limits.max_bytes, self._limits.max_pixels, MAX_CLICKS)),
        )

    def _predictor(self, name: str) -> Predictor:
        try:
            return self._predictors[name or self._default]
        except KeyError:
            raise UnknownModel(name, self._predictors) from None

    def _image(self, request: pb.SegmentRequest) -> Image | bytes:
        match request.WhichOneof("image"):
            case "digest":
                image = self._images.get(request.digest)
                if image is None:
                    raise UnknownImage(request.digest)
                return image
            case "encoded_image":
                return request.encoded_image
            case _:
                raise InvalidImage("request without an image; set digest, or encoded_image")


class Reflection(ReflectionServicer):  # type: ignore[misc]  # untyped
    """Tells clients the interface, few at a time and not for long: a stream holds a thread while its client is idle."""

    def __init__(self, names: Sequence[str], gate: Gate, timeout_s: float) -> None:
        super().__init__(names)
        self._gate = gate
        self._timeout_s = timeout_s

    def ServerReflectionInfo(self, request_iterator: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        """See grpc.reflection.v1alpha."""
        with _errors_told(context), self._gate.entered(), _cancelled_after(self._timeout_s, context):
            yield from super().ServerReflectionInfo(request_iterator, context)


def _uploaded(image: Image, already_held: bool) -> pb.UploadImageResponse:
    return pb.UploadImageResponse(digest=image.digest, size=convert.size_of(image.size), already_held=already_held)


def _deadline(context: grpc.ServicerContext) -> Deadline:
    """Until when the client waits. Raises DeadlineExceeded if it no longer does: the call has waited for a thread."""
    deadline = Deadline.after(context.time_remaining(), context.is_active)
    deadline.check("waiting for a thread")
    return deadline


@contextmanager
def _cancelled_after(seconds: float, context: grpc.ServicerContext) -> Iterator[None]:
    """End the call after this time: nothing else wakes a thread that waits for a peer's next message."""
    timer = threading.Timer(seconds, context.cancel)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _errors_told(context: grpc.ServicerContext) -> Iterator[None]:
    """Answers errors with their status. What is no error of ours is a defect: clients learn where to look for it."""
    try:
        yield
    except grpc.RpcError:  # the client went away during its upload: nobody is left to be told
        raise
    except IogError as e:
        if isinstance(e, BackendError):
            logger.exception("the engine failed")
        status = to_status(e)  # and not `e`, which by way of this frame would keep itself and the request alive
    except Exception:
        incident = uuid.uuid4().hex[:12]
        logger.exception("incident %s", incident)
        status = to_status(Internal(f"a defect of the server; its log has the traceback under incident {incident}"))
    else:
        return
    context.abort_with_status(rpc_status.to_status(status))
