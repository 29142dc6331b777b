import numpy as np
import pytest
from iog import Box, Click, Point, Prompt
from iog.overlay import LIGHT, LONG_SIDE, NEGATIVE, POSITIVE, overlay, panel

PROMPT = Prompt(Box(40, 30, 159, 119), Point(100, 70), (Click(60, 50, True), Click(150, 110, False)))


def gray(height: int, width: int, value: int = 128) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def disc(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    inside: np.ndarray = np.hypot(x - 100, y - 75) < 40
    return inside


def scaled(x: float, y: float, scale: float) -> tuple[int, int]:
    return round((y + 0.5) * scale - 0.5), round((x + 0.5) * scale - 0.5)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((150, 200), (480, 640)), ((600, 800), (600, 800)), ((2160, 3840), (900, 1600)), ((200, 150), (640, 480))],
)
def test_thumbnails_are_enlarged_and_large_photographs_reduced(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    prompt = Prompt(Box(10, 10, 50, 50), Point(30, 30))
    picture = overlay(gray(*size), prompt, np.zeros(size, bool))
    assert picture.shape == (*expected, 3)
    assert LONG_SIDE[0] <= max(picture.shape) <= LONG_SIDE[1]


def test_a_side_that_is_asked_for_is_kept() -> None:
    assert overlay(gray(300, 400), PROMPT, None, long_side=560).shape == (420, 560, 3)


def test_clicks_are_drawn_where_they_were_placed_in_the_colour_of_what_they_say() -> None:
    picture = overlay(gray(150, 200), PROMPT, None)
    scale = 640 / 200
    for click, color in ((PROMPT.clicks[0], POSITIVE), (PROMPT.clicks[1], NEGATIVE)):
        row, column = scaled(click.x, click.y, scale)
        assert tuple(picture[row, column]) == LIGHT  # the sign
        assert tuple(picture[row - 6, column - 3]) == color  # beside it
    row, column = scaled(PROMPT.inside.x, PROMPT.inside.y, scale)
    assert tuple(picture[row, column]) == LIGHT
    assert tuple(picture[row, column + 6]) == POSITIVE


def test_the_box_runs_around_the_pixels_that_belong_to_it() -> None:
    picture = overlay(gray(150, 200), PROMPT, None)
    scale = 640 / 200
    row = round(75 * scale)
    for edge in (40 * scale - 0.5, 160 * scale - 0.5):  # the left edge of pixel 40, the right edge of pixel 159
        columns = np.flatnonzero((picture[row] != 128).any(axis=1))
        assert np.abs(columns - edge).min() < 1
    assert (picture[row, 45 * 3 : 50 * 3] == 128).all()


@pytest.mark.parametrize("ground", [0, 255], ids=["black", "white"])
def test_every_line_shows_on_black_and_on_white(ground: int) -> None:
    photo = gray(150, 200, ground)
    picture = overlay(photo, PROMPT, disc(150, 200))
    found = picture.min(axis=2) > 150 if ground == 0 else picture.max(axis=2) < 105
    assert found[round(75 * 3.2), round(40 * 3.2) - 3 : round(40 * 3.2) + 3].any()  # box
    assert found[round(75 * 3.2), round(140 * 3.2) - 6 : round(140 * 3.2) + 6].any()  # outline of the mask


def test_the_mask_is_tinted_and_the_rest_is_left_as_it_is() -> None:
    picture = overlay(gray(150, 200), Prompt(Box(5, 5, 15, 15), Point(10, 10)), disc(150, 200))
    inside, outside = picture[round(75 * 3.2), round(110 * 3.2)], picture[round(75 * 3.2), round(180 * 3.2)]
    assert inside[2] > 150 > inside[0]
    assert tuple(outside) == (128, 128, 128)


def test_an_empty_mask_changes_nothing() -> None:
    photo = gray(150, 200)
    assert np.array_equal(overlay(photo, PROMPT, np.zeros((150, 200), bool)), overlay(photo, PROMPT, None))


def test_the_image_is_not_drawn_on() -> None:
    photo = gray(480, 640)
    photo.flags.writeable = False
    overlay(photo, PROMPT, disc(480, 640), "caption")
    assert (photo == 128).all()


def test_captions_lie_below_and_are_cut_to_the_width() -> None:
    plain = overlay(gray(150, 200), PROMPT, None)
    one = overlay(gray(150, 200), PROMPT, None, "1. box and inside click")
    two = overlay(gray(150, 200), PROMPT, None, "long " * 100 + "\nsecond line")
    assert np.array_equal(one[: len(plain)], plain)
    assert len(plain) < len(one) < len(two)
    assert (one[len(plain) :] < 100).any()
    assert (two[len(plain) :, -5:] > 200).all()


def test_a_box_beyond_the_image_is_drawn_as_far_as_it_can_be() -> None:
    picture = overlay(gray(150, 200), Prompt(Box(-50, -50, 500, 500), Point(100, 70)), None)
    assert picture.shape == (480, 640, 3)


def test_a_panel_holds_its_pictures_side_by_side() -> None:
    left, right = gray(100, 150, 10), gray(120, 80, 20)
    sheet = panel([left, right], gap=10)
    assert sheet.shape == (140, 150 + 80 + 30, 3)
    assert np.array_equal(sheet[10:110, 10:160], left)
    assert np.array_equal(sheet[10:130, 170:250], right)
    assert (sheet[110:, 10:160] == 255).all()
