"""What is remembered between requests: values under a byte budget, each computed once however many ask."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from iog.arrays import Array, FloatArray, Held
from iog.bundle import Manifest
from iog.crop import Crop
from iog.deadline import NO_DEADLINE, Deadline
from iog.errors import DeadlineExceeded, UnknownImage

RECENT = 2
# Says nothing of a value: other callers have more time, or the image's bytes.
GIVEN_UP = (DeadlineExceeded, UnknownImage)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class FeatureKey(NamedTuple):
    """All that encoder outputs depend on.

    bundle: its digest; where features stay on a device, that of one load of it.
    """

    bundle: str
    image_digest: str
    crop: Crop
    initial: bytes  # network points of the initial guidance


class ClickState(NamedTuple):
    """The click map and the clicks it stands for. Replaced as a whole, never changed."""

    refinements: tuple[tuple[int, int, bool], ...]  # network x, y, positive; the initial points are always in
    map: FloatArray  # (1, 64, g, g): the click branch's response minus its response to no clicks


@dataclass
class Features:
    """Encoder outputs of one object, its click map without refinements, and the last ones that were made for it.

    recent: RECENT at most, the latest last: one more than a next click needs, so that taking one back is free too.
    """

    tensors: Mapping[str, Array | Held]
    initial: ClickState
    recent: tuple[ClickState, ...] = ()

    @property
    def nbytes(self) -> int:
        """Of the tensors and of all click maps that there may be."""
        return sum(t.nbytes for t in self.tensors.values()) + (1 + RECENT) * self.initial.map.nbytes

    def nearest(self, refinements: tuple[tuple[int, int, bool], ...]) -> ClickState:
        """Of the click maps that stand for the first of these refinements, the one with the most of them."""
        states = (self.initial, *self.recent)
        return max(
            (s for s in states if refinements[: len(s.refinements)] == s.refinements), key=lambda s: len(s.refinements)
        )

    def remember(self, state: ClickState) -> None:
        """As the latest that was used; the initial one is always there."""
        if state is not self.initial:
            others = tuple(other for other in self.recent if other is not state)
            self.recent = (*others[1 - RECENT :], state)


def object_bytes(manifest: Manifest) -> int:
    """What an object takes of the budget for features; 0 for a model that has none."""
    if manifest.kind != "split":
        return 0
    (clicks,) = (t for t in manifest.graphs["head"].inputs if t.name == "clicks")
    return sum(t.nbytes for t in manifest.graphs["encoder"].outputs) + (1 + RECENT) * clicks.nbytes


class LRU(Generic[K, V]):
    """Least recently used values under a byte budget; thread-safe.

    One computation per key is in flight: later callers wait for it. Only one entry that is larger than the whole budget
    exceeds it, alone, until the next one comes.
    """

    def __init__(self, budget: int, size_of: Callable[[V], int]) -> None:
        if budget < 0:
            raise ValueError(f"cache budget of {budget} bytes; expected 0 or more")
        self.budget = budget
        self.nbytes = 0
        self._size_of = size_of
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._in_flight: dict[K, Future[V]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K) -> V | None:
        """The value, which becomes the most recently used one."""
        with self._lock:
            return self._get(key)

    def put(self, key: K, value: V) -> None:
        """Keep a value, evicting the least recently used ones."""
        with self._lock:
            self._put(key, value)

    def evict(self, count: int, among: Callable[[K], bool] = lambda key: True) -> bool:
        """Forget the `count` least recently used values of those keys; False if there were none."""
        with self._lock:
            keys = list(itertools.islice(filter(among, self._entries), count))
            for key in keys:
                self._forget(key)
        return bool(keys)

    def get_or_compute(
        self, key: K, compute: Callable[[], V], deadline: Deadline = NO_DEADLINE
    ) -> tuple[V, Literal["hit", "miss", "joined"]]:
        """The value, computed by this call ("miss") unless it is held ("hit") or being computed ("joined").

        Raises DeadlineExceeded if the deadline passes while waiting for another call's computation. If that call was
        only GIVEN_UP, or interrupted, this one computes.
        """
        value = self.get(key)
        if value is not None:  # as for nearly all clicks, which need no future
            return value, "hit"
        own = Future[V]()
        try:
            while True:
                with self._lock:
                    value = self._get(key)
                    if value is not None:
                        return value, "hit"
                    other = self._in_flight.setdefault(key, own)
                if other is own:
                    del other
                    break
                try:
                    failure = other.exception(deadline.pause())
                except TimeoutError:
                    deadline.check("another request computed the same value")
                    continue
                except CancelledError:
                    self._withdraw(key, other)
                    continue
                if failure is None:
                    return other.result(), "joined"
                try:
                    raise failure
                finally:
                    del failure, other  # by way of this frame the failure would keep itself and all callers alive
            try:
                value = compute()
                self.put(key, value)
            except Exception as e:
                self._withdraw(key, own)
                if not isinstance(e, GIVEN_UP):
                    own.set_exception(e)
                raise
            self._withdraw(key, own)
            own.set_result(value)
            return value, "miss"
        finally:  # wherever an interrupt has come, nobody waits for what is not computed any more
            own.cancel()
            self._withdraw(key, own)
            del own

    def _withdraw(self, key: K, future: Future[V]) -> None:
        with self._lock:
            if self._in_flight.get(key) is future:
                del self._in_flight[key]

    def _get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def _put(self, key: K, value: V) -> None:
        size = self._size_of(value)
        previous = self._entries.pop(key, None)
        self._entries[key] = (value, size)
        self.nbytes += size - (previous[1] if previous else 0)
        while self.nbytes > self.budget and len(self._entries) > 1:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: K) -> None:
        _, size = self._entries.pop(key)
        self.nbytes -= size
