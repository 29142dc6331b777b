"""A server in a process of its own, as users start it, and its memory."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from iog.cli import Defect, Refused

READY_S = 120.0
STOPPED_S = 30.0


@dataclass(frozen=True)
class Served:
    """A running server."""

    address: str
    pid: int

    def resident(self) -> int | None:
        """Bytes of memory it holds now; None where the system has no /proc."""
        return self._memory("VmRSS")

    def peak(self) -> int | None:
        """Bytes of memory it held at most."""
        return self._memory("VmHWM")

    def _memory(self, field: str) -> int | None:
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except FileNotFoundError:
            return None
        found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
        return int(found[1]) * 1024 if found else None


@contextmanager
def served(*arguments: str) -> Iterator[Served]:
    """`iog serve` with these options on a free port of this machine; stopped at the end, whatever happens."""
    command = [sys.executable, "-m", "iog.cli", "serve", "--port", "0", *arguments]
    with tempfile.TemporaryFile("a+") as log:  # appended to: reading moves the position that both share
        # its own session: Ctrl-C reaches us alone, and we stop it once
        process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            yield Served(_ready(process, log, command), process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOPPED_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(process: subprocess.Popen[bytes], log: IO[str], command: Sequence[str]) -> str:
    end = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < end:
        log.seek(0)
        if found := re.search(r"serving .* on (\S+)$", log.read(), re.MULTILINE):
            return found[1]
        time.sleep(0.1)
    log.seek(0)
    problem = Refused if process.poll() == 2 else Defect  # as `iog` ends
    last = (log.read().strip().splitlines() or ["it said nothing"])[-1]
    raise problem(f"`{' '.join(command[1:])}` did not start: {last}")
