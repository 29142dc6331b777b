"""Chunks -> an image's bytes, bounded and checked while they come in."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

from iog.errors import DigestMismatch, InvalidImage
from iog.image import ImageLimits
from iog.v1 import segmentation_pb2 as pb


def read_header(messages: Iterator[pb.UploadImageRequest], limits: ImageLimits) -> pb.UploadHeader:
    """The first message. Raises InvalidImage if it is no header, ImageTooLarge if it announces too much."""
    first = next(messages, None)
    if first is None or first.WhichOneof("part") != "header":
        found = "nothing" if first is None else first.WhichOneof("part") or "an empty message"
        raise InvalidImage(f"upload that starts with {found}; expected a header, then chunks")
    limits.check_bytes(first.header.total_bytes)
    return first.header


def read_chunks(
    messages: Iterator[pb.UploadImageRequest], header: pb.UploadHeader, limits: ImageLimits
) -> tuple[bytes, str]:
    """The image's bytes and their digest.

    Raises ImageTooLarge as soon as a limit is passed, InvalidImage if the upload does not end where its header says,
    DigestMismatch if these are not the bytes that the header names.
    """
    sha256, data, count = hashlib.sha256(), io.BytesIO(), 0  # not a list: chunks may be many and small
    for message in messages:
        if message.WhichOneof("part") != "chunk":
            raise InvalidImage(f"upload with {message.WhichOneof('part')} after its header; expected chunks")
        chunk = message.chunk  # once: each look at it makes a copy
        count += data.write(chunk)
        limits.check_bytes(count)
        sha256.update(chunk)
    if header.total_bytes and count != header.total_bytes:
        raise InvalidImage(f"upload of {count:,} bytes, announced were {header.total_bytes:,}: upload it again")
    digest = sha256.hexdigest()
    if header.digest and digest != header.digest:
        raise DigestMismatch(
            f"uploaded bytes have sha256 {digest}, their header says {header.digest[:64]!r} (expected lower-case hex): "
            "upload them again"
        )
    return data.getvalue(), digest  # which is no copy
