import copy
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from iog import Box, Click, Point, Prompt
from iog.errors import InvalidPrompt
from iog.prompt import MAX_CLICKS, Size

SIZE = Size(height=40, width=60)
coordinates = st.floats(-100, 200, allow_nan=False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e9, -(10**400)])
def test_coordinates_that_are_no_pixels_are_refused(value: float) -> None:
    for field, make, arguments in (
        ("point", Point, (value, 0)),
        ("click", Click, (0, value, True)),
        ("box", Box, (0, 0, value, 5)),
    ):
        with pytest.raises(InvalidPrompt, match="is no pixel position") as refused:
            make(*arguments)
        assert refused.value.field == field


@pytest.mark.parametrize("corners", [(5, 5, 4, 9), (5, 5, 9, 4)])
def test_an_inverted_box_is_refused_and_from_corners_takes_it(corners: tuple[float, float, float, float]) -> None:
    x0, y0, x1, y1 = corners
    with pytest.raises(InvalidPrompt, match="inverted") as refused:
        Box(x0, y0, x1, y1)
    assert refused.value.field == "box"
    box = Box.from_corners(Point(x0, y0), Point(x1, y1))
    assert box == Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))


def test_a_box_holds_the_pixels_of_both_its_corners() -> None:
    box = Box(10.9, 20.9, 30.1, 40.1)
    assert box.pixels == (10, 20, 30, 40)
    assert box.contains(Point(10.0, 20.0))
    assert box.contains(Point(30.99, 40.99))
    assert not box.contains(Point(31, 30))
    assert not box.contains(Point(9.99, 30))


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        (Box(-20.5, -3, 30.5, 20), Box(0, 0, 30.5, 20)),
        (Box(10, 10, 99, 99), Box(10, 10, 59, 39)),
        (Box(-1e6, -1e6, 1e6, 1e6), Box(0, 0, 59, 39)),
        (Box(10.5, 10.5, 20.5, 20.5), Box(10.5, 10.5, 20.5, 20.5)),
        (Box(0, 0, 60, 40), Box(0, 0, 59, 39)),
    ],
)
def test_a_box_is_clipped_to_the_image(box: Box, clipped: Box) -> None:
    assert box.clipped(SIZE) == clipped


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        (Box(60, 10, 80, 20), "outside the 60x40 image"),
        (Box(-9, 10, -0.1, 20), "outside the 60x40 image"),
        (Box(10, 40, 20, 50), "outside the 60x40 image"),
        (Box(10, 10, 10, 20), "1x11 pixels"),
        (Box(10, 10, 20, 10.9), "11x1 pixels"),
        (Box(59.5, 10, 70, 20), "1x11 pixels"),
        (Box(-5, 10, 0.5, 20), "1x11 pixels"),
    ],
)
def test_a_box_of_which_too_little_is_in_the_image_is_refused(box: Box, problem: str) -> None:
    prompt = Prompt(box, Point(box.x0, box.y0))
    with pytest.raises(InvalidPrompt, match=problem) as refused:
        prompt.within(SIZE)
    assert refused.value.field == "box"


def test_an_inside_point_outside_the_box_is_refused() -> None:
    with pytest.raises(InvalidPrompt, match=r"\(31, 15\) is not in the box") as refused:
        Prompt(Box(10, 10, 30, 20), Point(31, 15))
    assert refused.value.field == "inside"


def test_an_inside_point_outside_the_image_is_refused() -> None:
    with pytest.raises(InvalidPrompt, match="outside the 60x40 image") as refused:
        Prompt(Box(-10, -10, 30, 20), Point(-1, 5)).within(SIZE)
    assert refused.value.field == "inside"


def test_the_click_that_lies_outside_the_image_is_named() -> None:
    prompt = Prompt(Box(10, 10, 30, 20), Point(15, 15)).with_click(5, 5, False).with_click(15, 41, True)
    with pytest.raises(InvalidPrompt, match="outside the 60x40 image") as refused:
        prompt.within(SIZE)
    assert refused.value.field == "clicks[1]"


def test_points_on_the_far_edges_belong_to_the_last_pixel() -> None:
    prompt = Prompt(Box(30, 20, 60, 40), Point(60, 40), (Click(60, 12.5, True), Click(7.5, 40, False)))
    assert prompt.within(SIZE) == Prompt(
        Box(30, 20, 59, 39), Point(59, 39), (Click(59, 12.5, True), Click(7.5, 39, False))
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (((0, 0, 9, 9), Point(3, 3)), r"box is \(0, 0, 9, 9\); expected an iog.Box"),
        ((Box(0, 0, 9, 9), (3, 3)), r"inside is \(3, 3\); expected an iog.Point"),
        ((Box(0, 0, 9, 9), Point(3, 3), [(4, 4, True)]), r"clicks\[0\] is \(4, 4, True\); expected an iog.Click"),
    ],
)
def test_what_is_no_box_point_or_click_is_named(values: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Prompt(*values)


def test_a_thousand_clicks_are_refused() -> None:
    with pytest.raises(InvalidPrompt, match=f"1000 clicks; at most {MAX_CLICKS}") as refused:
        Prompt(Box(0, 0, 9, 9), Point(5, 5), (Click(5, 5, True),) * 1000)
    assert refused.value.field == "clicks"


def test_clicks_are_appended_and_taken_back_without_changing_the_prompt() -> None:
    first = Prompt(Box(0, 0, 9, 9), Point(5, 5))
    second = first.with_click(1, 2, positive=False)
    assert first.clicks == ()
    assert second.clicks == (Click(1, 2, False),)
    listed = [Click(1, 2, False)]
    assert Prompt(Box(0, 0, 9, 9), Point(5, 5), listed) == second  # type: ignore[arg-type]
    assert hash(second) == hash(copy.deepcopy(second))


@given(coordinates, coordinates, coordinates, coordinates, coordinates, coordinates)
def test_a_prompt_either_fits_the_image_or_names_the_box_or_the_point(
    x0: float, y0: float, x1: float, y1: float, x: float, y: float
) -> None:
    box = Box.from_corners(Point(x0, y0), Point(x1, y1))
    try:
        prompt = Prompt(box, Point(x, y)).within(SIZE)
    except InvalidPrompt as refused:
        assert refused.field in ("box", "inside")  # noqa: PT017 most examples are accepted
        return
    left, top, right, bottom = prompt.box.pixels
    assert 0 <= left < right < SIZE.width
    assert 0 <= top < bottom < SIZE.height
    assert prompt.box.contains(prompt.inside)
    assert prompt.within(SIZE) == prompt


def test_errors_survive_a_process_boundary() -> None:
    with pytest.raises(InvalidPrompt) as refused:
        Box(9, 0, 0, 0)
    received = pickle.loads(pickle.dumps(refused.value))
    assert type(received) is InvalidPrompt
    assert (received.field, str(received)) == ("box", str(refused.value))
