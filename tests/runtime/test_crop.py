import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from iog import Box
from iog.arrays import Array, UInt8Array
from iog.crop import Crop, CropSpec, _resized
from iog.errors import OutOfMemory
from iog.guidance import GuidanceSpec, heatmap
from iog.mask import full_frame, threshold
from iog.prompt import Size

# What the authors' evaluation code makes of an object inside an image and of one at its border.
GOLDEN = Path(__file__).parents[1] / "golden" / "iog_preprocess.npz"


@pytest.fixture(params=["inner", "border"])
def golden(request: pytest.FixtureRequest) -> dict[str, Array]:
    with np.load(GOLDEN) as arrays:
        prefix = f"{request.param}_"
        return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}


def crop_of(golden: dict[str, Array]) -> tuple[Box, Crop]:
    box = Box(*golden["tight_box_xyxy_inclusive"].tolist())
    return box, Crop.around(box, CropSpec())


def test_the_crop_is_the_authors(golden: dict[str, Array]) -> None:
    _, crop = crop_of(golden)
    assert [crop.x0, crop.y0, crop.x1, crop.y1] == golden["crop_box_xyxy_inclusive"].tolist()
    frame = crop.extract(golden["image"])
    assert frame.shape == (512, 512, 3)
    assert np.abs(frame.astype(np.float32) - golden["crop_rgb"]).max() <= 1  # theirs is not rounded


def test_corner_points_and_heat_are_the_authors(golden: dict[str, Array]) -> None:
    box, crop = crop_of(golden)
    points = golden["points_network_xy"].astype(np.int32)
    corners = crop.corners(box, offset=10)
    np.testing.assert_array_equal(corners, points[1:])
    np.testing.assert_array_equal(heatmap(points[:1], GuidanceSpec()), golden["heatmaps"][0])
    np.testing.assert_array_equal(heatmap(corners, GuidanceSpec()), golden["heatmaps"][1])


def test_the_mask_is_pasted_back_as_the_authors_do(golden: dict[str, Array]) -> None:
    _, crop = crop_of(golden)
    size = Size(*golden["image"].shape[:2])
    x0, y0, _, _ = crop.visible(size)
    scores = crop.from_network(golden["prob_network"].astype(np.float32), size)
    mask, expected = full_frame(*threshold(scores, 0.5, x0, y0), size), golden["mask_full"]
    assert (mask & expected).sum() / (mask | expected).sum() >= 0.999


def test_the_margin_is_pixels_and_a_share_of_the_longer_side() -> None:
    box = Box(100.7, 200.2, 199.9, 249.9)  # 100 x 50 pixels
    assert Crop.around(box, CropSpec(relax_pixels=30)) == Crop(70, 170, 229, 279, 512)
    assert Crop.around(box, CropSpec(relax_pixels=2, relax_fraction=0.1, size=64)) == Crop(88, 188, 211, 261, 64)


def test_a_long_thin_box_takes_no_more_memory_than_its_image() -> None:
    crop = Crop.around(Box(0, 0, 99_999, 3), CropSpec(size=64, relax_pixels=0, relax_fraction=0.12))
    assert not crop.whole
    image = np.zeros((4, 100_000), np.uint8)
    image[:, 50_000:] = 200
    tracemalloc.start()
    frame = crop.extract(image, "area")
    scores = crop.from_network(frame.astype(np.float32), Size(*image.shape))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * image.size
    assert (frame > 0).sum() == round(0.5 * 64 / 1.24)
    assert scores.shape == image.shape
    np.testing.assert_array_equal(scores[:, [100, 99_900]], [[0, 200]] * 4)


@pytest.mark.parametrize("interpolation", ["bilinear", "area"])
@pytest.mark.parametrize("box", [Box(10, 20, 200, 180), Box(-50, 30, 150, 300), Box(5, 100, 310, 109)])
def test_the_visible_part_alone_is_the_whole_crop_to_a_pixel(
    photo: UInt8Array, box: Box, interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth = cv2.GaussianBlur(photo, (0, 0), 9)
    crop, size = Crop.around(box, CropSpec(size=96)), Size(*photo.shape[:2])
    whole = crop.extract(smooth, interpolation)  # type: ignore[arg-type]
    scores = crop.from_network(whole[..., 0].astype(np.float32), size)
    monkeypatch.setattr("iog.crop.MAX_WHOLE", 0)
    part = crop.extract(smooth, interpolation)  # type: ignore[arg-type]
    assert np.abs(part.astype(int) - whole)[1:-1, 1:-1].mean() < 6
    assert np.abs(crop.from_network(whole[..., 0].astype(np.float32), size) - scores).mean() < 6


@pytest.mark.parametrize("interpolation", ["bilinear", "area"])
@pytest.mark.parametrize("origin", [(-20, -30), (0, 0), (40, 70), (80, 10)])
def test_a_crop_of_the_networks_size_is_a_slice_with_zeros_around(
    photo: UInt8Array, origin: tuple[int, int], interpolation: str
) -> None:
    x, y = origin
    padded = np.pad(photo, ((100, 100), (100, 100), (0, 0)))
    crop = Crop(x, y, x + 255, y + 255, 256)
    expected = padded[y + 100 : y + 356, x + 100 : x + 356]
    np.testing.assert_array_equal(crop.extract(photo, interpolation), expected)  # type: ignore[arg-type]
    np.testing.assert_array_equal(crop.extract(photo[..., 0]), expected[..., 0])


def test_area_averages_what_bilinear_skips() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::4] = 255
    crop = Crop(0, 0, 255, 255, 64)
    assert (crop.extract(stripes, "area") == 64).all()
    assert (crop.extract(stripes, "bilinear") == 0).all()


