"""What torchrun starts: `iog train` with the arguments given, and this process's view of the end in OUT/RANK.pt.

TROUBLE names what befalls the second process after its first step. Then OUT/RANK.txt has the error of a process, and
whether there was a checkpoint when it was raised, of which the first process is slow to write.
"""

import multiprocessing
import os
import signal
import sys
import time
from itertools import count
from pathlib import Path

import torch
from iog.errors import IogError
from iog_export.training import cli, loop
from iog_export.training.snapshot import Snapshot

RANK = int(os.environ["RANK"])
batches, trainers = [], []


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


def starve():
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


trouble = {"stop": stop, "starve": starve, "die": die}.get(os.environ.get("TROUBLE"))


class Watched(loop.Trainer):
    def __init__(self, *arguments):
        super().__init__(*arguments, clock=count(0.0, 30.0 + RANK).__next__)  # clocks never agree
        trainers.append(self)

    def step(self, given):
        batches.append(given[0].inputs)
        loss = super().step(given)
        if trouble and RANK == 1 and self.steps == 1:
            trouble()
        return loss

    def run(self, *arguments):
        try:
            return super().run(*arguments)
        except IogError as e:
            written = (self.out / "last.pt").exists()
            (self.out / f"{RANK}.txt").write_text(f"{written} {type(e).__name__}: {e}")
            while not (self.out / "0.txt").exists():  # before torchrun ends the others, as this one has ended
                time.sleep(0.01)
            raise


class Slow(Snapshot):
    def write(self, path):
        time.sleep(0.5)
        super().write(path)


if __name__ == "__main__":
    cli.Trainer = Watched
    loop.Snapshot = Slow
    out, *arguments = sys.argv[1:]
    cli.train([*arguments, "--out", out], standalone_mode=False)
    (trainer,) = trainers
    view = {
        "parameters": [parameter.detach() for parameter in trainer.network.parameters()],
        "statistics": list(trainer.network.buffers()),
        "first_batch": batches[0],
        "steps": trainer.steps,
        "passes": trainer.passes,
        "seconds": trainer.seconds,
        "processes": trainer.machine.processes,
    }
    torch.save(view, Path(out) / f"{RANK}.pt")
