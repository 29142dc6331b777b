"""The RPCs: convert, call the predictor, convert. Each runs on a thread of its own and may block.

What they all go through, and where requests are waited for, is in `iog.rpc.calls`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grpc
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_reflection.v1alpha.reflection import ReflectionServicer

from iog.deadline import Deadline
from iog.errors import InvalidImage, UnknownImage, UnknownModel
from iog.image import Image, ImageLimits
from iog.mask import MaskEncoding
from iog.predictor import ImageCache, KnownImage, Predictor
from iog.prompt import MAX_CLICKS
from iog.rpc import convert
from iog.rpc.calls import Gate, Watchdog, errors_told
from iog.rpc.catalog import Limits
from iog.rpc.upload import read_chunks, read_header
from iog.v1 import segmentation_pb2 as pb
from iog.v1.segmentation_pb2_grpc import SegmentationServiceServicer


class SegmentationServicer(SegmentationServiceServicer):
    """iog.v1.SegmentationService. The first predictor is the default; all share one cache of decoded images."""

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        images: ImageCache,
        limits: ImageLimits,
        *,
        uploads: Gate,
        upload_timeout_s: float,
        watchdog: Watchdog,
    ) -> None:
        self._predictors = predictors
        self._default = next(iter(predictors))
        self._images = images
        self._limits = limits
        self._uploads = uploads
        self._upload_timeout_s = upload_timeout_s
        self._watchdog = watchdog

    def UploadImage(  # noqa: N802 the proto's names
        self, request_iterator: Iterator[pb.UploadImageRequest], context: grpc.ServicerContext
    ) -> pb.UploadImageResponse:
        """See the proto."""
        with errors_told(context), self._uploads.entered():
            deadline = _deadline(context)
            with self._watchdog.watching(context, self._upload_timeout_s):
                header = read_header(request_iterator, self._limits)
                held = self._images.get(header.digest)
                if held is not None:
                    return _uploaded(held, True)
                data, digest = read_chunks(request_iterator, header, self._limits)
            deadline.check("receiving the image")
            image, how = self._images.decoded(data, digest, self._limits, deadline)
            return _uploaded(image, how == "hit")

    def Segment(self, request: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:  # noqa: N802
        """See the proto."""
        with errors_told(context):
            deadline = _deadline(context)
            predictor = self._predictor(request.model)
            prompt = convert.prompt_from(request, predictor.bundle.manifest.name)
            encoding, with_scores = convert.encoding_from(request), request.want_score_map
            image = [self._image(request)]
            del request  # neither its copy of the image's bytes nor this one waits for the encoder
            prediction = predictor.predict(image.pop(), prompt, timeout=deadline)
            deadline.check("making the mask")
            if encoding is MaskEncoding.SCORE_MAP:
                return convert.response_without_mask(prediction)
            return convert.response_of(prediction.segmentation(scores=with_scores), encoding)

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

    def _image(self, request: pb.SegmentRequest) -> KnownImage | bytes:
        match request.WhichOneof("image"):
            case "digest":
                image = self._images.find(request.digest)
                if image is None:
                    convert.check_digest(request.digest)
                    raise UnknownImage(request.digest)
                return image
            case "encoded_image":
                return request.encoded_image
            case _:
                raise InvalidImage("request without an image; set digest, or encoded_image")


class Health(HealthServicer):  # type: ignore[misc]  # untyped
    """Says how this service and the whole server are. Others are all one to it.

    gRPC's own keeps every name that was ever watched, for ever.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._names = ("", service)

    def Watch(  # noqa: N802
        self, request: HealthCheckRequest, context: grpc.ServicerContext, send: Callable[[Any], None] | None = None
    ) -> Any:
        """See grpc.health.v1."""
        known = request.service in self._names
        return super().Watch(request if known else HealthCheckRequest(service="unknown"), context, send)


class Reflection(ReflectionServicer):  # type: ignore[misc]  # untyped
    """Tells clients the interface, few at a time and not for long: a stream holds a thread while its client is idle."""

    def __init__(self, names: Sequence[str], gate: Gate, timeout_s: float, watchdog: Watchdog) -> None:
        super().__init__(names)
        self._gate = gate
        self._timeout_s = timeout_s
        self._watchdog = watchdog

    def ServerReflectionInfo(self, request_iterator: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        """See grpc.reflection.v1alpha."""
        with errors_told(context), self._gate.entered(), self._watchdog.watching(context, self._timeout_s):
            yield from super().ServerReflectionInfo(request_iterator, context)


def _uploaded(image: Image, already_held: bool) -> pb.UploadImageResponse:
    return pb.UploadImageResponse(digest=image.digest, size=convert.size_of(image.size), already_held=already_held)


def _deadline(context: grpc.ServicerContext) -> Deadline:
    """Until when the client waits. Raises DeadlineExceeded if it no longer does: the call has waited for a thread."""
    deadline = Deadline.after(context.time_remaining(), context.is_active)
    deadline.check("waiting for a thread")
    return deadline
