import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from iog.errors import ImageTooLarge, InvalidImage, OutOfMemory
from iog.image import FORMATS, Image, ImageLimits, digest_of
from iog.prompt import Size

RAMP = (np.indices((40, 60)).sum(0)[..., None] * (2, 1, 0) + (0, 50, 99)).astype(np.uint8)  # (40, 60, 3), smooth
GRAY16 = (np.indices((40, 60)).sum(0) * 650).astype(np.uint16)
ORIENTATION = 0x0112


def encoded(pixels: object, kind: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    picture = PIL.Image.fromarray(np.asarray(pixels))
    buffer = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_decodes(kind: str) -> None:
    image = Image.decode(encoded(RAMP, kind))
    assert image.pixels.shape == (40, 60, 3)
    assert image.pixels.dtype == np.uint8
    assert image.size == Size(40, 60)
    tolerance = {"JPEG": 8, "WEBP": 8, "GIF": 4}.get(kind, 0)
    assert np.abs(image.pixels.astype(int) - RAMP).max() <= tolerance


def test_lossless_pixels_come_back_as_they_were() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (33, 44, 3), np.uint8)
    np.testing.assert_array_equal(Image.decode(encoded(noise)).pixels, noise)
    np.testing.assert_array_equal(Image.decode(Image.from_array(noise).to_png()).pixels, noise)


def test_gray_tiffs_of_16_bits_whose_zero_is_white_are_no_negatives() -> None:
    image = Image.decode(encoded(np.array([[0, 65535], [65535, 0]], np.uint16), "TIFF", tiffinfo={262: 0}))
    np.testing.assert_array_equal(image.pixels[..., 0], [[255, 0], [0, 255]])


