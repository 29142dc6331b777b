"""What torchrun starts: `iog train` with the arguments given, and this process's view of the end in OUT/RANK.pt."""

import os
import sys
from itertools import count
from pathlib import Path

import torch
from iog_export.training import cli, loop

batches, trainers = [], []


class Watched(loop.Trainer):
    def __init__(self, *arguments):
        rank = int(os.environ["RANK"])
        super().__init__(*arguments, clock=count(0.0, 30.0 + rank).__next__)  # clocks never agree
        trainers.append(self)

    def step(self, given):
        batches.append(given[0].inputs)
        return super().step(given)


if __name__ == "__main__":
    cli.Trainer = Watched
    out, *arguments = sys.argv[1:]
    cli.train([*arguments, "--out", out], standalone_mode=False)
    (trainer,) = trainers
    view = {
        "parameters": [parameter.detach() for parameter in trainer.network.parameters()],
        "first_batch": batches[0],
        "steps": trainer.steps,
        "passes": trainer.passes,
        "seconds": trainer.seconds,
        "processes": trainer.machine.processes,
    }
    torch.save(view, Path(out) / f"{os.environ['RANK']}.pt")
