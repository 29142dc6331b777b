"""Everything that can go wrong, without transport codes: `iog.rpc.status` maps these to gRPC.

IogError
├── InvalidImage            bytes that are no image, or none within the limits
│   ├── ImageTooLarge       refused from the header, before decoding
│   └── DigestMismatch      the bytes are not those that the digest names
├── InvalidPrompt           .field names the offending value
│   └── UnsupportedPrompt   a kind of prompt that this model was not trained for
├── UnknownModel            .name, .known
├── UnknownImage            .digest: upload it and ask again
├── BundleError             a bundle that is incomplete, altered or inconsistent
│   └── BundleVersionError  written by a newer iog
├── BackendError            the inference engine failed
│   ├── BackendUnavailable  it is not installed, or has no such device
│   └── OutOfMemory
├── DeadlineExceeded        the caller has stopped waiting
├── Overloaded              .retry_after_s
├── Unavailable             the server cannot be reached
└── Internal                a defect of ours
"""

import copyreg
from collections.abc import Iterable
from typing import Any


class IogError(Exception):
    """Base of all errors raised on purpose. The message gives the value, what was expected and what to do."""

    def __reduce__(self) -> tuple[Any, ...]:
        # pickled without calling __init__, whose arguments differ: an error that cannot be read breaks a process pool
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class InvalidImage(IogError):
    """The bytes are not an image that can be decoded."""


class ImageTooLarge(InvalidImage):
    """The image exceeds a limit on bytes or pixels; nothing was decoded."""


class DigestMismatch(InvalidImage):
    """The bytes do not have the digest that came with them."""


class InvalidPrompt(IogError):
    """A box, point or click that cannot be used.

    field: which value, as a path in the request: "box", "inside", "clicks[3]". problem: what is wrong with it.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class UnsupportedPrompt(InvalidPrompt):
    """A kind of prompt that the model was not trained for."""


class UnknownModel(IogError):
    """No model of that name is loaded."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(f"unknown model {name!r}; this server has: {', '.join(self.known) or 'none'}")


class UnknownImage(IogError):
    """The digest names an image that is not held (never uploaded, or evicted)."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"no image with digest {digest!r} is held; upload it and repeat the request")
        self.digest = digest


class BundleError(IogError):
    """A model bundle that is incomplete, altered or inconsistent."""


class BundleVersionError(BundleError):
    """The bundle was written in a newer format than this version reads."""


class BackendError(IogError):
    """The inference engine failed to open or to run a graph."""


class BackendUnavailable(BackendError):
    """The inference engine is not installed, or the asked device is not there."""


class OutOfMemory(BackendError):
    """The engine, or the decoding of an image, ran out of memory; the request changed nothing and may be repeated."""


class DeadlineExceeded(IogError):
    """The caller's deadline passed before the work was done."""


class Overloaded(IogError):
    """Too many requests wait already."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(IogError):
    """The server could not be reached, after retries."""


class Internal(IogError):
    """A defect of the runtime; the server's log has the traceback."""
