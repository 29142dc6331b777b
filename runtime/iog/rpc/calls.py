"""What every call goes through: a gate that bounds how many there are, a clock for peers that stall, errors told."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_status import rpc_status

from iog.errors import BackendError, Internal, InvalidImage, IogError, OutOfMemory, Overloaded
from iog.rpc.status import to_status

logger = logging.getLogger("iog.rpc")

_LOOK_EVERY_S = 0.25
_PATIENCE_S = 1.0  # with requests on their way, when others wait for their places
_LEAVES_IN_S = 0.5  # a call that was cancelled


class Gate:
    """Admits so many at a time and turns the others away at once: in a queue without bounds all would be late."""

    def __init__(self, what: str, width: int, retry_after_s: float) -> None:
        self._refusal = f"{width} {what} are in progress already; repeat in {retry_after_s:g} s"
        self._retry_after_s = retry_after_s
        self._free = threading.Semaphore(width)

    def enter(self) -> None:
        """Be one of those inside, until `leave`. Raises Overloaded if there is no room."""
        if not self._free.acquire(blocking=False):
            raise Overloaded(self._refusal, self._retry_after_s)

    def leave(self) -> None:
        """Make room."""
        self._free.release()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be one of those inside for this block. Raises Overloaded if there is no room."""
        self.enter()
        try:
            yield
        finally:
            self.leave()


class Anteroom(Gate):
    """A gate for calls whose request has not arrived: they do no work, but what has come of them is held.

    Where there is no room, one of those that have been inside for over a second is cancelled: requests that take long,
    or never arrive, keep nobody out whose request is there at once. Which one is left to chance: the one that has been
    there for longest is the one that is next to arrive.
    """

    def __init__(self, what: str, width: int, retry_after_s: float) -> None:
        super().__init__(what, width, retry_after_s)
        self._lock = threading.Lock()
        self._inside: dict[int, tuple[float, grpc.ServicerContext]] = {}  # since when, and who
        self._numbers = itertools.count()

    @contextmanager
    def entered_by(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Be one of those inside for this block. Raises Overloaded if there is no room."""
        if not (self._free.acquire(blocking=False) or (self._room_made() and self._free.acquire(timeout=_LEAVES_IN_S))):
            raise Overloaded(self._refusal, self._retry_after_s)
        number = next(self._numbers)
        with self._lock:
            self._inside[number] = time.monotonic(), context
        try:
            yield
        finally:
            with self._lock:
                self._inside.pop(number, None)
            self.leave()

    def _room_made(self) -> bool:
        with self._lock:
            latest = time.monotonic() - _PATIENCE_S
            slow = [number for number, (since, _) in self._inside.items() if since <= latest]
            if not slow:
                return False
            _, context = self._inside.pop(random.choice(slow))
        context.cancel()
        return True


class Watchdog:
    """Cancels calls whose peers keep a thread waiting for too long: nothing else wakes it.

    One thread for all calls, from `start` to `stop`, looks at them every quarter of a second.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[float, grpc.ServicerContext]] = {}
        self._numbers = itertools.count()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="iog-watchdog", daemon=True)

    @contextmanager
    def watching(self, context: grpc.ServicerContext, seconds: float) -> Iterator[None]:
        """Cancel the call if this block takes longer."""
        number = next(self._numbers)
        with self._lock:
            self._waiting[number] = time.monotonic() + seconds, context
        try:
            yield
        finally:
            with self._lock:
                self._waiting.pop(number, None)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        while not self._stopped.wait(_LOOK_EVERY_S):
            now = time.monotonic()
            with self._lock:
                late = [number for number, (due, _) in self._waiting.items() if due < now]
                contexts = [self._waiting.pop(number)[1] for number in late]
            for context in contexts:
                try:
                    context.cancel()
                except Exception:  # the others still need to be looked after
                    logger.exception("a call that takes too long cannot be cancelled")


