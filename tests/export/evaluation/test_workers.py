import pickle
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from iog.errors import BackendUnavailable
from iog_export.evaluation.measure import Bench
from iog_export.evaluation.records import Record
from iog_export.evaluation.workers import measured


@pytest.fixture
def items(data):
    return [item for item in data.items if item.name in ("discs/0", "bars/0")]


def by_key(records):
    return {record.key: record for record in records}


def test_two_workers_measure_what_one_measures(data, items, settings, split_bundle):
    given = settings(backend="ort", clicks=8, sweep=True)
    bench = partial(Bench.open, data, given, split_bundle, 1)
    alone, together = (by_key(measured(bench, items, workers)) for workers in (1, 2))
    assert alone == together
    assert set(alone) == {item.key for item in items}


def test_an_error_of_a_worker_is_the_callers(data, items, settings, split_bundle):
    bench = partial(Bench.open, data, settings(backend="absent"), split_bundle, 1)
    for workers in (1, 2):
        with pytest.raises(BackendUnavailable, match="absent"):
            list(measured(bench, items, workers))


class Marking:
    """A bench that leaves a file for each item that it begins."""

    def __init__(self, folder):
        self.folder = folder

    def measure(self, item):
        (self.folder / f"{item.name.replace('/', '-')}-{item.id}").touch()
        time.sleep(0.2)
        return Record.of(item, None, {}, {})


def test_a_closed_iterator_stops_its_workers(tmp_path, items):
    many = [replace(items[0], id=number) for number in range(200)]
    records = measured(partial(Marking, tmp_path), many, 2)
    next(records)
    records.close()
    begun = len(list(tmp_path.iterdir()))
    time.sleep(1.0)
    assert len(list(tmp_path.iterdir())) == begun < 50


MEASURING = """
import os, pickle, sys, time
from functools import partial
from pathlib import Path
from iog_export.evaluation.records import Record
from iog_export.evaluation.workers import measured

class Marking:
    def __init__(self, folder):
        (folder / f"{os.getpid()}.pid").touch()

    def measure(self, item):
        time.sleep(0.1)
        return Record.of(item, None, {}, {})

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    list(measured(partial(Marking, folder), pickle.loads((folder / "items").read_bytes()), 2))
"""


def test_workers_end_with_their_parent(tmp_path, items):
    (tmp_path / "items").write_bytes(pickle.dumps([replace(items[0], id=number) for number in range(2000)]))
    (tmp_path / "script.py").write_text(MEASURING)
    parent = subprocess.Popen([sys.executable, tmp_path / "script.py", tmp_path])
    workers = wait_until(lambda: len(pids := list(tmp_path.glob("*.pid"))) == 2 and [int(p.stem) for p in pids])
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(alive(pid) for pid in workers))


def alive(pid):
    """Whether it runs; one that ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(found):
    end = time.monotonic() + 60
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def test_nothing_to_measure_opens_no_model():
    assert list(measured(lambda: pytest.fail("opened"), [], 2)) == []
