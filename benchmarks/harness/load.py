"""Many annotators at one server: who clicks when, and what came of every click."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

import grpc
import numpy as np
from iog import Prompt
from iog.rpc import convert
from iog.v1.segmentation_pb2_grpc import SegmentationServiceStub

TIMEOUT_S = 60.0


Outcome = Literal["hit", "joined", "miss", "none", "rejected", "failed"]


@dataclass(frozen=True)
class Reply:
    """What came of one click.

    due: when the annotator clicked, sent or not, in seconds since the start; latency: from then to the reply, in
    seconds. first: on a new object. outcome: "hit", "joined" or "miss" of the features cache, "none" for a model
    without one; "rejected" or "failed". stages: seconds on the server.
    """

    due: float
    latency: float
    first: bool
    outcome: Outcome
    stages: Mapping[str, float]

    @property
    def answered(self) -> bool:
        """With a mask."""
        return self.outcome not in ("rejected", "failed")


def answered_within(replies: Iterable[Reply], start: float, seconds: float) -> int:
    """How many masks came in these seconds, whenever they were asked for: beyond capacity, fewer than were due."""
    return sum(r.answered and start <= r.due + r.latency < start + seconds for r in replies)


@dataclass(frozen=True)
class Annotation:
    """One object: arrives at `start` seconds; after each reply the annotator thinks, then clicks again.

    prompts: one a click, growing. thinking: seconds before each click but the first.
    """

    start: float
    digest: str
    prompts: Sequence[Prompt]
    thinking: Sequence[float]


class Crowd:
    """Sends clicks when they are due, however many are unanswered: a slow server does not slow its load down.

    Nothing is tried again: a click that is turned away is counted, and its annotator goes on.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        self._stub = SegmentationServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def annotate(self, annotations: Sequence[Annotation]) -> list[Reply]:
        """All clicks on all objects; returns when the last one is answered.

        NB: of a call that a signal interrupts while it is begun, gRPC waits for the end for ever when the channel is
        closed; hence calls are begun in a thread that gets no signals.
        """
        done = Future[list[Reply]]()

        def annotate() -> None:
            try:
                done.set_result(self._annotate(annotations))
            except Exception as e:
                done.set_exception(e)

        threading.Thread(target=annotate, daemon=True).start()
        return done.result()

    def _annotate(self, annotations: Sequence[Annotation]) -> list[Reply]:
        due = [(a.start, i, 0) for i, a in enumerate(annotations)]
        heapq.heapify(due)
        changed, replies, unanswered = threading.Condition(), list[Reply](), sum(len(a.prompts) for a in annotations)
        origin = time.perf_counter()

        def answered(at: float, annotation: int, number: int, call: grpc.Future) -> None:
            nonlocal unanswered
            now = time.perf_counter() - origin
            with changed:
                replies.append(Reply(at, now - at, number == 0, *_came_of(call)))
                unanswered -= 1
                if number + 1 < len(annotations[annotation].prompts):
                    pause = annotations[annotation].thinking[number]
                    heapq.heappush(due, (now + pause, annotation, number + 1))
                changed.notify()

        while True:
            with changed:
                while unanswered and not (due and due[0][0] <= time.perf_counter() - origin):
                    changed.wait(due[0][0] - (time.perf_counter() - origin) if due else None)
                if not unanswered:
                    return replies
                at, annotation, number = heapq.heappop(due)
            request = convert.request_of(annotations[annotation].digest, annotations[annotation].prompts[number])
            call = self._stub.Segment.future(request, timeout=TIMEOUT_S)
            call.add_done_callback(lambda c, a=at, i=annotation, n=number: answered(a, i, n, c))


def _came_of(call: grpc.Future) -> tuple[Outcome, Mapping[str, float]]:
    error = call.exception()
    if error is None:
        response = call.result()  # masks are made on the annotators' machines, not on the server's cores
        return convert.cache_from(response.cache).features, {t.name: t.seconds for t in response.timings}
    return ("rejected" if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED else "failed"), {}


def poisson(rate: float, start: float, seconds: float, random: np.random.Generator) -> list[float]:
    """Arrival times in the `seconds` from `start`: of a Poisson process, given that as many come as are expected."""
    return sorted(random.uniform(start, start + seconds, round(rate * seconds)).tolist())


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds; empty for no values."""
    if not seconds:
        return {}
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99)) * 1e3
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "max": max(seconds) * 1e3}
