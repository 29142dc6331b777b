import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from iog.deadline import NO_DEADLINE, Deadline
from iog.errors import DeadlineExceeded
from iog.lane import Lane, Priority


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as executor:
        yield executor


class Queue:
    """Callers in a lane's queue, in a known order, and the order in which they had their turns."""

    def __init__(self, lane: Lane, pool: ThreadPoolExecutor) -> None:
        self._lane, self._pool = lane, pool
        self.order: list[str] = []
        self.calls = []  # type: ignore[var-annotated]

    def add(self, name: str, priority: Priority, *, gives_up: bool = False) -> None:
        queued = threading.Event()

        class Queued(Deadline):
            def remaining(self) -> float | None:
                queued.set()  # asked right before the wait
                return None

            def check(self, doing: str) -> None:
                if gives_up:
                    raise DeadlineExceeded(doing)

        def call() -> None:
            with self._lane.turn(priority, Queued()):
                self.order.append(name)

        self.calls.append(self._pool.submit(call))
        assert queued.wait(60)

    def finish(self) -> list[str]:
        for call in self.calls:
            call.result(60)
        return self.order


def is_free(lane: Lane) -> bool:
    with lane.turn(Priority.ENCODER, Deadline.after(10)):
        return True


def test_heads_overtake_waiting_encoders(pool: ThreadPoolExecutor) -> None:
    lane = Lane()
    queue = Queue(lane, pool)
    with lane.turn(Priority.ENCODER, NO_DEADLINE):
        for name in ("encoder 1", "encoder 2", "head 1", "encoder 3", "head 2"):
            queue.add(name, Priority.HEAD if "head" in name else Priority.ENCODER)
    assert queue.finish() == ["head 1", "head 2", "encoder 1", "encoder 2", "encoder 3"]


def test_who_gives_way_lets_heads_go_and_no_encoder(pool: ThreadPoolExecutor) -> None:
    lane = Lane()
    queue = Queue(lane, pool)
    with lane.turn(Priority.ENCODER, NO_DEADLINE) as give_way:
        give_way()  # nobody waits
        for name in ("encoder 1", "head 1", "head 2"):
            queue.add(name, Priority.HEAD if "head" in name else Priority.ENCODER)
        give_way()
        assert queue.order == ["head 1", "head 2"]
        assert not lane._waiting[0].called.is_set()
    assert queue.finish() == ["head 1", "head 2", "encoder 1"]
    assert is_free(lane)


def test_as_many_as_the_width_run_at_a_time(pool: ThreadPoolExecutor) -> None:
    lane = Lane(2)
    together = threading.Barrier(2)

    def call() -> None:
        with lane.turn(Priority.HEAD, NO_DEADLINE):
            together.wait(60)

    for future in [pool.submit(call) for _ in range(6)]:
        future.result(60)
    two = lane.turn(Priority.HEAD, NO_DEADLINE), lane.turn(Priority.HEAD, NO_DEADLINE)
    with two[0], two[1], pytest.raises(DeadlineExceeded), lane.turn(Priority.HEAD, Deadline.after(0.01)):
        raise AssertionError("three in a lane of two")


def test_who_stops_waiting_holds_up_no_one(pool: ThreadPoolExecutor) -> None:
    lane = Lane()
    queue = Queue(lane, pool)
    with lane.turn(Priority.ENCODER, NO_DEADLINE):
        too_late = lane.turn(Priority.HEAD, Deadline.after(0.01))
        with pytest.raises(DeadlineExceeded, match="waiting for the device"), too_late:
            raise AssertionError("two in a lane of one")
        queue.add("behind it", Priority.ENCODER)
    assert queue.finish() == ["behind it"]
    assert is_free(lane)


def test_who_gives_up_at_its_turn_passes_it_on(pool: ThreadPoolExecutor) -> None:
    lane = Lane()
    queue = Queue(lane, pool)
    with lane.turn(Priority.ENCODER, NO_DEADLINE):
        queue.add("encoder", Priority.ENCODER)
        queue.add("head", Priority.HEAD, gives_up=True)
    queue.calls[0].result(60)
    assert queue.order == ["encoder"]
    assert isinstance(queue.calls[1].exception(60), DeadlineExceeded)


def test_a_deadline_that_has_passed_takes_no_turn() -> None:
    lane = Lane()
    with pytest.raises(DeadlineExceeded), lane.turn(Priority.HEAD, Deadline.after(-1)):
        raise AssertionError("too late")
    assert is_free(lane)


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_a_failure_gives_the_turn_back(error: BaseException) -> None:
    lane = Lane()
    with pytest.raises(type(error)), lane.turn(Priority.HEAD, NO_DEADLINE):
        raise error
    assert is_free(lane)


def test_an_interrupt_while_waiting_leaves_the_queue(pool: ThreadPoolExecutor) -> None:
    class Interrupted(Deadline):
        def remaining(self) -> float | None:
            raise KeyboardInterrupt

    lane = Lane()
    queue = Queue(lane, pool)
    with lane.turn(Priority.ENCODER, NO_DEADLINE):
        queue.add("first", Priority.ENCODER)
        with pytest.raises(KeyboardInterrupt), lane.turn(Priority.HEAD, Interrupted()):
            raise AssertionError("interrupted before its turn")
    assert queue.finish() == ["first"]
    assert is_free(lane)


def test_a_lane_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 or more"):
        Lane(0)


@pytest.mark.parametrize("seconds", [None, float("inf"), 1e18])
def test_a_deadline_that_never_comes_can_be_waited_for(pool: ThreadPoolExecutor, seconds: float | None) -> None:
    lane = Lane()
    with lane.turn(Priority.HEAD, NO_DEADLINE):
        call = pool.submit(lambda: lane.turn(Priority.HEAD, Deadline.after(seconds)).__enter__())
    call.result(60)
