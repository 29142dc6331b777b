"""One benchmark's figures with what they belong to, as JSON; `report.py` reads them."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
from iog.errors import Internal, IogError
from rich.console import Console

from .environment import environment, load

EAGER = "PyTorch eager, whole network"  # the competitor to whom ratios are given
DEFAULT_MODEL = "default model"  # what its competitors run
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
    """From the command line, with the exit codes of `iog` and what went wrong in a line.

    2: wrong input; 1: another failure; 130: Ctrl-C, when all that was started is stopped.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # by way of all `finally`
    try:
        command.main(standalone_mode=False)
    except click.UsageError as e:
        message = e.format_message()
        _stop(f"{message[:1].lower()}{message[1:]} (see `{_script()} --help`)", 2)
    except click.ClickException as e:
        _stop(e.format_message(), e.exit_code)
    except IogError as e:
        _stop("; ".join([str(e), *getattr(e, "__notes__", ())]), 1 if isinstance(e, Internal) else 2)
    except OSError as e:
        if e.filename is None:  # of none that was asked for
            raise
        _stop(f"{e.filename}: {e.strerror}", 2)
    except (click.Abort, KeyboardInterrupt):
        console.print("interrupted; nothing was written")
        sys.exit(130)


def _stop(problem: str, code: int) -> NoReturn:
    click.echo(f"{_script()}: {problem}", err=True)
    sys.exit(code)


def _script() -> str:
    return Path(sys.argv[0]).name
