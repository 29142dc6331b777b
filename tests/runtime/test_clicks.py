import numpy as np
import pytest
from iog import Box, Point, Prompt
from iog.clicks import NetworkClicks
from iog.crop import Crop, CropSpec
from iog.errors import InvalidPrompt
from iog.guidance import GuidanceSpec, heatmap

BOX = Box(100, 100, 199, 149)
CROP = Crop.around(BOX, CropSpec(size=128, relax_pixels=14))  # 128 x 78 image pixels from (86, 86)
SPEC = GuidanceSpec(128, 5)
PROMPT = Prompt(BOX, Point(150, 120)).with_click(110, 110, True).with_click(190, 140, False).with_click(150, 145, True)


def test_points_come_in_the_order_of_guidance_and_of_time() -> None:
    clicks = NetworkClicks.of(PROMPT, CROP, corner_offset=0)
    np.testing.assert_array_equal(clicks.initial[0], CROP.to_network([(150, 120)])[0])
    np.testing.assert_array_equal(clicks.initial[1:], CROP.corners(BOX, 0))
    assert [positive for _, _, positive in clicks.refinements] == [True, False, True]
    np.testing.assert_array_equal(clicks.points[5:], CROP.to_network([(110, 110), (190, 140), (150, 145)]))
    np.testing.assert_array_equal(clicks.foreground, clicks.points[[0, 5, 7]])
    np.testing.assert_array_equal(clicks.background, clicks.points[[1, 2, 3, 4, 6]])


def test_without_corrections_all_guidance_is_the_initial_one() -> None:
    clicks = NetworkClicks.of(Prompt(BOX, Point(150, 120)), CROP, corner_offset=3)
    np.testing.assert_array_equal(clicks.points, clicks.initial)
    np.testing.assert_array_equal(clicks.guidance(SPEC, initial_only=True), clicks.guidance(SPEC, initial_only=False))


def test_guidance_is_heat_of_foreground_and_background() -> None:
    clicks = NetworkClicks.of(PROMPT, CROP, corner_offset=3)
    initial, everything = clicks.guidance(SPEC, initial_only=True), clicks.guidance(SPEC, initial_only=False)
    np.testing.assert_array_equal(initial[0], heatmap(clicks.initial[:1], SPEC))
    np.testing.assert_array_equal(initial[1], heatmap(clicks.initial[1:], SPEC))
    np.testing.assert_array_equal(everything[0], heatmap(clicks.foreground, SPEC))
    np.testing.assert_array_equal(everything[1], heatmap(clicks.background, SPEC))


def test_a_negative_click_outside_the_crop_is_left_out() -> None:
    clicks = NetworkClicks.of(PROMPT.with_click(5, 5, False).with_click(120, 120, False), CROP, corner_offset=0)
    assert len(clicks.refinements) == 4
    assert clicks.refinements[:3] == NetworkClicks.of(PROMPT, CROP, corner_offset=0).refinements


def test_a_positive_click_outside_the_crop_is_refused_by_name() -> None:
    with pytest.raises(InvalidPrompt, match="draw a box around the whole object") as refused:
        NetworkClicks.of(PROMPT.with_click(85, 120, True), CROP, corner_offset=0)
    assert refused.value.field == "clicks[3]"
    NetworkClicks.of(PROMPT.with_click(86, 86, True), CROP, corner_offset=0)
