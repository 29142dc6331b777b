import logging
import multiprocessing
import threading

import pytest
from iog_export.training.interrupt import left_to_the_parent
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import Progress


def complain() -> None:
    left_to_the_parent(0)
    logging.getLogger("iog_export").warning("passed over: a photograph")
    print("and so do libraries")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_loader_speaks_whoever_held_the_progress_bars_locks_when_it_was_forked(monkeypatch, capfd):
    console = Console(stderr=True, force_terminal=True)
    monkeypatch.setattr(logging.root, "handlers", [RichHandler(console=console)])
    loader = multiprocessing.get_context("fork").Process(target=complain, daemon=True)
    held, forked = threading.Event(), threading.Event()

    def redraw() -> None:
        with console._lock:
            held.set()
            forked.wait()

    thread = threading.Thread(target=redraw)
    with Progress(console=console, auto_refresh=False):
        thread.start()
        held.wait()
        loader.start()
        forked.set()
        thread.join()
    loader.join(20)
    try:
        assert loader.exitcode == 0
    finally:
        loader.kill()
    assert "passed over: a photograph" in capfd.readouterr().err
