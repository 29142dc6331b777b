"""Until when a caller waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from iog.errors import DeadlineExceeded

LOOK_AGAIN_S = 0.25  # whether a caller still waits


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment of the monotonic clock, or none.

    waiting: whether the caller still does; one that has hung up, or cancelled, has reached its deadline.
    """

    at: float | None = None
    waiting: Callable[[], bool] | None = None

    @classmethod
    def after(cls, seconds: float | None, waiting: Callable[[], bool] | None = None) -> Deadline:
        """So many seconds from now; None, or more than a lock can wait (gRPC's "never"), for no deadline.

        Raises ValueError for NaN, which never comes and leaves no time.
        """
        if seconds is not None and seconds != seconds:
            raise ValueError(f"a deadline in {seconds} seconds; expected a number of seconds, or None")
        at = None if seconds is None or seconds > threading.TIMEOUT_MAX else time.monotonic() + seconds
        return cls(at, waiting)

    def remaining(self) -> float | None:
        """Seconds left, 0 at least; None for no deadline."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    def pause(self) -> float | None:
        """Seconds to wait for something else before the next `check`: a caller that gives up wakes nobody."""
        remaining = self.remaining()
        if self.waiting is None:
            return remaining
        return LOOK_AGAIN_S if remaining is None else min(remaining, LOOK_AGAIN_S)

    @property
    def passed(self) -> bool:
        """Whether nobody waits any more."""
        late = self.at is not None and time.monotonic() >= self.at
        return late or (self.waiting is not None and not self.waiting())

    def check(self, doing: str) -> None:
        """Raise DeadlineExceeded if it has passed."""
        if self.at is not None and time.monotonic() >= self.at:
            raise DeadlineExceeded(f"the deadline passed while {doing}; the request may be repeated")
        if self.waiting is not None and not self.waiting():
            raise DeadlineExceeded(f"the caller gave up while {doing}")


NO_DEADLINE = Deadline()
