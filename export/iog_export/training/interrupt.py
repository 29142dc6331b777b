"""Ctrl-C and SIGTERM as a wish to stop, which the training grants between two steps; what loaders do of it."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Within it, the first signal makes what it gives return True, and the second one raises KeyboardInterrupt.

    For the main thread.
    """
    event = threading.Event()

    def asked(*_: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    previous = {number: signal.signal(number, asked) for number in SIGNALS}
    try:
        yield event.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def deaths_of_children_unheard() -> Iterator[None]:
    """Take back what is made of SIGCHLD within it.

    A `DataLoader` would raise the death of a worker anywhere, even in the middle of a step. The next wait for a batch
    raises it too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, previous)


def left_to_the_parent(worker: int) -> None:
    """In a process that prepares batches: the terminal's Ctrl-C reaches it too, and the parent decides what follows.

    What it says goes straight to stderr: a thread that redrew the progress bar when this process was forked off holds
    the locks of all that writes through that, here for ever.
    """
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[logging.StreamHandler()], force=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
