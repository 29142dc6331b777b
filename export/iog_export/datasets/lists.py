"""List files: which photographs of a data folder are meant."""

from __future__ import annotations

from pathlib import Path

from .photograph import DataError


def read_list(path: Path, expected: str) -> list[str]:
    """The names in a file, one a line, each once; blank lines and lines that start with # are left out.

    expected: what a name looks like, for messages. Raises DataError.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}; expected a list file with one {expected} per line") from e
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is no text; expected a list file with one {expected} per line") from e
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not names:
        raise DataError(f"{path} is empty; expected one {expected} per line")
    return list(dict.fromkeys(names))
