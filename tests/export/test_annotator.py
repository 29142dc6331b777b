import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from iog.arrays import BoolArray
from iog.prompt import Box, Size
from iog_export.annotator import correction, depth, inside_point, loosened, tight_box

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
regions = shapes.flatmap(lambda shape: arrays.arrays(np.bool_, shape)).filter(np.any)
pairs = shapes.flatmap(lambda shape: st.tuples(*[arrays.arrays(np.bool_, shape) for _ in range(3)]))


def disc(height: int, width: int, x: float, y: float, radius: float) -> BoolArray:
    ys, xs = np.ogrid[:height, :width]
    return np.asarray((xs - x) ** 2 + (ys - y) ** 2 <= radius**2)


@given(regions)
def test_inside_point_is_the_pixel_farthest_from_the_boundary(region):
    point = inside_point(region)
    assert depth(region)[int(point.y), int(point.x)] == depth(region).max()


@given(regions, st.integers(0, 100), st.floats(0, 1), st.floats(0, 20))
def test_perturbed_inside_point_stays_on_the_object(region, seed, share, radius):
    point = inside_point(region, np.random.default_rng(seed), share=share, radius=radius)
    assert region[int(point.y), int(point.x)]


def test_inside_point_of_a_disc_is_its_centre():
    point = inside_point(disc(60, 80, 50, 30, 12))
    assert (point.x, point.y) == (50, 30)


def test_edge_of_the_image_bounds_the_object():
    point = inside_point(np.ones((21, 41), bool))
    assert point.y == 10
    assert 10 <= point.x <= 30


@pytest.mark.parametrize("ask", [inside_point, tight_box])
def test_empty_region_cannot_be_clicked(ask):
    with pytest.raises(ValueError, match="empty"):
        ask(np.zeros((4, 4), bool))


@given(pairs)
def test_correction_lies_on_a_known_error_and_has_its_sign(triple):
    predicted, truth, known = triple
    fix = correction(predicted, truth, known)
    wrong = (predicted != truth) & known
    if fix is None:
        assert not wrong.any()
        return
    y, x = int(fix.click.y), int(fix.click.x)
    assert wrong[y, x]
    assert fix.click.positive == truth[y, x]
    assert 1 <= fix.area <= wrong.sum()


def test_correction_goes_to_the_largest_error():
    truth = disc(60, 80, 20, 30, 10)
    predicted = disc(60, 80, 20, 30, 8) | disc(60, 80, 60, 30, 14)
    fix = correction(predicted, truth)
    assert fix is not None
    assert not fix.click.positive
    assert (fix.click.x, fix.click.y) == (60, 30)


def test_perturbed_correction_stays_in_the_middle_of_the_error():
    truth = disc(60, 80, 40, 30, 20)
    for seed in range(10):
        fix = correction(np.zeros_like(truth), truth, rng=np.random.default_rng(seed))
        assert fix is not None
        assert depth(truth)[int(fix.click.y), int(fix.click.x)] >= 0.5 * depth(truth).max()


def test_nothing_to_correct_in_a_right_mask():
    truth = disc(20, 20, 10, 10, 5)
    assert correction(truth, truth) is None


@given(regions)
def test_tight_box_holds_all_pixels_and_touches_them_on_each_side(region):
    x0, y0, x1, y1 = tight_box(region).pixels
    assert region[y0 : y1 + 1, x0 : x1 + 1].sum() == region.sum()
    assert region[y0].any()
    assert region[y1].any()
    assert region[:, x0].any()
    assert region[:, x1].any()


def test_loosened_box_grows_by_shares_of_its_sides():
    assert loosened(Box(50, 50, 149, 99), (0.1, 0.1, 0.2, 0.0), Size(200, 300)) == Box(40, 45, 169, 99)


@given(regions.filter(lambda r: min(r.shape) >= 2), st.tuples(*[st.floats(-0.6, 3)] * 4))
def test_loosened_box_can_be_prompted_with(region, sides):
    size = Size(*region.shape)
    box = loosened(tight_box(region), sides, size)
    assert box.clipped(size) == box
