"""Encoded images whose blocks cost far more than their pixels, told before any decoder looks at them.

Pillow looks at each block before the picture in Python and keeps most of them; libjpeg decodes each scan over all of
the picture. A few megabytes made of nothing else take a minute, or gigabytes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TypeVar

from iog.errors import InvalidImage

T = TypeVar("T")

# Photographs have tens of blocks, or such of kilobytes.
_FEW, _USUAL_BYTES = 5000, 1024

# A file of a megabyte may have ten thousand scans, which take minutes. Photographs have ten.
JPEG, _SCAN, _EOI, MAX_SCANS = b"\xff\xd8", 0xDA, 0xD9, 500
# Of segments with a length. Decoders skip the bytes of all others and read on behind them, or refuse them.
_MARKER = re.compile(rb"\xff[\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe]")


def check_blocks(data: bytes) -> None:
    """Raise InvalidImage for an encoded image of more blocks, or scans, than any photograph has."""
    for magic, walk in _WALKS.items():
        if data.startswith(magic):
            _check_count(walk(data), data)
    if data.startswith(JPEG) and data.count(bytes((0xFF, _SCAN))) > MAX_SCANS:
        markers = (marker for _, marker in _check_count(_segments(data), data))
        if sum(marker == _SCAN for marker in markers) > MAX_SCANS:
            raise InvalidImage(
                f"JPEG of over {MAX_SCANS} scans, each of which is decoded over all of it; no photograph has so many"
            )


def _check_count(blocks: Iterable[T], data: bytes) -> list[T]:
    most = _FEW + len(data) // _USUAL_BYTES
    found = list(itertools.islice(blocks, most + 1))
    if len(found) > most:
        raise InvalidImage(
            f"image of over {most:,} blocks in {len(data):,} bytes; no photograph has so many: save it anew"
        )
    return found


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each of a JPEG's segments begins, and its marker, up to the picture's end.

    Behind that, a film or a map of depths may hold any bytes.
    """
    at = len(JPEG)
    while found := _MARKER.search(data, at):
        marker, at = data[found.end() - 1], found.end()
        if marker == _EOI:
            return
        yield found.start(), marker
        at += int.from_bytes(data[at : at + 2], "big")  # of its segment, these two bytes included


def _jpeg(data: bytes) -> Iterator[int]:
    """Of a JPEG, each segment before its first scan, and each byte between them."""
    at = len(JPEG)
    for start, marker in _segments(data):
        yield from range(at, start + 1)
        if marker == _SCAN:
            return
        at = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    yield from range(at, len(data))


def _png(data: bytes) -> Iterator[int]:
    """Each chunk of a PNG, to its end."""
    at = 8
    while at < len(data):
        yield at
        if data[at + 4 : at + 8] == b"IEND":
            return
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _gif(data: bytes) -> Iterator[int]:
    """Of a GIF, each part of an extension before its first picture, and each byte between them."""
    flags = int.from_bytes(data[10:11], "big")
    at = 13 + (3 << (flags % 8 + 1) if flags & 0x80 else 0)  # behind the palette
    while at < len(data) and data[at : at + 1] not in (b",", b";"):
        yield at
        if data[at : at + 1] != b"!":
            at += 1
            continue
        comment, at = data[at + 1 : at + 2] == b"\xfe", at + 2
        if not comment:  # the first part may be empty, and of browsers' own the second one too
            at += 1 + int.from_bytes(data[at : at + 1], "big")
            if data[at - 11 : at].startswith(b"NETSCAPE2.0"):
                at += 1 + int.from_bytes(data[at : at + 1], "big")
        while size := int.from_bytes(data[at : at + 1], "big"):
            yield at
            at += 1 + size
        at += 1


_WALKS: Mapping[bytes, Callable[[bytes], Iterator[int]]] = MappingProxyType(
    {JPEG: _jpeg, b"\x89PNG\r\n\x1a\n": _png, b"GIF8": _gif}
)
