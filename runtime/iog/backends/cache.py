"""Where engines keep what takes them long to make."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory(*names: str) -> Path | None:
    """`iog-runtime/NAMES` in $XDG_CACHE_HOME or ~/.cache, made if need be; None where it cannot be: nothing is kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        directory = (Path(base) if base else Path("~/.cache").expanduser()).joinpath("iog-runtime", *names)
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: nobody knows the home directory
        return None
    return directory
