"""`iog`: the command line. A command's module is imported when that command is asked for, and no sooner."""

from __future__ import annotations

import importlib
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import click

import iog
from iog.errors import DeadlineExceeded, Internal, IogError, OutOfMemory, Overloaded, Unavailable

EPILOG = """\b
Coordinates are pixels of the upright image, x to the right, y down, the origin
at the top left corner: the point 12.5,3 lies in the pixel of column 12, row 3.

\b
Options can come from the environment: iog serve --port is IOG_SERVE_PORT.
Exit codes: 0 done, 2 wrong input, 75 repeat it later (no server, or a busy one; out
of time or memory), 1 a defect of iog, 130 interrupted.
"""


class Refused(click.ClickException):
    """What the caller can put right: one line, exit code 2."""

    exit_code = 2


class Later(click.ClickException):
    """What may go well another time: one line, exit code 75, sysexits' EX_TEMPFAIL."""

    exit_code = 75


class Defect(click.ClickException):
    """What should not have happened: one line, exit code 1."""

    exit_code = 1


class LazyCommand(click.Command):
    """Stands for a command of another module, with the line that `iog --help` shows."""

    def __init__(self, name: str, module: str, short_help: str, extra: str | None = None) -> None:
        super().__init__(name, short_help=short_help)
        self._module = module
        self._extra = extra

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of the real command, which is therefore the one that runs."""
        return self._load().make_context(info_name, args, parent, **extra)

    def _load(self) -> click.Command:
        try:
            module = importlib.import_module(self._module)
        except ModuleNotFoundError as e:
            if self._extra is None or (e.name or "").partition(".")[0] in ("iog", "iog_export"):
                raise
            raise Refused(
                f"`iog {self.name}` needs {e.name}, which is not installed; "
                f"get it with: pip install 'iog-runtime[{self._extra}]'"
            ) from e
        command = getattr(module, str(self.name))
        assert isinstance(command, click.Command)
        return command


class Commands(click.Group):
    """Says in one line on stderr what went wrong; a traceback only if --debug asks for it."""

    def invoke(self, ctx: click.Context) -> Any:
        """Turn what commands raise into Refused, Later or Defect."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as e:
            if ctx.params["debug"]:
                traceback.print_exc()
            if isinstance(e, Internal):  # a server's
                raise Defect(_message(e)) from e
            if isinstance(e, Unavailable | Overloaded | DeadlineExceeded | OutOfMemory):
                raise Later(_message(e)) from e
            if isinstance(e, IogError | OSError):
                raise Refused(_message(e)) from e
            raise Defect(
                f"internal error, {type(e).__name__}: {e}; `iog --debug {ctx.invoked_subcommand} ...` shows where"
            ) from e

    def main(  # type: ignore[override]  # of overloads that say when it returns
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run and exit, as click does, but with our messages and exit codes."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        try:
            code = super().main(args, prog_name, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as e:
            e.show()
            sys.exit(2)
        except click.UsageError as e:
            command = e.ctx.command_path if e.ctx else "iog"
            click.echo(f"iog: {_first_lower(e.format_message())} (see `{command} --help`)", err=True)
            sys.exit(2)
        except click.ClickException as e:
            click.echo(f"iog: {e.format_message()}", err=True)
            sys.exit(e.exit_code)
        except click.Abort:
            sys.exit(130)
        except BrokenPipeError:  # the reader of our output has gone, as `head` does
            sys.stdout = None  # nothing may be flushed into it at exit
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(
    cls=Commands,
    epilog=EPILOG,
    context_settings={
        "auto_envvar_prefix": "IOG",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "show_default": True,
    },
)
@click.version_option(iog.__version__, message="iog %(version)s")
@click.option("--debug", is_flag=True, show_envvar=True, help="Show tracebacks of errors.")
def main(debug: bool) -> None:
    """Click-to-mask with Inside-Outside Guidance: a box and a click inside give a mask, more clicks correct it."""
    warnings.filterwarnings("ignore", ".*decompression bomb")  # Pillow's: sizes are checked against our limits


for _command in (
    LazyCommand("segment", "iog.cli.segment", "Mask an object in an image."),
    LazyCommand("serve", "iog.cli.serve", "Serve models over gRPC."),
    LazyCommand("inspect", "iog.cli.inspect", "Verify a model bundle and show what is in it."),
    LazyCommand("models", "iog.cli.models", "List the packaged models, or those of a server."),
    LazyCommand("export", "iog_export.cli", "Make a bundle of a PyTorch checkpoint.", extra="cpu,export"),
    LazyCommand("train", "iog_export.training.cli", "Train a network.", extra="train"),
    LazyCommand(
        "evaluate", "iog_export.evaluation.cli", "Measure a bundle on labelled photographs.", extra="cpu,evaluate"
    ),
):
    main.add_command(_command)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    return "; ".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())])


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:]
