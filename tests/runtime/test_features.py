import contextlib
import dis
import gc
import itertools
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from iog.deadline import NO_DEADLINE, Deadline
from iog.errors import BackendError, DeadlineExceeded
from iog.features import LRU

operations = st.lists(
    st.tuples(st.sampled_from(["get", "put", "compute"]), st.sampled_from("abcdef"), st.integers(0, 60)), max_size=60
)


def strings(budget: int) -> LRU[str, str]:
    return LRU(budget, len)


@given(st.integers(0, 100), operations)
def test_the_least_recently_used_go_first_and_the_budget_holds(budget: int, steps: list[tuple[str, str, int]]) -> None:
    cache = strings(budget)
    expected: OrderedDict[str, str] = OrderedDict()
    for operation, key, size in steps:
        value = "x" * size
        if operation == "get":
            assert cache.get(key) == expected.get(key)
        elif operation == "put":
            cache.put(key, value)
        else:
            found, how = cache.get_or_compute(key, partial(str, value))
            assert how == ("hit" if key in expected else "miss")
            assert found == expected.get(key, value)
        if operation == "put" or (operation == "compute" and key not in expected):
            expected[key] = value
            expected.move_to_end(key)
            while sum(map(len, expected.values())) > budget and len(expected) > 1:
                expected.popitem(last=False)
        elif key in expected:
            expected.move_to_end(key)
        assert {k for k in "abcdef" if k in cache} == set(expected)
        assert cache.nbytes == sum(map(len, expected.values()))
        assert cache.nbytes <= budget or len(cache) == 1


def test_the_least_recently_used_are_forgotten_on_request() -> None:
    cache = strings(100)
    for key in "abcd":
        cache.put(key, key * 10)
    cache.get("a")
    assert cache.evict(2)
    assert {key for key in "abcd" if key in cache} == {"a", "d"}
    assert cache.nbytes == 20
    assert cache.evict(9)
    assert (len(cache), cache.nbytes) == (0, 0)
    assert not cache.evict(1)


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 or more"):
        strings(-1)


class Leader:
    """A computation that is running, and ends when it is told to."""

    def __init__(self, cache: LRU[str, str], pool: ThreadPoolExecutor) -> None:
        self.outcome: str | BaseException = "value"
        started, self._end = threading.Event(), threading.Event()

        def compute() -> str:
            started.set()
            assert self._end.wait(60)
            if isinstance(self.outcome, BaseException):
                raise self.outcome
            return self.outcome

        self.call: Future[tuple[str, str]] = pool.submit(cache.get_or_compute, "key", compute)
        assert started.wait(60)

    def end(self, outcome: str | BaseException = "value") -> None:
        self.outcome = outcome
        self._end.set()


@contextmanager
def joined(
    cache: LRU[str, str], pool: ThreadPoolExecutor, count: int, compute: Callable[[], str]
) -> Iterator[list[Future[tuple[str, str]]]]:
    """Calls that wait for the leader."""
    waiting = threading.Semaphore(0)

    class Waiting(Deadline):
        def remaining(self) -> float | None:
            waiting.release()  # asked right before the wait
            return None

    calls: list[Future[tuple[str, str]]] = [
        pool.submit(cache.get_or_compute, "key", compute, Waiting()) for _ in range(count)
    ]
    for _ in calls:
        assert waiting.acquire(timeout=60)
    yield calls


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as executor:
        yield executor


def never() -> str:
    raise AssertionError("computed twice")


def test_sixteen_callers_compute_once(pool: ThreadPoolExecutor) -> None:
    cache = strings(100)
    leader = Leader(cache, pool)
    with joined(cache, pool, 15, never) as calls:
        leader.end()
        assert [call.result(60) for call in calls] == [("value", "joined")] * 15
    assert leader.call.result(60) == ("value", "miss")
    assert cache.get_or_compute("key", never) == ("value", "hit")


def test_other_keys_do_not_wait(pool: ThreadPoolExecutor) -> None:
    cache = strings(100)
    leader = Leader(cache, pool)
    assert cache.get_or_compute("other", lambda: "another") == ("another", "miss")
    leader.end()


