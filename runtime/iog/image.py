"""Encoded bytes -> RGB pixels, within limits; and the digest by which an image is known."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps

from iog.arrays import UInt8Array
from iog.blocks import check_blocks
from iog.errors import ImageTooLarge, InvalidImage, OutOfMemory
from iog.prompt import Size

logger = logging.getLogger(__name__)

MAX_SIDE = 1_000_000  # of what OpenCV encodes as PNG
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # TIFF's tag, and the value for negatives
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # of Pillow's many decoders, those that photographs come in


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is refused unread. An image of max_pixels takes three times as many bytes when decoded."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.max_pixels < 1:
            raise ValueError(
                f"images of at most {self.max_bytes} bytes and {self.max_pixels} pixels; expected 1 or more"
            )

    def check_bytes(self, count: int) -> None:
        """Raise ImageTooLarge if an encoded image of so many bytes is not accepted."""
        if count > self.max_bytes:
            raise ImageTooLarge(f"image of {count:,} bytes; at most {self.max_bytes:,} are accepted")

    def check_size(self, size: Size) -> None:
        """Raise ImageTooLarge if an image of this size is not accepted."""
        if size.width * size.height > self.max_pixels:
            raise ImageTooLarge(
                f"image of {size} pixels; at most {self.max_pixels:,} are accepted, unless --max-image-pixels, or "
                "ImageLimits, says otherwise"
            )
        if max(size.width, size.height) > MAX_SIDE:
            raise ImageTooLarge(f"image of {size} pixels; at most {MAX_SIDE:,} are accepted on a side")


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A decoded image.

    pixels: (H, W, 3) uint8, RGB, upright (EXIF orientation applied), read-only.
    digest: sha256, in hex, of the encoded bytes (of shape and pixels for an image made from an array).
    """

    pixels: UInt8Array
    digest: str

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        return Size(self.pixels.shape[0], self.pixels.shape[1])

    @classmethod
    def decode(cls, data: bytes, limits: ImageLimits = DEFAULT_LIMITS, digest: str | None = None) -> Image:
        """Decode JPEG, PNG, WebP, TIFF, BMP or GIF (first frame): gray, palette, CMYK, alpha (dropped) and 16-bit too.

        digest: of `data`, where the caller has it already.
        Raises ImageTooLarge from the header alone, InvalidImage for anything that does not decode completely.
        """
        limits.check_bytes(len(data))
        check_blocks(data)
        try:
            with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                limits.check_size(Size(picture.height, picture.width))
                picture.load()
                _turn_upright(picture)
                pixels = _rgb(picture)
        except InvalidImage:
            raise
        except MemoryError as e:
            raise OutOfMemory(f"no memory to decode an image of {len(data):,} bytes; repeat the request later") from e
        except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as e:
            opened = 2 * (PIL.Image.MAX_IMAGE_PIXELS or 0)
            raise ImageTooLarge(
                f"image of more than the {opened:,} pixels that Pillow opens; at most {limits.max_pixels:,} are taken"
            ) from e
        except PIL.UnidentifiedImageError as e:
            raise InvalidImage(f"{len(data):,} bytes that are no image; expected one of {', '.join(FORMATS)}") from e
        except Exception as e:  # decoders raise whatever corrupt bytes lead them to
            raise InvalidImage(f"image of {len(data):,} bytes cannot be decoded: {e}; is it truncated?") from e
        pixels.flags.writeable = False
        return cls(pixels, digest or digest_of(data))

    @classmethod
    def read(cls, path: str | os.PathLike[str], limits: ImageLimits = DEFAULT_LIMITS) -> Image:
        """Decode a file."""
        return cls.decode(read_bytes(path, limits), limits)

    @classmethod
    def from_array(cls, pixels: UInt8Array) -> Image:
        """Take (H, W, 3) RGB or (H, W) gray pixels as they are; do not change them afterwards."""
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
            raise InvalidImage(f"array of {pixels.dtype} {pixels.shape}; expected uint8 (H, W, 3) RGB or (H, W) gray")
        if 0 in pixels.shape:
            raise InvalidImage(f"array of shape {pixels.shape} has no pixels")
        if max(pixels.shape) > MAX_SIDE:
            raise ImageTooLarge(f"array of shape {pixels.shape}; at most {MAX_SIDE:,} pixels are accepted on a side")
        rgb = np.ascontiguousarray(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)).view()
        rgb.flags.writeable = False
        digest = hashlib.sha256(f"rgb8 {rgb.shape}".encode())
        digest.update(rgb.data)
        return cls(rgb, digest.hexdigest())

    @classmethod
    def of(cls, source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> Image:
        """From whatever a caller has: encoded bytes, a path, an array, or an Image."""
        if isinstance(source, Image):
            return source
        if isinstance(source, bytes | bytearray | memoryview):
            return cls.decode(bytes(source), limits)
        if isinstance(source, np.ndarray):
            return cls.from_array(source)
        return cls.read(source, limits)

    def to_png(self) -> bytes:
        """Lossless encoding, for images that have no encoded bytes yet."""
        return cv2.imencode(".png", cv2.cvtColor(self.pixels, cv2.COLOR_RGB2BGR))[1].tobytes()


ImageSource: TypeAlias = Image | bytes | bytearray | memoryview | str | os.PathLike[str] | UInt8Array


def digest_of(data: bytes | memoryview) -> str:
    """The name under which encoded bytes are cached: sha256 in hex."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(path: str | os.PathLike[str], limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """An image file's bytes. Raises InvalidImage if it cannot be read, ImageTooLarge without reading it."""
    try:
        limits.check_bytes(os.stat(path).st_size)
        with open(path, "rb") as file:
            data = file.read(limits.max_bytes + 1)  # devices and pipes have size 0 and no end
    except TypeError as e:
        raise TypeError(
            f"an image of type {type(path).__name__}; expected encoded bytes, a path, an (H, W, 3) uint8 RGB array or "
            "an iog.Image (of a Pillow image: numpy.asarray(picture.convert('RGB')))"
        ) from e
    except OSError as e:
        raise InvalidImage(f"{os.fspath(path)}: {e.strerror or e}") from e
    except ValueError as e:  # with a NUL in it
        raise InvalidImage(f"{os.fspath(path)!r} is no path: {e}") from e
    limits.check_bytes(len(data))
    return data


def _turn_upright(picture: PIL.Image.Image) -> None:
    """As its EXIF says; one that cannot be read says nothing."""
    try:
        picture.getexif()  # from here on it is known without its bytes
        # NB: exif_transpose writes these anew where it finds them, which fails for tags of odd types.
        for key in ("exif", "Raw profile type exif"):
            picture.info.pop(key, None)
        PIL.ImageOps.exif_transpose(picture, in_place=True)
    except MemoryError:
        raise
    except Exception as e:  # whatever corrupt bytes lead to
        logger.debug("EXIF that cannot be read: %s", e)


def _rgb(picture: PIL.Image.Image) -> UInt8Array:
    if picture.mode.startswith("I"):  # 16-bit gray: Pillow's own conversion would clip at 255
        gray = np.asarray(picture)
        if gray.min() < 0 or gray.max() > 65535:
            raise InvalidImage(f"gray image with values {gray.min()}..{gray.max()}; expected at most 16 bits")
        if getattr(picture, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:  # which Pillow heeds up to 8 bits
            gray = 65535 - gray.astype(np.int32)
        return np.repeat((gray.astype(np.uint32) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode == "F":
        raise InvalidImage("image of floating-point samples; expected 8 or 16 bits")
    picture.info.pop("transparency", None)  # dropped; Pillow warns of palettes whose alpha it cannot express in RGB
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
