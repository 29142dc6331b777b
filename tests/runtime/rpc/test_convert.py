import contextlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from iog import mask
from iog.crop import Crop
from iog.errors import InvalidPrompt, UnsupportedPrompt
from iog.mask import Bounds, MaskEncoding
from iog.prompt import COORDINATE_LIMIT, MAX_CLICKS, Box, Click, Point, Prompt, Size
from iog.rpc import convert
from iog.rpc.catalog import Limits
from iog.segmentation import CacheStatus, Prediction, Segmentation
from iog.v1 import segmentation_pb2 as pb

coordinates = st.floats(-COORDINATE_LIMIT, COORDINATE_LIMIT)
WITH_A_MASK = [encoding for encoding in MaskEncoding if encoding is not MaskEncoding.SCORE_MAP]
MADE: dict[str, Any] = {
    "image_size": Size(40, 40),
    "crop": Crop(0, 0, 39, 39, 32),
    "threshold": 0.5,
    "model": "m",
    "bundle_digest": "",
    "image_digest": "",
    "cache": CacheStatus(True, "hit", 1),
}
points = st.builds(Point, coordinates, coordinates)


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    box = Box.from_corners(draw(points), draw(points))
    inside = Point(draw(st.floats(box.x0, box.x1)), draw(st.floats(box.y0, box.y1)))
    clicks = draw(st.lists(st.builds(Click, coordinates, coordinates, st.booleans()), max_size=5))
    return Prompt(box, inside, tuple(clicks))


