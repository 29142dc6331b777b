import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from iog.batcher import Batcher
from iog.deadline import NO_DEADLINE, Deadline
from iog.errors import DeadlineExceeded
from iog.lane import Lane, Priority


class Doubler:
    """Doubles numbers, batch by batch; refuses 13."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        if 13 in items:
            raise ValueError("13")
        return [2 * item for item in items]


@pytest.fixture
def lane() -> Lane:
    return Lane()


@pytest.fixture
def double() -> Doubler:
    return Doubler()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as executor:
        yield executor


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def heads_waiting(lane: Lane) -> int:
    return sum(ticket.priority is Priority.HEAD for ticket in lane._waiting)


def queued(
    pool: ThreadPoolExecutor, batcher: Batcher[int, int], items: Sequence[int], deadlines: dict[int, Deadline]
) -> list[Future[int]]:
    """Requests that came in this order."""
    futures = []
    for item in items:
        futures.append(pool.submit(batcher.run, item, deadlines.get(item, NO_DEADLINE)))
        wait_for(lambda: max(len(batcher._line), heads_waiting(batcher._lane)) == len(futures))
    return futures


def test_one_alone_runs_at_once(lane: Lane, double: Doubler) -> None:
    batcher = Batcher(double, lane, limit=8)
    assert [batcher.run(item, NO_DEADLINE) for item in (1, 2, 3)] == [2, 4, 6]
    assert double.batches == [[1], [2], [3]]


@pytest.mark.parametrize(
    ("limit", "batches"), [(8, [[1, 2, 3, 4, 5]]), (2, [[1, 2], [3, 4], [5]]), (1, [[1], [2], [3], [4], [5]])]
)
def test_those_that_wait_for_the_device_run_together_in_their_order(
    lane: Lane, double: Doubler, pool: ThreadPoolExecutor, limit: int, batches: list[list[int]]
) -> None:
    batcher = Batcher(double, lane, limit)
    with lane.turn(Priority.ENCODER, NO_DEADLINE):
        futures = queued(pool, batcher, [1, 2, 3, 4, 5], {})
    assert [future.result(60) for future in futures] == [2, 4, 6, 8, 10]
    assert double.batches == batches


def test_what_one_gets_wrong_is_told_to_it_alone(lane: Lane, double: Doubler, pool: ThreadPoolExecutor) -> None:
    batcher = Batcher(double, lane, limit=8)
    with lane.turn(Priority.ENCODER, NO_DEADLINE):
        futures = queued(pool, batcher, [1, 13, 3], {})
    assert [futures[0].result(60), futures[2].result(60)] == [2, 6]
    with pytest.raises(ValueError, match="13"):
        futures[1].result(60)
    assert double.batches == [[1, 13, 3], [1], [13], [3]]
    assert batcher.run(4, NO_DEADLINE) == 8


@pytest.mark.parametrize("late", [1, 2, 3])
def test_a_deadline_that_passes_in_the_line_holds_nobody_up(
    lane: Lane, double: Doubler, pool: ThreadPoolExecutor, late: int
) -> None:
    batcher = Batcher(double, lane, limit=8)
    with lane.turn(Priority.ENCODER, NO_DEADLINE):
        futures = dict(zip((1, 2, 3), queued(pool, batcher, [1, 2, 3], {late: Deadline.after(0.2)}), strict=True))
        with pytest.raises(DeadlineExceeded):
            futures.pop(late).result(60)
    assert {item: future.result(60) for item, future in futures.items()} == {item: 2 * item for item in futures}
    assert double.batches == [list(futures)]


def test_who_has_hung_up_is_not_computed(lane: Lane, double: Doubler, pool: ThreadPoolExecutor) -> None:
    batcher, here = Batcher(double, lane, limit=8), threading.Event()
    here.set()
    with lane.turn(Priority.ENCODER, NO_DEADLINE):
        futures = queued(pool, batcher, [1, 2, 3], {2: Deadline(waiting=here.is_set)})
        here.clear()
    assert [futures[0].result(60), futures[2].result(60)] == [2, 6]
    with pytest.raises(DeadlineExceeded, match="gave up"):
        futures[1].result(60)
    assert double.batches == [[1, 3]]


@pytest.mark.parametrize("at", [[1, 2, 3], [2]], ids=["together", "one by one"])
def test_an_interrupt_of_the_first_leaves_the_others_to_go_on(
    lane: Lane, pool: ThreadPoolExecutor, at: list[int]
) -> None:
    interrupted = threading.Event()

    def run(items: Sequence[int]) -> list[int]:
        if items == at and not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt
        if len(at) == 1 and len(items) > 1:
            raise ValueError("not together")
        return [2 * item for item in items]

    batcher = Batcher(run, lane, limit=8)
    with lane.turn(Priority.ENCODER, NO_DEADLINE):
        futures = queued(pool, batcher, [1, 2, 3], {})
    with pytest.raises(KeyboardInterrupt):
        futures[0].result(60)
    assert [future.result(60) for future in futures[1:]] == [4, 6]


@pytest.mark.parametrize(
    ("limit", "expected"), [(8, ["heads [1, 2]", "encoder"]), (1, ["heads [1]", "heads [2]", "encoder"])]
)
def test_heads_of_a_batch_go_before_waiting_encoders(
    lane: Lane, pool: ThreadPoolExecutor, limit: int, expected: list[str]
) -> None:
    order: list[str] = []

    def run(items: Sequence[int]) -> list[int]:
        order.append(f"heads {list(items)}")
        return list(items)

    def encode() -> None:
        with lane.turn(Priority.ENCODER, NO_DEADLINE):
            order.append("encoder")

    batcher: Batcher[int, int] = Batcher(run, lane, limit)
    with ExitStack() as stack:
        stack.enter_context(lane.turn(Priority.ENCODER, NO_DEADLINE))
        encoder = pool.submit(encode)
        wait_for(lambda: len(lane._waiting) == 1)
        heads = queued(pool, batcher, [1, 2], {})
        wait_for(lambda: heads_waiting(lane) == (1 if limit == 8 else 2))
    for future in (encoder, *heads):
        future.result(60)
    assert order == expected
