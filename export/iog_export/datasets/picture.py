"""Image files of a data folder, opened as far as their headers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
from iog.errors import ImageTooLarge
from iog.image import DEFAULT_LIMITS
from iog.prompt import Size

from .photograph import DataError


@contextmanager
def opened(path: Path) -> Iterator[PIL.Image.Image]:
    """Within it, the file is open. Raises DataError: it is no image, or larger than the runtime takes images."""
    try:
        DEFAULT_LIMITS.check_bytes(path.stat().st_size)
        with PIL.Image.open(path) as picture:
            DEFAULT_LIMITS.check_size(Size(picture.height, picture.width))
            yield picture
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as e:
        raise DataError(f"{path}: {e.strerror}") from e
    except ImageTooLarge as e:
        raise DataError(f"{path}: {e}") from e
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as e:
        raise DataError(f"{path}: too many pixels; at most {DEFAULT_LIMITS.max_pixels:,} are accepted") from e
    except Exception as e:  # decoders raise whatever corrupt bytes lead them to
        raise DataError(f"{path} cannot be read as an image") from e