def test_a_path_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(InvalidImage, match=r"'a\\x00b' is no path"):
        Image.of("a\0b")


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA"])
def test_gray_palette_and_alpha_become_rgb(mode: str) -> None:
    image = Image.decode(encoded(RAMP, mode=mode))
    expected = PIL.Image.fromarray(RAMP).convert(mode).convert("RGB")
    np.testing.assert_array_equal(image.pixels, np.asarray(expected))


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_the_transparency_of_a_palette_is_dropped(transparency: object) -> None:
    opaque = Image.decode(encoded(RAMP, mode="P"))
    np.testing.assert_array_equal(
        Image.decode(encoded(RAMP, mode="P", transparency=transparency)).pixels, opaque.pixels
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_gray_of_16_bits_keeps_its_range(kind: str) -> None:
    pixels = Image.decode(encoded(GRAY16, kind)).pixels
    np.testing.assert_array_equal(pixels, (GRAY16 // 257).astype(np.uint8)[..., None].repeat(3, axis=2))


def test_rgb_of_16_bits_keeps_its_high_byte() -> None:
    data = cv2.imencode(".png", RAMP[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(Image.decode(data).pixels, RAMP)


def test_samples_without_a_known_range_are_refused() -> None:
    with pytest.raises(InvalidImage, match="at most 16 bits"):
        Image.decode(encoded(np.full((4, 4), 70000, np.int32), "TIFF"))
    with pytest.raises(InvalidImage, match="floating-point"):
        Image.decode(encoded(np.zeros((4, 4), np.float32), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted(kind: str) -> None:
    image = Image.decode(encoded(RAMP, kind, mode="CMYK"))
    assert np.abs(image.pixels.astype(int) - RAMP).max() <= 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.decode(encoded(RAMP, kind, exif=exif))
    upright = RAMP if orientation in (1, 2, 3, 4) else RAMP.transpose(1, 0, 2)
    if orientation in (2, 3, 7, 8):
        upright = upright[:, ::-1] if orientation in (2, 3) else upright[::-1]
    if orientation in (3, 4, 6, 7):
        upright = upright[::-1] if orientation in (3, 4) else upright[:, ::-1]
    assert np.abs(image.pixels.astype(int) - upright).max() <= (8 if kind in ("JPEG", "WEBP") else 0)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"<svg/>", b"%PDF-1.7", b"GIF89a", b"hello" * 1000])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        Image.decode(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_half_an_image_is_refused(kind: str) -> None:
    data = encoded(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8), kind)
    with pytest.raises(InvalidImage):
        Image.decode(data[: len(data) // 2])


@given(st.binary(max_size=200), st.integers(0, 400))
def test_damaged_bytes_decode_or_are_refused(garbage: bytes, at: int) -> None:
    data = encoded(RAMP)
    try:
        image = Image.decode(data[:at] + garbage + data[at + len(garbage) :])
    except InvalidImage:
        return
    assert image.pixels.ndim == 3


@pytest.mark.parametrize("side", [9_000, 12_000, 100_000, 2**31 - 1])
def test_a_bomb_is_refused_by_its_header(side: int, recwarn: pytest.WarningsRecorder) -> None:
    data = png_claiming(side, side)
    assert len(data) < 200
    with pytest.raises(ImageTooLarge, match=r"at most 64,000,000"):
        Image.decode(data)


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_pixels": 0}, {"max_bytes": -1}])
def test_limits_that_take_no_image_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected 1 or more"):
        ImageLimits(**limits)


def test_limits_count_bytes_and_pixels() -> None:
    data = encoded(RAMP)
    assert Image.decode(data, ImageLimits(len(data), RAMP.size // 3)).size == Size(40, 60)
    with pytest.raises(ImageTooLarge, match=f"{len(data):,} bytes; at most {len(data) - 1:,}"):
        Image.decode(data, ImageLimits(max_bytes=len(data) - 1))
    with pytest.raises(ImageTooLarge, match="60x40 pixels; at most 2,399"):
        Image.decode(data, ImageLimits(max_pixels=2399))


def test_what_cannot_be_an_image_is_told_what_can() -> None:
    with pytest.raises(TypeError, match=r"type Image; expected encoded bytes, .*of a Pillow image: numpy.asarray"):
        Image.of(PIL.Image.new("RGB", (4, 4)))  # type: ignore[arg-type]


def test_a_file_is_read_within_limits(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encoded(RAMP))
    np.testing.assert_array_equal(Image.read(path).pixels, RAMP)
    np.testing.assert_array_equal(Image.of(str(path)).pixels, RAMP)
    with pytest.raises(ImageTooLarge):
        Image.read(path, ImageLimits(max_bytes=10))
    with pytest.raises(InvalidImage, match=r"none\.png: No such file"):
        Image.read(tmp_path / "none.png")
    with pytest.raises(InvalidImage, match="directory"):
        Image.read(tmp_path)


def test_a_device_without_end_is_refused() -> None:
    assert os.stat("/dev/zero").st_size == 0
    with pytest.raises(ImageTooLarge):
        Image.read("/dev/zero", ImageLimits(max_bytes=1000))


def test_the_digest_is_that_of_the_encoded_bytes() -> None:
    data = encoded(RAMP)
    assert Image.decode(data).digest == digest_of(data)
    assert Image.of(bytearray(data)).digest == digest_of(memoryview(data))  # type: ignore[arg-type]


def test_arrays_are_told_apart_by_pixels_and_shape() -> None:
    digests = {
        Image.of(a).digest for a in (RAMP, RAMP[:, :59], RAMP.reshape(60, 40, 3), RAMP + np.uint8(1), RAMP[..., 0])
    }
    assert len(digests) == 5
    assert Image.of(RAMP).digest == Image.of(np.asfortranarray(RAMP)).digest


def test_a_gray_array_becomes_rgb() -> None:
    np.testing.assert_array_equal(Image.of(RAMP[..., 0]).pixels, RAMP[..., :1].repeat(3, axis=2))


@pytest.mark.parametrize(
    "array",
    [RAMP.astype(np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros(5, np.uint8), np.zeros((0, 5, 3), np.uint8)],
    ids=["float", "rgba", "flat", "empty"],
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(InvalidImage, match="array of"):
        Image.of(array)


def test_pixels_cannot_be_changed() -> None:
    mine = RAMP.copy()
    for image in (Image.decode(encoded(RAMP)), Image.decode(encoded(RAMP, mode="L")), Image.of(mine)):
        with pytest.raises(ValueError, match="read-only"):
            image.pixels[0, 0] = 1
        assert Image.of(image) is image
    mine[0, 0] = 1  # the caller's own array stays its own


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0what", b"Exif\0\0II*\0", b"\0" * 40])
def test_exif_that_cannot_be_read_says_nothing(kind: str, exif: bytes) -> None:
    assert Image.decode(encoded(RAMP, kind, exif=exif)).size == Size(*RAMP.shape[:2])


def test_a_jpeg_of_thousands_of_scans_is_refused_unread() -> None:
    progressive = encoded(RAMP, "JPEG", progressive=True)
    start = progressive.rindex(b"\xff\xda")
    Image.decode(progressive)
    with pytest.raises(InvalidImage, match="over 500 scans"):
        Image.decode(progressive[:start] + 1000 * progressive[start:-2] + progressive[-2:])


def test_scans_cannot_be_hidden_behind_markers_that_decoders_skip() -> None:
    progressive = encoded(RAMP, "JPEG", progressive=True)
    start = progressive.rindex(b"\xff\xda")
    scans = 1000 * progressive[start:-2] + progressive[-2:]
    for skipped in (b"\xff\x02\xfe\x00", b"\xff\xd0\xfe\x00", b"\xff\xff\xff"):
        header = progressive[start : start + 12]
        with pytest.raises(InvalidImage, match="over 500 scans"):
            Image.decode(progressive[:start] + header + skipped + scans)


def test_what_lies_behind_a_pngs_end_does_not_count() -> None:
    image = encoded(RAMP, "PNG")
    np.testing.assert_array_equal(Image.decode(image + bytes(1 << 20)).pixels, Image.decode(image).pixels)


def test_what_lies_behind_a_jpegs_picture_does_not_count() -> None:
    behind = 1000 * b"\xff\xda a film \xff\xd9"
    for progressive in (False, True):
        picture = encoded(RAMP, "JPEG", progressive=progressive)
        np.testing.assert_array_equal(Image.decode(picture + behind).pixels, Image.decode(picture).pixels)


@pytest.mark.parametrize(
    ("kind", "block"),
    [
        ("JPEG", b"\xff\xe5\x00\x02"),
        ("JPEG", b"\xff"),
        ("JPEG", b"\xff\xd0"),
        ("PNG", chunk(b"prVt", b"")),
        ("GIF", b"!\xfe\x01x\x00"),
        ("GIF", b"\x00"),
        ("GIF", b"!\x01\x00" + 200 * b"\x01x" + b"\x00"),
        ("GIF", b"!\xff\x0bNETSCAPE2.0\x00" + 200 * b"\x01x" + b"\x00"),
    ],
)
def test_images_made_of_blocks_are_refused_unread(kind: str, block: bytes) -> None:
    """Each of them is looked at in Python, and most are kept, while no other click is answered."""
    image = encoded(RAMP, kind)
    at = {"JPEG": 2, "PNG": 33, "GIF": 13 + (3 << (image[10] % 8 + 1))}[kind]

    def with_blocks(count: int) -> bytes:
        return image[:at] + count * block + image[at:]

    expected = Image.decode(image).pixels
    np.testing.assert_array_equal(Image.decode(with_blocks(20)).pixels, expected)
    with pytest.raises(InvalidImage, match=r"over .* blocks .* no photograph has so many"):
        Image.decode(with_blocks(20_000))


def test_blocks_cannot_be_hidden_in_a_segment_that_pillow_does_not_know() -> None:
    image = encoded(RAMP, "JPEG")
    with pytest.raises(InvalidImage, match=r"over .* blocks"):
        Image.decode(image[:2] + b"\xff\xf0\xff\xff" + 20_000 * b"\xff\xe5\x00\x02" + image[2:])


def test_blocks_of_large_files_are_many() -> None:
    """A PNG in chunks of 2 KiB, a quarter of those that libpng writes, behind a megabyte of text."""
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    image = encoded(pixels, "PNG")
    header, body = image[:33], image[33:]
    data, at = b"", 0
    while body[at + 4 : at + 8] == b"IDAT":
        length = int.from_bytes(body[at : at + 4], "big")
        data += body[at + 8 : at + 8 + length]
        at += 12 + length
    parts = b"".join(chunk(b"IDAT", data[i : i + 2048]) for i in range(0, len(data), 2048))
    assert parts.count(b"IDAT") > 5000
    text = b"".join(chunk(b"tEXt", b"Comment\0" + bytes(1000)) for _ in range(1000))
    np.testing.assert_array_equal(Image.decode(header + text + parts + body[at:]).pixels, pixels)


def test_no_side_is_longer_than_can_be_encoded() -> None:
    with pytest.raises(ImageTooLarge, match="on a side"):
        Image.of(np.zeros((1, 1_000_001), np.uint8))
    with pytest.raises(ImageTooLarge, match="on a side"):
        Image.decode(encoded(np.zeros((1, 1_000_001, 3), np.uint8), "PNG"))


def test_a_lack_of_memory_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: PIL.Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", full)
    with pytest.raises(OutOfMemory, match="repeat"):
        Image.decode(encoded(RAMP, "BMP"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("tag", "odd"),
    [
        (0x0100, struct.pack("<HHI4s", 0x0100, 2, 4, b"big\0")),  # a width in words
        (0x011A, struct.pack("<HHI4s", 0x011A, 2, 3, b"72\0\0")),  # a resolution in words
        (0x0128, struct.pack("<HHIhxx", 0x0128, 8, 1, -5)),  # a negative unit
    ],
)
def test_tags_that_cannot_be_written_do_not_keep_an_image_from_being_turned(kind: str, tag: int, odd: bytes) -> None:
    turned = struct.pack("<HHII", ORIENTATION, 3, 1, 6)
    entries = [turned, odd] if tag > ORIENTATION else [odd, turned]
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + b"".join(entries) + bytes(4)
    assert Image.decode(encoded(RAMP, kind, exif=exif)).size == Size(60, 40)