@pytest.mark.parametrize(("height", "width"), [(256, 256), (40, 256), (256, 40)])
def test_area_averages_each_axis_that_shrinks_whatever_the_other_does(height: int, width: int) -> None:
    y, x = np.indices((height, width)) % 4 == 0
    crop = Crop(0, 0, width - 1, height - 1, 64)
    for axis, stripes in ((height, y), (width, x)):
        if axis > 64:
            assert (crop.extract(stripes.astype(np.uint8) * 255, "area") == 64).all()


boxes = st.builds(
    lambda x, y, w, h: Box(x, y, x + w, y + h),
    st.integers(-20, 500),
    st.integers(-20, 500),
    st.integers(1, 700),
    st.integers(1, 700),
)
crop_specs = st.builds(
    CropSpec, st.sampled_from([64, 128, 512]), st.integers(0, 40).map(float), st.sampled_from([0.0, 0.1, 0.37])
)


@given(boxes, crop_specs, st.lists(st.tuples(st.floats(-100, 1400), st.floats(-100, 1400)), min_size=1, max_size=20))
def test_a_point_is_in_the_frame_if_its_pixel_is_in_the_crop(
    box: Box, spec: CropSpec, points: list[tuple[float, float]]
) -> None:
    crop = Crop.around(box, spec)
    pixels, found = np.floor(points), crop.to_network(points)
    in_crop = ((pixels >= (crop.x0, crop.y0)) & (pixels <= (crop.x1, crop.y1))).all(axis=1)
    np.testing.assert_array_equal(((found >= 0) & (found < crop.size)).all(axis=1), in_crop)
    # the network pixel's centre is within half a network pixel of the image pixel's centre
    scale = (crop.size / crop.width, crop.size / crop.height)
    assert (np.abs((pixels + 0.5 - (crop.x0, crop.y0)) * scale - (found + 0.5)) <= 0.5 + 1e-9).all()


@given(boxes, crop_specs)
def test_corners_are_the_outermost_network_pixels_in_the_box(box: Box, spec: CropSpec) -> None:
    crop = Crop.around(box, spec)
    (left, top), (left2, bottom), (right, top2), (right2, bottom2) = crop.corners(box, 0).tolist()
    assert (left, right, top, bottom) == (left2, right2, top2, bottom2)
    x0, y0, x1, y1 = box.pixels
    for low, high, start, end, origin, side in (
        (left, right, x0, x1 + 1, crop.x0, crop.width),
        (top, bottom, y0, y1 + 1, crop.y0, crop.height),
    ):
        if (end - start) * crop.size < side:  # no centre may lie in the box
            middle = ((start + end) / 2 - origin) * crop.size / side
            assert low <= high
            assert abs((low + high) / 2 + 0.5 - middle) <= 1
            continue
        centre = origin + (np.array([low - 1, low, high, high + 1]) + 0.5) * side / crop.size  # in image pixels
        before, first, last, after = (centre - start) / (end - start)
        assert before < 1e-9 <= first + 2e-9
        assert last - 2e-9 <= 1 < after + 1e-9
    np.testing.assert_array_equal(crop.corners(box, 7) - crop.corners(box, 0), [(-7, -7), (-7, 7), (7, -7), (7, 7)])


@pytest.mark.parametrize(("source", "target"), [(32, 128), (128, 512), (8, 8), (5, 17), (1, 4)])
def test_maps_are_resized_with_aligned_corners(source: int, target: int) -> None:
    values = np.random.default_rng(0).normal(size=(source, 3)).astype(np.float32)
    at = np.linspace(0, source - 1, target)
    expected = np.stack([np.interp(at, np.arange(source), column) for column in values.T], axis=1)
    np.testing.assert_allclose(_resized(values, target), expected, atol=1e-6)


@pytest.mark.parametrize("side", [64, 192, 512])
def test_scores_are_interpolated_after_the_sigmoid(side: int) -> None:
    crop, size = Crop(-10, 20, side - 11, side + 19, side), Size(height=60, width=side - 11)
    logits = np.random.default_rng(1).normal(0, 4, (16, 16)).astype(np.float32)
    scores = crop.scores(logits, size)
    assert scores.shape == (40, side - 11)  # the crop's part in the image
    at = np.linspace(0, 15, side)
    rows = np.stack([np.interp(at, np.arange(16), column) for column in logits.T], axis=1)  # (64, 16)
    frame = np.stack([np.interp(at, np.arange(16), row) for row in rows])
    expected = 1 / (1 + np.exp(-frame))  # the crop has the frame's size: nothing to interpolate
    np.testing.assert_allclose(scores, expected[:40, 10:-1], atol=1e-5)


@pytest.mark.parametrize("value", [-1e30, -1e4, -100, 100, 1e4, 1e30])
def test_scores_of_extreme_logits_are_certain(value: float) -> None:
    scores = Crop(0, 0, 99, 99, 64).scores(np.full((16, 16), value, np.float32), Size(100, 100))
    np.testing.assert_allclose(scores, float(value > 0), atol=1e-12)


def test_a_crop_for_which_there_is_no_memory_says_so() -> None:
    crop = Crop(0, 0, (1 << 24) - 1, (1 << 24) - 1, 8)
    with pytest.raises(OutOfMemory, match="repeat"):
        crop.from_network(np.zeros((8, 8), np.float32), Size(1 << 24, 1 << 24))
