"""One benchmark's figures with what they belong to, as JSON; `report.py` reads them."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from .environment import environment, load

EAGER = "PyTorch eager, whole network"  # the competitor to whom ratios are given
WIDTH = None if sys.stderr.isatty() else 140
console = Console(stderr=True, highlight=False, width=WIDTH)
json_option = click.option(
    "--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write figures and environment here."
)


class Record:
    """Figures under the environment in which they were measured.

    benchmark: the script's name, by which `report.py` knows what it reads. settings: what was asked for.
    """

    def __init__(self, benchmark: str, **settings: Any) -> None:
        self._data: dict[str, Any] = {
            "benchmark": benchmark,
            "environment": environment(),
            "settings": settings,
        }

    def note(self, **settings: Any) -> None:
        """What turned out later of what is measured."""
        self._data["settings"].update(settings)

    def write(self, results: Any, path: Path | None) -> None:
        """Complete the record; to `path` if there is one."""
        self._data["environment"]["load_after"] = load()
        self._data["results"] = results
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self._data, indent=1) + "\n", encoding="utf-8")
            console.print(f"wrote {path}")


def run(command: click.Command) -> None:
    """From the command line. Wrong use: exit code 2; Ctrl-C: all that was started is stopped, exit code 130."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # by way of all `finally`
    try:
        command.main(standalone_mode=False)
    except click.UsageError as e:
        e.show()
        sys.exit(2)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        console.print("interrupted; nothing was written")
        sys.exit(130)