def test_a_failure_reaches_all_callers_and_is_not_kept(pool: ThreadPoolExecutor) -> None:
    cache = strings(100)
    leader = Leader(cache, pool)
    with joined(cache, pool, 3, never) as calls:
        leader.end(BackendError("broken"))
        for call in [leader.call, *calls]:
            with pytest.raises(BackendError, match="broken"):
                call.result(60)
    assert cache.get_or_compute("key", lambda: "repaired") == ("repaired", "miss")


@pytest.mark.parametrize("outcome", [DeadlineExceeded("late"), KeyboardInterrupt(), SystemExit()])
def test_when_a_caller_gives_up_one_that_waits_computes(pool: ThreadPoolExecutor, outcome: BaseException) -> None:
    cache = strings(100)
    leader = Leader(cache, pool)
    with joined(cache, pool, 4, lambda: "second") as calls:
        leader.end(outcome)
        found = [call.result(60) for call in calls]
    assert {value for value, _ in found} == {"second"}
    assert [how for _, how in found].count("miss") == 1
    assert isinstance(leader.call.exception(60), type(outcome))


def test_an_interrupt_anywhere_leaves_nobody_waiting() -> None:
    """Python looks for signals after calls: at each of these in turn, Ctrl-C comes."""
    code = LRU.get_or_compute.__code__
    instructions = list(dis.get_instructions(code))
    looks = {after.offset for i, after in enumerate(instructions[1:]) if instructions[i].opname.startswith("CALL")}

    def interrupted(at: int) -> bool:
        """Whether there is such a place."""
        cache, seen = strings(100), 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal seen
            if frame.f_code is not code:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode" and frame.f_lasti in looks:
                seen += 1
                if seen == at:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            cache.get_or_compute("key", lambda: "first")
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        if seen == at:
            value, how = cache.get_or_compute("key", lambda: "second", Deadline.after(30))
            assert (value, how) in [("first", "hit"), ("second", "miss")]
            assert not cache._in_flight
        return seen == at

    places = next(at for at in itertools.count(1) if not interrupted(at)) - 1
    assert places > 6


def test_a_caller_waits_no_longer_than_its_own_deadline(pool: ThreadPoolExecutor) -> None:
    cache = strings(100)
    leader = Leader(cache, pool)
    with pytest.raises(DeadlineExceeded, match="another request"):
        cache.get_or_compute("key", never, Deadline.after(0.01))
    leader.end()
    assert leader.call.result(60) == ("value", "miss")


def test_a_timeout_within_the_computation_is_not_taken_for_a_deadline(pool: ThreadPoolExecutor) -> None:
    cache = strings(100)
    leader = Leader(cache, pool)
    with joined(cache, pool, 1, never) as calls:
        leader.end(TimeoutError("a network drive"))
        with pytest.raises(TimeoutError, match="a network drive"):
            calls[0].result(60)


def test_a_value_that_cannot_be_measured_leaves_no_one_waiting() -> None:
    cache: LRU[str, object] = LRU(10, lambda value: len(value))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        cache.get_or_compute("key", lambda: 5)
    assert cache.get_or_compute("key", lambda: "five", NO_DEADLINE) == ("five", "miss")


def test_a_failure_keeps_nothing_alive() -> None:
    class Large:
        pass

    cache = strings(10)
    references = []

    def compute() -> str:
        large = Large()
        references.append(weakref.ref(large))
        raise BackendError("broken")

    gc.disable()
    try:
        with pytest.raises(BackendError) as failure:
            cache.get_or_compute("key", compute)
        del failure
        assert references[0]() is None
    finally:
        gc.enable()


def test_a_failure_keeps_nothing_of_those_who_shared_it_alive(pool: ThreadPoolExecutor) -> None:
    class Large:
        pass

    class Waiting(Deadline):
        def remaining(self) -> float | None:
            waiting.set()  # asked right before the wait
            return None

    cache = strings(10)
    started, waiting, end = threading.Event(), threading.Event(), threading.Event()
    references = []

    def compute() -> str:
        started.set()
        assert end.wait(60)
        raise BackendError("broken")

    def ask() -> None:
        large = Large()
        references.append(weakref.ref(large))
        with contextlib.suppress(BackendError):
            cache.get_or_compute("key", compute, Waiting())

    gc.disable()
    try:
        first = pool.submit(ask)
        assert started.wait(60)
        second = pool.submit(ask)
        assert waiting.wait(60)
        end.set()
        first.result(60), second.result(60)
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()