@dataclass(frozen=True)
class Arrival:
    """What a request passes: a gate while it is on its way, for so many seconds, and one when it is there.

    check: raises IogError for encoded requests that are not to be parsed.
    """

    on_its_way: Anteroom
    timeout_s: float
    there: Gate
    check: Callable[[bytes], None] = lambda data: None


class Receiving(grpc.ServerInterceptor):  # type: ignore[misc]  # untyped
    """Waits for the one request of a call, and not for ever; calls with a stream of them are left to gRPC.

    gRPC itself waits on a thread of its pool before any code of ours runs: as many calls that never end as there are
    threads would stop the server. arrivals: by method, "/service/Method"; other: of the rest; streams: of those that
    are answered with a stream, in which they may stay for as long as they like: they hold no thread.
    """

    def __init__(self, arrivals: Mapping[str, Arrival], other: Arrival, streams: Arrival, watchdog: Watchdog) -> None:
        self._arrivals = arrivals
        self._other = other
        self._streams = streams
        self._watchdog = watchdog

    def intercept_service(
        self, continuation: Callable[[Any], grpc.RpcMethodHandler], handler_call_details: Any
    ) -> grpc.RpcMethodHandler:
        """See grpc.ServerInterceptor."""
        handler = continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(handler), handler.request_deserializer, handler.response_serializer
            )
        arrival = self._arrivals.get(handler_call_details.method, self._other)

        def parsed(data: bytes) -> Any:
            try:
                arrival.check(data)
            except IogError as e:  # which gRPC, that calls this, would not tell
                return e
            return handler.request_deserializer(data)

        def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            with ExitStack() as inside:
                with errors_told(context):
                    request = self._arrived(requests, context, arrival)
                    inside.enter_context(arrival.there.entered())
                return handler.unary_unary(request.pop(), context)

        return grpc.stream_unary_rpc_method_handler(answer, parsed, handler.response_serializer)

    def _arrived(self, requests: Iterator[Any], context: grpc.ServicerContext, arrival: Arrival) -> list[Any]:
        """The request, in a list, so that who takes it out has it alone: it may hold a large image."""
        with arrival.on_its_way.entered_by(context), self._watchdog.watching(context, arrival.timeout_s):
            request = list(itertools.islice(requests, 1))
        if not request:
            raise InvalidImage("call without a request; send one message")
        if isinstance(request[0], IogError):
            raise request.pop()  # which, left in the list, would be kept by its own traceback, with the request's bytes
        return request

    def _streaming(self, handler: grpc.RpcMethodHandler) -> Callable[..., None]:
        """As gRPC calls those that answer whenever they like, from any thread, as the health service does."""

        def answer(requests: Iterator[Any], context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
            with errors_told(context):
                request = self._arrived(requests, context, self._streams)
                self._streams.there.enter()
                if not context.add_callback(self._streams.there.leave):  # it is over already
                    self._streams.there.leave()
                    return
            handler.unary_stream(request.pop(), context, send)

        answer.experimental_non_blocking = True  # type: ignore[attr-defined]
        return answer


@contextmanager
def errors_told(context: grpc.ServicerContext) -> Iterator[None]:
    """Answers errors with their status. What is no error of ours is a defect: clients learn where to look for it."""
    try:
        yield
    except grpc.RpcError:  # the client went away before its request was complete: nobody is left to be told
        raise
    except IogError as e:
        if isinstance(e, BackendError):
            logger.exception("%s", e)
        status = to_status(e)  # and not `e`, which by way of this frame would keep itself and the request alive
    except MemoryError as e:
        logger.exception("no memory")
        status = to_status(OutOfMemory(f"the server has no memory for this request ({e}); repeat it later"))
    except Exception:
        incident = uuid.uuid4().hex[:12]
        logger.exception("incident %s", incident)
        status = to_status(Internal(f"a defect of the server; its log has the traceback under incident {incident}"))
    else:
        return
    context.abort_with_status(rpc_status.to_status(status))
