from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2 as details
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from iog import errors
from iog.errors import IogError
from iog.rpc.status import TABLE, from_rpc_error, to_status

EXAMPLES = {
    errors.InvalidPrompt: errors.InvalidPrompt("clicks[3]", "(900, 20) lies outside: the 640x480 image"),
    errors.UnsupportedPrompt: errors.UnsupportedPrompt("extreme_points", "not by this model"),
    errors.UnknownModel: errors.UnknownModel("nosuch", ["a", "b"]),
    errors.UnknownImage: errors.UnknownImage("0" * 64),
    errors.Overloaded: errors.Overloaded("64 are in progress", retry_after_s=2.25),
}


def subclasses(kind: type[IogError]) -> list[type[IogError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in subclasses(child))]


class ReceivedError(grpc.RpcError):
    """As a channel raises it."""

    def __init__(self, code: grpc.StatusCode, message: str, status: Status | None = None) -> None:
        self._code, self._message = code, message
        self._trailers = () if status is None else rpc_status.to_status(status).trailing_metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._message

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self._trailers


def sent(error: IogError) -> ReceivedError:
    status = to_status(error)
    code = rpc_status.to_status(status).code
    assert len(status.SerializeToString()) < 7000  # trailers are cut off at 8 KiB
    return ReceivedError(code, status.message, status)


def unpacked(status: Status, kind: type) -> object:
    message = kind()
    assert any(packed.Unpack(message) for packed in status.details)
    return message


def test_every_error_has_a_row() -> None:
    declared = {kind for kind in subclasses(IogError) if kind.__module__ == errors.__name__}
    assert set(TABLE) == declared


def test_reasons_are_distinct() -> None:
    assert len({reason for _, reason in TABLE.values()}) == len(TABLE)


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.__name__)
def test_an_error_arrives_as_itself(kind: type[IogError]) -> None:
    error = EXAMPLES.get(kind) or kind("what was found; what was expected")
    received = from_rpc_error(sent(error))
    assert type(received) is kind
    assert str(received) == str(error)
    assert vars(received) == vars(error)


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.__name__)
def test_every_status_carries_reason_and_domain(kind: type[IogError]) -> None:
    status = to_status(EXAMPLES.get(kind) or kind("x"))
    info = unpacked(status, details.ErrorInfo)
    assert (info.reason, info.domain) == (TABLE[kind][1], "iog")
    assert status.code == TABLE[kind][0].value[0]


def test_a_class_without_a_row_goes_as_its_parent() -> None:
    class Torn(errors.InvalidImage):
        pass

    assert type(from_rpc_error(sent(Torn("half an image")))) is errors.InvalidImage


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("box", "inside_outside.box"),
        ("inside", "inside_outside.inside"),
        ("clicks[3]", "clicks[3]"),
        ("box_only", "box_only"),
    ],
)
def test_field_violations_name_the_path_in_the_request(field: str, path: str) -> None:
    error = errors.InvalidPrompt(field, "is no good")
    request = unpacked(to_status(error), details.BadRequest)
    assert [(v.field, v.description) for v in request.field_violations] == [(path, "is no good")]
    assert from_rpc_error(sent(error)).field == field


def test_not_found_says_what_was_not_found() -> None:
    image = unpacked(to_status(errors.UnknownImage("abc")), details.ResourceInfo)
    model = unpacked(to_status(errors.UnknownModel("abc", [])), details.ResourceInfo)
    assert (image.resource_type, image.resource_name) == ("image", "abc")
    assert (model.resource_type, model.resource_name) == ("iog.v1.Model", "abc")


@pytest.mark.parametrize(
    "error",
    [
        errors.UnknownImage("é" * 100_000),
        errors.UnknownModel("m" * 100_000, ["k" * 64] * 1000),
        errors.InvalidPrompt("clicks[0]", "x" * 100_000),
        errors.InvalidImage("\udcff.png: a file name that is no UTF-8"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_text_of_a_request_breaks_the_trailers(error: IogError) -> None:
    assert type(from_rpc_error(sent(error))) is type(error)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.CANCELLED, errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        (grpc.StatusCode.INTERNAL, errors.Internal),
        (grpc.StatusCode.UNIMPLEMENTED, IogError),
        (grpc.StatusCode.PERMISSION_DENIED, IogError),
    ],
)
def test_statuses_made_by_grpc_or_a_proxy_become_the_nearest_error(code: grpc.StatusCode, kind: type[IogError]) -> None:
    received = from_rpc_error(ReceivedError(code, "connection refused"))
    assert type(received) is kind
    assert "connection refused" in str(received)


def test_details_that_contradict_the_code_are_not_believed() -> None:
    status = to_status(errors.UnknownImage("abc"))
    received = from_rpc_error(ReceivedError(grpc.StatusCode.UNAVAILABLE, "proxy", status))
    assert type(received) is errors.Unavailable


def test_the_contract_documents_every_reason() -> None:
    contract = (Path(__file__).parents[3] / "protos/iog/v1/segmentation.proto").read_text()
    rows = [line.split()[1:3] for line in contract.splitlines() if line.startswith("//   ")]
    assert {(code.name, reason) for code, reason in TABLE.values()} <= {tuple(row) for row in rows}
