"""Domain errors <-> gRPC statuses with google.rpc details: one table for both directions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from iog import errors
from iog.errors import IogError

DOMAIN = "iog"

TABLE: dict[type[IogError], tuple[grpc.StatusCode, str]] = {
    IogError: (grpc.StatusCode.UNKNOWN, "UNKNOWN"),
    errors.InvalidImage: (grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_INVALID"),
    errors.ImageTooLarge: (grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_TOO_LARGE"),
    errors.DigestMismatch: (grpc.StatusCode.INVALID_ARGUMENT, "DIGEST_MISMATCH"),
    errors.InvalidPrompt: (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_INVALID"),
    errors.UnsupportedPrompt: (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_UNSUPPORTED"),
    errors.UnknownModel: (grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN"),
    errors.UnknownImage: (grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_HELD"),
    errors.BundleError: (grpc.StatusCode.FAILED_PRECONDITION, "BUNDLE_INVALID"),
    errors.BundleVersionError: (grpc.StatusCode.FAILED_PRECONDITION, "BUNDLE_TOO_NEW"),
    errors.BackendError: (grpc.StatusCode.INTERNAL, "BACKEND_FAILED"),
    errors.BackendUnavailable: (grpc.StatusCode.FAILED_PRECONDITION, "BACKEND_UNAVAILABLE"),
    errors.OutOfMemory: (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY"),
    errors.DeadlineExceeded: (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    errors.Overloaded: (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    errors.Unavailable: (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"),
    errors.Internal: (grpc.StatusCode.INTERNAL, "INTERNAL"),
}

_BY_REASON = {reason: kind for kind, (_, reason) in TABLE.items()}

# Statuses without our details: made by gRPC itself, or by a proxy. CANCELLED comes from a server that stops, or has
# given the place of a slow request to another (the client cancels nothing), RESOURCE_EXHAUSTED from a full one.
_BY_CODE: dict[grpc.StatusCode, type[IogError]] = {
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.CANCELLED: errors.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.INTERNAL: errors.Internal,
}

# Only the wire groups what belongs to one kind of prompt.
_WIRE_PREFIX = "inside_outside."
_PREFIXED = {"box", "inside"}

# In bytes. Statuses travel as HTTP/2 trailers, which peers refuse over 8 KiB; a message goes in them up to three times,
# once with each byte beyond ASCII as %XX. A request's own strings may be of any length.
_MAX_MESSAGE = 1000
_MAX_NAME = 200


def to_status(error: IogError) -> Status:
    """The status that tells a client about an error; a class without a row goes as its nearest ancestor."""
    code, reason = next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
    info = details.ErrorInfo(reason=reason, domain=DOMAIN)
    more: list[Message] = []
    match error:
        case errors.InvalidPrompt():
            prefix = _WIRE_PREFIX if error.field in _PREFIXED else ""
            violation = details.BadRequest.FieldViolation(
                field=_short(prefix + error.field, _MAX_NAME), description=_short(error.problem, _MAX_MESSAGE)
            )
            more.append(details.BadRequest(field_violations=[violation]))
        case errors.UnknownModel():
            info.metadata["known"] = _short(",".join(error.known), _MAX_MESSAGE)
            more.append(_resource("iog.v1.Model", error.name))
        case errors.UnknownImage():
            more.append(_resource("image", error.digest))
        case errors.Overloaded():
            retry = details.RetryInfo()
            retry.retry_delay.FromTimedelta(timedelta(seconds=error.retry_after_s))
            more.append(retry)
    status = Status(code=code.value[0], message=_short(str(error), _MAX_MESSAGE))
    for detail in (info, *more):
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def from_rpc_error(error: grpc.RpcError) -> IogError:
    """The error that a server meant, or the nearest one if the status is not a server's of ours."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # code and details disagree: a proxy has rewritten one of them
        status = None
    found = _Details.of(status or Status())
    if found.info.domain == DOMAIN and found.info.reason in _BY_REASON:
        return _rebuild(_BY_REASON[found.info.reason], error.details(), found)
    message = f"{error.code().name} from gRPC: {error.details()}"
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = f"no answer within the time allowed; repeat the request, with more of it ({message})"
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        message += "; is this an iog server, of this version?"
    return _BY_CODE.get(error.code(), IogError)(message)


@dataclass(frozen=True)
class _Details:
    """Those of a status; empty messages for what it does not have."""

    info: details.ErrorInfo
    violation: details.BadRequest.FieldViolation
    resource: details.ResourceInfo
    retry: details.RetryInfo

    @classmethod
    def of(cls, status: Status) -> _Details:
        request = details.BadRequest()
        info, resource, retry = details.ErrorInfo(), details.ResourceInfo(), details.RetryInfo()
        for packed in status.details:
            for message in (info, request, resource, retry):
                packed.Unpack(message)  # does nothing if it is of another type
        violation = next(iter(request.field_violations), details.BadRequest.FieldViolation())
        return cls(info, violation, resource, retry)


def _rebuild(kind: type[IogError], message: str, found: _Details) -> IogError:
    if issubclass(kind, errors.InvalidPrompt):
        return kind(found.violation.field.removeprefix(_WIRE_PREFIX), found.violation.description)
    if kind is errors.UnknownModel:
        known = found.info.metadata.get("known")
        return errors.UnknownModel(found.resource.resource_name, known.split(",") if known else ())
    if kind is errors.UnknownImage:
        return errors.UnknownImage(found.resource.resource_name)
    if kind is errors.Overloaded:
        return errors.Overloaded(message, found.retry.retry_delay.ToTimedelta().total_seconds())
    return kind(message)


def _resource(kind: str, name: str) -> details.ResourceInfo:
    return details.ResourceInfo(resource_type=kind, resource_name=_short(name, _MAX_NAME))


def _short(text: str, limit: int) -> str:
    data = text.encode("utf-8", "replace")  # file names may hold lone surrogates
    return data.decode() if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "…"
