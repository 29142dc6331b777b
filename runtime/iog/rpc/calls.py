"""What every call goes through: a gate that bounds how many there are, a clock for peers that stall, errors told."""

from __future__ import annotations

import itertools
import logging
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

    One on its way does no work, but what has come of it is held: up to the largest message.
    """

    on_its_way: Gate
    timeout_s: float
    there: Gate


class Receiving(grpc.ServerInterceptor):  # type: ignore[misc]  # untyped
    """Waits for the one request of a call, and not for ever; calls that answer with a stream are left to gRPC.

    gRPC itself waits on a thread of its pool before any code of ours runs: as many calls that never end as there are
    threads would stop the server. arrivals: by method, "/service/Method"; other: of the rest.
    """

    def __init__(self, arrivals: Mapping[str, Arrival], other: Arrival, watchdog: Watchdog) -> None:
        self._arrivals = arrivals
        self._other = other
        self._watchdog = watchdog

    def intercept_service(
        self, continuation: Callable[[Any], grpc.RpcMethodHandler], handler_call_details: Any
    ) -> grpc.RpcMethodHandler:
        """See grpc.ServerInterceptor."""
        handler = continuation(handler_call_details)
        if handler is None or handler.request_streaming or handler.response_streaming:
            return handler
        arrival = self._arrivals.get(handler_call_details.method, self._other)

        def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            with ExitStack() as inside:
                with errors_told(context):
                    with arrival.on_its_way.entered(), self._watchdog.watching(context, arrival.timeout_s):
                        request = next(requests, None)
                    if request is None:
                        raise InvalidImage("call without a request; send one message")
                    inside.enter_context(arrival.there.entered())
                return handler.unary_unary(request, context)

        return grpc.stream_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)


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
