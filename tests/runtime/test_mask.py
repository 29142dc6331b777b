import io
from collections.abc import Callable

import numpy as np
import PIL.Image
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from iog.arrays import BoolArray
from iog.mask import (
    Bounds,
    from_png,
    from_rings,
    from_rle,
    full_frame,
    threshold,
    to_png,
    to_rings,
    to_rle,
)
from iog.prompt import Size
from pycocotools import mask as coco

Y, X = np.mgrid[:41, :41] - 20
RADII = {"squares": np.maximum(abs(X), abs(Y)), "diamonds": abs(X) + abs(Y), "circles": np.hypot(X, Y).astype(int)}
COMB = np.ones((12, 15), bool)
COMB[1:-1, 1:-1:2] = False
FULL = np.ones((9, 7), bool)
COLUMNS = np.zeros((9, 7), bool)
COLUMNS[:, 2:4] = True  # two full columns and parts of their neighbours: runs join over columns
COLUMNS[5:, 1] = COLUMNS[:3, 4] = True
DIAGONALS = np.indices((8, 8)).sum(0) % 2 == 0
PIXEL = np.zeros((5, 6), bool)
PIXEL[4, 5] = True


@st.composite
def rectangles(draw: st.DrawFn) -> BoolArray:
    """Overlapping rectangles that flip what they cover: nested parts and holes."""
    mask = np.zeros(draw(st.tuples(st.integers(1, 30), st.integers(1, 30))), np.bool_)
    h, w = mask.shape
    for _ in range(draw(st.integers(0, 8))):
        y, x = draw(st.integers(0, h - 1)), draw(st.integers(0, w - 1))
        mask[y : y + draw(st.integers(1, h)), x : x + draw(st.integers(1, w))] ^= True
    return mask


masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=16)) | rectangles()


def with_shapes(test: Callable[[BoolArray], None]) -> Callable[[], None]:
    """Run a test on the shapes that are hardest to outline and to count, too."""
    for shape in [FULL, ~FULL, COLUMNS, DIAGONALS, ~DIAGONALS, PIXEL, ~PIXEL, COMB, ~COMB]:
        test = example(shape)(test)
    for radius in RADII.values():
        for width in (1, 2, 3):
            test = example(radius // width % 2 == 0)(example(radius // width % 2 == 1)(test))
    return given(masks)(test)


def cut(mask: BoolArray, x0: int = 0, y0: int = 0) -> tuple[BoolArray, Bounds]:
    return threshold(mask.astype(np.float32), 0.5, x0, y0)


@with_shapes
def test_bounds_are_tight_and_hold_the_mask(mask: BoolArray) -> None:
    region, bounds = cut(mask)
    assert region.shape == (bounds.height, bounds.width)
    np.testing.assert_array_equal(full_frame(region, bounds, Size(*mask.shape)), mask)
    if region.size:
        assert region[0].any()
        assert region[-1].any()
        assert region[:, 0].any()
        assert region[:, -1].any()


def test_bounds_are_in_the_images_frame() -> None:
    region, bounds = cut(PIXEL, x0=100, y0=200)
    assert bounds == Bounds(105, 204, 106, 205)
    assert full_frame(region, bounds, Size(300, 300)).sum() == 1


def test_only_scores_above_the_threshold_belong_to_the_mask() -> None:
    region, bounds = threshold(np.array([[0.5, 0.50001, 0.9], [0.1, np.nan, 0.0]], np.float32), 0.5, 0, 0)
    assert bounds == Bounds(1, 0, 3, 1)
    assert region.all()


def test_an_empty_mask_has_no_bounds_and_every_encoding_takes_it() -> None:
    region, bounds = cut(np.zeros((5, 6), np.bool_), x0=3, y0=4)
    size = Size(50, 60)
    assert bounds == Bounds(0, 0, 0, 0)
    assert region.shape == (0, 0)
    assert not full_frame(region, bounds, size).any()
    assert to_png(region) == b""
    assert from_png(b"").shape == (0, 0)
    assert from_rle(to_rle(region, bounds, size), bounds, size).shape == (0, 0)
    assert to_rings(region, bounds) == []
    assert from_rings([], bounds).shape == (0, 0)


@with_shapes
def test_png_gives_the_region_back(mask: BoolArray) -> None:
    region, _ = cut(mask)
    np.testing.assert_array_equal(from_png(to_png(region)), region)


def test_a_png_is_8_bit_gray_of_0_and_255() -> None:
    with PIL.Image.open(io.BytesIO(to_png(cut(DIAGONALS)[0]))) as picture:
        assert picture.mode == "L"
        assert set(np.asarray(picture).ravel().tolist()) == {0, 255}


@given(st.binary(min_size=1, max_size=100))
def test_what_is_no_png_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="is no PNG"):
        from_png(data)


@with_shapes
def test_rle_is_that_of_pycocotools_byte_for_byte(mask: BoolArray) -> None:
    region, bounds = cut(mask)
    size = Size(*mask.shape)
    counts = to_rle(region, bounds, size)
    assert counts == coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"]
    np.testing.assert_array_equal(from_rle(counts, bounds, size), region)


@given(masks, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_rle_counts_the_whole_frame(mask: BoolArray, left: int, top: int, right: int, bottom: int) -> None:
    frame = np.pad(mask, ((top, bottom), (left, right)))
    region, bounds = cut(mask, left, top)
    counts = to_rle(region, bounds, Size(*frame.shape))
    assert counts == coco.encode(np.asfortranarray(frame.view(np.uint8)))["counts"]


@with_shapes
def test_rings_filled_again_are_the_mask(mask: BoolArray) -> None:
    region, bounds = cut(mask, x0=7, y0=11)
    rings = to_rings(region, bounds)
    np.testing.assert_array_equal(from_rings(rings, bounds), region)
    for ring in rings:  # they run through pixels of the mask
        x, y = (ring.points - (bounds.x0, bounds.y0)).T
        assert region[y, x].all()


def test_rings_go_from_the_outside_in() -> None:
    region, bounds = cut(RADII["squares"] // 4 % 2 == 0)
    assert [ring.hole for ring in to_rings(region, bounds)] == [False, True, False, True, False]
