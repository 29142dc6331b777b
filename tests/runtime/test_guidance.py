import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from iog.arrays import Array, PointArray, UInt8Array
from iog.guidance import FIELD_REACH, STRIDE, GuidanceSpec, draw, heatmap, windows

PUBLISHED = GuidanceSpec()
SMALL = GuidanceSpec(size=128, fwhm=10)

specs = st.builds(GuidanceSpec, st.sampled_from([64, 96, 128, 256]), st.floats(0.5, 16))


def points(size: int, *, outside: int = 40, most: int = 6) -> st.SearchStrategy[PointArray]:
    coordinate = st.integers(-outside, size + outside)
    lists = st.lists(st.tuples(coordinate, coordinate), max_size=most)
    return lists.map(lambda p: np.array(p, np.int32).reshape(-1, 2))


def formula(clicks: PointArray, spec: GuidanceSpec) -> UInt8Array:
    y, x = np.mgrid[: spec.size, : spec.size]
    heat = [255 * np.exp(-4 * math.log(2) * ((x - px) ** 2 + (y - py) ** 2) / spec.fwhm**2) for px, py in clicks]
    return np.asarray(np.floor(np.max(heat, axis=0, initial=0)), np.uint8)


@given(st.data(), specs)
def test_heat_is_the_floored_gaussian_of_the_nearest_click(data: st.DataObject, spec: GuidanceSpec) -> None:
    clicks = data.draw(points(spec.size))
    np.testing.assert_array_equal(heatmap(clicks, spec), formula(clicks, spec))


def test_no_clicks_have_no_heat() -> None:
    assert not heatmap(np.zeros((0, 2), np.int32), SMALL).any()


def test_the_published_guidance_has_windows_of_79_pixels_that_feed_4_cells() -> None:
    assert (PUBLISHED.reach, PUBLISHED.cells, PUBLISHED.window, PUBLISHED.grid) == (14, 4, 79, 32)
    x = np.arange(512, dtype=np.int32)
    first, origins = PUBLISHED.first_cells(x[:, None]), PUBLISHED.window_origins(x[:, None])
    np.testing.assert_array_equal(origins[:, 0], 16 * np.ceil((x - 29) / 16) - 15)
    np.testing.assert_array_equal(first[:, 0], np.ceil((x - 29) / 16))


def test_half_the_heat_is_left_at_half_the_width() -> None:
    heat = heatmap(np.array([(64, 64)], np.int32), SMALL)
    assert (heat[64, 64], heat[64, 69], heat[69, 64]) == (255, 127, 127)


@given(st.data(), specs)
def test_a_windows_cells_are_all_that_its_click_changes(data: st.DataObject, spec: GuidanceSpec) -> None:
    click = data.draw(points(spec.size, outside=0, most=1).filter(len))
    ys, xs = np.nonzero(heatmap(click, spec))
    cells = np.arange(spec.grid)

    def meets(hot: Array) -> Array:  # cells whose field, 16 k - 15 .. 16 k + 15, has heat in it
        return cells[(np.abs(hot[:, None] - STRIDE * cells) <= FIELD_REACH).any(axis=0)]

    for first, hot in zip(spec.first_cells(click)[0].tolist(), (xs, ys), strict=True):
        assert set(meets(hot).tolist()) <= set(range(first, first + spec.cells))


@pytest.mark.parametrize("spec", [PUBLISHED, SMALL, GuidanceSpec(384, 7.5), GuidanceSpec(128, 2.5)])
def test_with_one_cell_less_a_window_would_miss_some(spec: GuidanceSpec) -> None:
    x = np.arange(64, 96, dtype=np.int32)
    last = (x + spec.reach + FIELD_REACH) // STRIDE  # the last cell whose field meets the heat
    needed = last - spec.first_cells(x) + 1
    assert needed.max() == spec.cells


@given(st.data(), specs)
def test_windows_are_parts_of_the_heatmap(data: st.DataObject, spec: GuidanceSpec) -> None:
    foreground, background = data.draw(points(spec.size, outside=0)), data.draw(points(spec.size, outside=0))
    new = data.draw(points(spec.size, outside=0))
    origins = spec.window_origins(new)
    found = windows(origins, foreground, background, spec)
    assert found.shape == (len(new), 2, spec.window, spec.window)
    margin = spec.window + spec.reach + STRIDE
    for i, clicks in enumerate((foreground, background)):
        whole = np.zeros((spec.size + 2 * margin,) * 2, np.uint8)
        draw(whole, clicks + margin, spec)
        for (x, y), window in zip(origins + margin, found[:, i], strict=True):
            np.testing.assert_array_equal(window, whole[y : y + spec.window, x : x + spec.window])


@pytest.mark.parametrize(("size", "fwhm"), [(0, 10), (500, 10), (-32, 10), (512, 0), (512, 300), (512, math.nan)])
def test_impossible_guidance_is_refused(size: int, fwhm: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        GuidanceSpec(size, fwhm)
