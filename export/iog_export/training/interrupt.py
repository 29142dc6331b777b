"""Ctrl-C and SIGTERM as a wish to stop, which the training grants between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Within it, the signals do nothing but make the value it gives return True. For the main thread."""
    event = threading.Event()
    previous = {number: signal.signal(number, lambda *_: event.set()) for number in SIGNALS}
    try:
        yield event.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def left_to_the_parent(worker: int) -> None:
    """In a process that prepares batches: the terminal's Ctrl-C reaches it too, and the parent decides what follows."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