@st.composite
def segmentations(draw: st.DrawFn) -> Segmentation:
    size = Size(draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    scores = rng.random((size.height, size.width), np.float32) ** draw(st.sampled_from([0.3, 1, 3, 100]))
    region, bounds = mask.threshold(scores, 0.5, 0, 0)
    grid = draw(st.integers(1, 8))
    ints = st.integers(-(2**21), 2**21)
    return Segmentation(
        region=region,
        bounds=bounds,
        image_size=size,
        crop=Crop(draw(ints), draw(ints), draw(ints), draw(ints), draw(st.integers(1, 2048))),
        threshold=draw(st.floats(0.01, 0.99)),
        model=draw(st.text(max_size=8)),
        bundle_digest="b" * 64,
        image_digest="1" * 64,
        cache=CacheStatus(draw(st.booleans()), draw(st.sampled_from(["hit", "miss", "joined", "none"])), 3),
        timings=draw(st.dictionaries(st.text(min_size=1, max_size=5), st.floats(0, 100), max_size=4)),
        logits=draw(st.sampled_from([None, rng.normal(size=(grid, grid)).astype(np.float32)])),
    )


@st.composite
def predictions(draw: st.DrawFn) -> Prediction:
    """Of a crop that overlaps its image."""
    size = Size(draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    x0, y0 = draw(st.integers(-20, size.width - 1)), draw(st.integers(-20, size.height - 1))
    x1, y1 = draw(st.integers(max(x0, 0), 60)), draw(st.integers(max(y0, 0), 60))
    grid = draw(st.integers(2, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Prediction(
        logits=rng.normal(draw(st.sampled_from([-5, 0, 5])), 2, (grid, grid)).astype(np.float32),
        image_size=size,
        crop=Crop(x0, y0, x1, y1, 4 * grid),
        threshold=draw(st.floats(0.01, 0.99)),
        model="m",
        bundle_digest="b" * 64,
        image_digest="1" * 64,
        cache=CacheStatus(True, "hit", 1),
        timings={"head": 0.004},
    )


def over_the_wire(message: pb.SegmentRequest) -> pb.SegmentRequest:
    return type(message).FromString(message.SerializeToString())


@given(prompts())
def test_a_prompt_arrives_unchanged(prompt: Prompt) -> None:
    request = over_the_wire(convert.request_of("0" * 64, prompt))
    assert convert.prompt_from(request, "m") == prompt


@given(segmentations(), st.sampled_from(WITH_A_MASK))
def test_a_segmentation_arrives_unchanged_in_every_encoding(result: Segmentation, encoding: MaskEncoding) -> None:
    response = convert.response_of(result, encoding)
    assert response.WhichOneof("mask") == encoding.value
    received = convert.segmentation_from(over_the_wire(response), scores=True)
    for name in vars(result).keys() - {"region", "logits", "mask", "scores", "rings"}:  # compared below, or made of it
        assert getattr(received, name) == getattr(result, name), name
    np.testing.assert_array_equal(received.mask, result.mask)
    assert received.region.shape == result.region.shape
    assert list(received.timings) == list(result.timings)
    if result.logits is None:
        assert received.logits is None
        assert received.scores is None
    else:
        np.testing.assert_array_equal(received.logits, result.logits)
        assert received.logits.dtype == np.float32


@given(predictions(), st.booleans())
def test_a_mask_made_by_the_client_is_the_one_that_the_server_would_make(prediction: Prediction, scores: bool) -> None:
    response = over_the_wire(convert.response_without_mask(prediction))
    assert response.WhichOneof("mask") is None
    assert not response.HasField("bounds")
    received, made = convert.segmentation_from(response, scores=scores), prediction.segmentation(scores=scores)
    np.testing.assert_array_equal(received.mask, made.mask)
    assert received.bounds == made.bounds
    assert list(received.timings) == [*prediction.timings, "mask"]
    assert (received.logits is None) == (not scores)
    for name in vars(prediction).keys() - {"logits", "timings"}:
        assert getattr(received, name) == getattr(prediction, name), name


def test_a_prediction_has_no_mask_to_encode() -> None:
    prediction = Prediction(logits=np.ones((8, 8), np.float32), **MADE)
    with pytest.raises(ValueError, match="response_without_mask"):
        convert.response_of(prediction.segmentation(), MaskEncoding.SCORE_MAP)


@pytest.mark.parametrize("encoding", WITH_A_MASK)
def test_an_empty_mask_keeps_its_encoding(encoding: MaskEncoding) -> None:
    result = Segmentation(region=np.zeros((0, 0), np.bool_), bounds=Bounds(0, 0, 0, 0), **MADE)
    response = over_the_wire(convert.response_of(result, encoding))
    assert response.WhichOneof("mask") == encoding.value
    assert response.area == 0
    received = convert.segmentation_from(response)
    assert received.region.shape == (0, 0)
    assert not received.mask.any()


def test_polygons_go_in_image_coordinates_and_mark_holes() -> None:
    region = np.ones((5, 5), np.bool_)
    region[2, 2] = False
    result = Segmentation(region=region, bounds=Bounds(10, 20, 15, 25), **MADE)
    rings = convert.response_of(result, MaskEncoding.POLYGONS).polygons.rings
    assert [ring.hole for ring in rings] == [False, True]
    assert sorted(zip(rings[0].coordinates[::2], rings[0].coordinates[1::2], strict=True)) == [
        (10, 20),
        (10, 24),
        (14, 20),
        (14, 24),
    ]


def request(**fields: object) -> pb.SegmentRequest:
    box = pb.Box(a=pb.Point(x=10, y=10), b=pb.Point(x=50, y=40))
    return pb.SegmentRequest(**{"inside_outside": pb.InsideOutside(box=box, inside=pb.Point(x=20, y=20)), **fields})


def test_corners_come_in_any_order() -> None:
    box = pb.Box(a=pb.Point(x=50, y=10), b=pb.Point(x=10, y=40))
    asked = request(inside_outside=pb.InsideOutside(box=box, inside=pb.Point(x=20, y=20)))
    assert convert.prompt_from(asked, "m").box == Box(10, 10, 50, 40)


def test_what_is_left_out_is_not_taken_for_zero() -> None:
    point, corner = pb.Point(x=20, y=20), pb.Point(x=50, y=40)
    cases = {
        "prompt": pb.SegmentRequest(),
        "box": request(inside_outside=pb.InsideOutside(box=pb.Box(b=corner), inside=point)),
        "inside": request(inside_outside=pb.InsideOutside(box=pb.Box(a=point, b=corner))),
        "clicks[0]": request(clicks=[pb.Click(kind=pb.CLICK_KIND_FOREGROUND)]),
        "clicks[0].kind": request(clicks=[pb.Click(point=point)]),
    }
    for field, asked in cases.items():
        with pytest.raises(InvalidPrompt) as caught:
            convert.prompt_from(asked, "m")
        assert caught.value.field == field


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300, 2.0**21])
def test_numbers_that_are_no_pixels_are_refused_with_their_path(bad: float) -> None:
    good, foreground = pb.Point(x=20, y=20), pb.CLICK_KIND_FOREGROUND
    wrong = pb.Point(x=20, y=bad)
    box = pb.Box(a=good, b=pb.Point(x=50, y=40))
    cases = {
        "box": request(inside_outside=pb.InsideOutside(box=pb.Box(a=wrong, b=good), inside=good)),
        "inside": request(inside_outside=pb.InsideOutside(box=box, inside=wrong)),
        "clicks[1]": request(
            clicks=[pb.Click(point=good, kind=foreground), pb.Click(point=wrong, kind=foreground)],
        ),
    }
    for field, asked in cases.items():
        with pytest.raises(InvalidPrompt, match="no pixel position") as caught:
            convert.prompt_from(asked, "m")
        assert caught.value.field == field
        assert str(caught.value).count(":") == 1  # the path once, not the inner one too


def test_prompts_of_other_models_are_refused_naming_what_is_taken() -> None:
    for field, asked in {
        "extreme_points": pb.SegmentRequest(extreme_points=pb.ExtremePoints()),
        "box_only": pb.SegmentRequest(box_only=pb.BoxOnly()),
    }.items():
        with pytest.raises(UnsupportedPrompt, match=r"'m'.*takes inside_outside") as caught:
            convert.prompt_from(asked, "m")
        assert caught.value.field == field


def test_too_many_clicks_are_counted_not_read() -> None:
    asked = request(clicks=[pb.Click()] * (MAX_CLICKS + 1))
    with pytest.raises(InvalidPrompt, match=f"{MAX_CLICKS + 1} clicks"):
        convert.prompt_from(asked, "m")


def test_clicks_by_the_thousand_are_refused_before_they_are_parsed() -> None:
    image, click = bytes(1 << 20), pb.Click(point=pb.Point(x=1.5, y=2.5), kind=pb.CLICK_KIND_FOREGROUND)
    most = pb.SegmentRequest(encoded_image=image, clicks=[click] * MAX_CLICKS, model="m" * 100)
    convert.check_encoded(most.SerializeToString())
    for clicks in ([click] * 10_000, [pb.Click()] * 100_000):
        for held in (image, b""):
            asked = pb.SegmentRequest(encoded_image=held, clicks=clicks)
            with pytest.raises(InvalidPrompt, match="over 65,536 bytes of a request beside its image; at most 200"):
                convert.check_encoded(asked.SerializeToString())


def test_clicks_cannot_be_hidden_in_fields_that_are_not_there() -> None:
    clicks = pb.SegmentRequest(clicks=[pb.Click()] * 100_000).SerializeToString()
    group = b"\xa3\x06" + b"\x08\x80\x01" + b"\xa4\x06"  # field 100, a group with a number in it
    image = b"\x1a" + b"\xff\xff\x7f"  # the beginning of two megabytes, within the bytes of field 101
    hidden = group + b"\xaa\x06" + bytes([len(image)]) + image + clicks
    assert len(pb.SegmentRequest.FromString(hidden).clicks) == 100_000
    with pytest.raises(InvalidPrompt):
        convert.check_encoded(hidden)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x1a\xff\xff\x03" + bytes(0xFFFF)]))
def test_any_bytes_are_checked_to_their_end(data: bytes, image: bytes) -> None:
    with contextlib.suppress(InvalidPrompt):
        convert.check_encoded(data + image + data)


def test_encodings_of_the_wire() -> None:
    assert convert.encoding_from(pb.SegmentRequest()) is MaskEncoding.PNG
    assert convert.encoding_from(pb.SegmentRequest(mask_encoding=pb.MASK_ENCODING_POLYGONS)) is MaskEncoding.POLYGONS
    with pytest.raises(InvalidPrompt, match="99"):
        convert.encoding_from(pb.SegmentRequest(mask_encoding=99))


def test_values_that_a_newer_server_may_send_do_not_break_an_older_client() -> None:
    model = convert.model_from(pb.Model(name="new", kind=77, prompts=[pb.PROMPT_KIND_BOX_ONLY, 88]))
    assert (model.kind, model.prompts) == ("single", ("box-only",))
    response = pb.SegmentResponse(cache=pb.CacheStatus(features=55))
    assert convert.segmentation_from(response).cache.features == "none"


def test_limits_arrive_unchanged() -> None:
    limits = Limits(2**40, 10**9, 200)
    assert convert.limits_from(convert.limits_of(limits)) == limits
