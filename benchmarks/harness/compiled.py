"""torch.compile, in a process of its own: its C++ compilation may take minutes, and is given up after a time."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch
from iog.arrays import FloatArray

from .host import Seen
from .networks import NotRun, Published, use_allowed_cores


@contextmanager
def compiled(published: Published, limit_s: float) -> Iterator[Callable[[Seen], FloatArray]]:
    """The compiled network, (S/4, S/4) logits of what it sees.

    Raises NotRun if compiling takes longer than `limit_s`, or fails.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_work, args=(theirs, published), daemon=True)
    process.start()
    theirs.close()

    def run(seen: Seen) -> FloatArray:
        ours.send(seen)
        logits: FloatArray = ours.recv()
        return logits

    try:
        if not ours.poll(limit_s):
            raise NotRun(f"compiling took over {limit_s:g} s")
        problem = ours.recv()
        if problem is not None:
            raise NotRun(problem)
        yield run
    except EOFError as e:
        raise NotRun("the process that runs it ended") from e
    finally:
        ours.close()
        process.kill()
        process.join()


def _work(connection: Connection, published: Published) -> None:
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(published.folder.resolve() / "inductor"))
    use_allowed_cores()
    try:
        network, size = torch.compile(published.network), published.size
        with torch.inference_mode():
            network(torch.zeros(1, 5, size, size), torch.zeros(1, 2, size, size))
    except Exception as e:
        connection.send(f"{type(e).__name__}: {str(e).strip().splitlines()[0][:200]}")
        return
    connection.send(None)
    with torch.inference_mode():
        while True:
            try:
                seen: Seen = connection.recv()
            except (EOFError, KeyboardInterrupt):
                return
            logits = network(torch.from_numpy(seen.inputs()), torch.from_numpy(seen.all_clicks())).logits
            connection.send(logits[0, 0].numpy())
