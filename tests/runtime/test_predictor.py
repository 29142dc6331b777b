import io
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iog import Box, Click, Point, Predictor, Prompt
from iog.arrays import FloatArray, UInt8Array
from iog.backends import NAMES, open_backend
from iog.backends.base import Graph
from iog.backends.fake import FakeBackend
from iog.bundle import Bundle, GraphInfo
from iog.clicks import NetworkClicks
from iog.cores import allowed
from iog.crop import Crop
from iog.deadline import NO_DEADLINE, Deadline
from iog.errors import (
    BackendError,
    BackendUnavailable,
    BundleError,
    DeadlineExceeded,
    ImageTooLarge,
    InvalidImage,
    InvalidPrompt,
    OutOfMemory,
    UnknownImage,
)
from iog.features import FeatureKey, Features, object_bytes
from iog.guidance import GuidanceSpec
from iog.image import Image, ImageLimits
from iog.lane import Lane, Priority
from iog.mask import from_rings
from iog.predictor import ENTRY_BYTES, ImageCache, feature_cache
from iog.segmentation import Segmentation

WaitFor = Callable[[Callable[[], bool]], None]

# Clicks near and far from each other, some with common windows, some without any cell of the grid
SPOTS = [(100, 100), (104, 97), (130, 100), (200, 150), (75, 45), (150, 120), (228, 198)]


@pytest.fixture(scope="module")
def split(split_bundle: Path) -> Bundle:
    return Bundle.open(split_bundle)


@pytest.fixture
def fake() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def predictor(split: Bundle, fake: FakeBackend) -> Predictor:
    return Predictor(split, fake)


def png(pixels: UInt8Array) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def same(a: Segmentation, b: Segmentation) -> bool:
    return a.bounds == b.bounds and np.array_equal(a.region, b.region)


@pytest.mark.parametrize("name", NAMES)
def test_an_object_is_found_and_clicks_change_it(
    split_bundle: Path, single_bundle: Path, photo: UInt8Array, prompt: Prompt, name: str
) -> None:
    for path in (split_bundle, single_bundle):
        with Predictor.open(path, name) as predictor:
            found = predictor.segment(photo, prompt)
            assert found.mask.shape == (240, 320)
            assert found.mask[120, 150]
            assert not found.mask[:30].any()
            x0, y0, x1, y1 = found.bounds
            np.testing.assert_array_equal(found.mask[y0:y1, x0:x1], found.region)
            assert found.area == found.mask.sum() > 5000
            np.testing.assert_array_equal(from_rings(found.rings, found.bounds), found.region)
            assert found.model == path.name
            assert found.bundle_digest == Bundle.open(path).digest
            corrected = predictor.segment(photo, prompt.with_click(120, 100, positive=False))
            assert not same(corrected, found)


def test_scores_are_given_when_asked_for_and_make_the_mask(
    predictor: Predictor, photo: UInt8Array, prompt: Prompt
) -> None:
    assert predictor.segment(photo, prompt).scores is None
    found = predictor.segment(photo, prompt, scores=True)
    assert found.logits is not None
    assert found.scores is not None
    assert found.logits.shape == (32, 32)
    assert found.logits.dtype == np.float32
    x0, y0, x1, y1 = found.crop.visible(found.image_size)
    np.testing.assert_array_equal(found.mask[y0:y1, x0:x1], found.scores > found.threshold)


def test_a_box_at_the_border_is_masked_within_the_image(predictor: Predictor, photo: UInt8Array) -> None:
    found = predictor.segment(photo, Prompt(Box(-40, 150, 90, 300), Point(30, 200)), scores=True)
    assert found.scores is not None
    assert found.crop == Crop(-10, 140, 100, 249, 128)
    assert found.scores.shape == (100, 101)
    assert found.bounds.x0 >= 0
    assert found.bounds.y1 <= 240


# -- the answer depends on the request alone ---------------------------------------------------------------------------

click_lists = st.lists(
    st.builds(lambda spot, positive: Click(spot[0], spot[1], positive), st.sampled_from(SPOTS), st.booleans()),
    max_size=5,
)


@st.composite
def histories(draw: st.DrawFn) -> list[list[Click]]:
    """Requests of annotators of one object: clicks added, taken back, and others' in between; the last one counts."""
    requests: list[list[Click]] = [draw(click_lists)]
    for _ in range(draw(st.integers(1, 4))):
        step, last = draw(st.sampled_from(["add", "undo", "other", "repeat"])), requests[-1]
        requests.append(
            {
                "add": last + draw(click_lists.filter(len)),
                "undo": last[: draw(st.integers(0, len(last)))],
                "other": draw(click_lists),
                "repeat": last,
            }[step]
        )
    return requests


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)  # each opens two engines
@given(history=histories())
def test_the_answer_is_the_same_whatever_was_asked_before(
    split: Bundle, photo: UInt8Array, prompt: Prompt, name: str, history: list[list[Click]]
) -> None:
    image = Image.of(photo)
    warm, cold = (Predictor(split, open_backend(name, threads=1)) for _ in range(2))
    for clicks in history:
        request = Prompt(prompt.box, prompt.inside, tuple(clicks))
        remembered = warm.segment(image, request, scores=True)
    fresh = cold.segment(image, request, scores=True)
    assert remembered.cache.features == "hit"
    assert remembered.scores is not None
    assert fresh.scores is not None
    rounding = 0 if name == "fake" else 1e-5  # an engine may add up a batch of one in another order
    np.testing.assert_allclose(remembered.scores, fresh.scores, atol=rounding)
    certain = np.abs(fresh.scores - fresh.threshold) > rounding
    x0, y0, x1, y1 = fresh.crop.visible(fresh.image_size)
    np.testing.assert_array_equal(remembered.mask[y0:y1, x0:x1][certain], fresh.mask[y0:y1, x0:x1][certain])


def click_maps(predictor: Predictor, image: Image, prompt: Prompt) -> tuple[Features, NetworkClicks]:
    crop = Crop.around(prompt.box, predictor.bundle.crop)
    clicks = NetworkClicks.of(prompt, crop, predictor.bundle.crop.corner_offset)
    key = FeatureKey(predictor.bundle.digest, image.digest, crop, clicks.initial.tobytes())
    features = predictor.features.get(key)
    assert features is not None
    return features, clicks


def whole_map(bundle: Bundle, clicks: NetworkClicks, spec: GuidanceSpec) -> FloatArray:
    """The click map from the heat of the whole frame, as a network does without windows."""
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in _graph(bundle, "click").initializer}
    heat = np.pad(clicks.guidance(spec, initial_only=False) / 255, ((0, 0), (15, 15), (15, 15)))
    fields = np.lib.stride_tricks.sliding_window_view(heat, (31, 31), axis=(1, 2))[:, ::16, ::16]
    return np.asarray(np.tanh(np.einsum("cyxij,kcij->kyx", fields, weights["kernel"])), np.float32)


def _graph(bundle: Bundle, name: str) -> onnx.GraphProto:
    return onnx.load_from_string(bundle.graphs[name]).graph


@settings(max_examples=30)
@given(history=histories())
def test_windows_give_the_click_map_of_the_whole_frame(
    split: Bundle, photo: UInt8Array, prompt: Prompt, history: list[list[Click]]
) -> None:
    image = Image.of(photo)
    predictor = Predictor(split, open_backend("ort", threads=1))
    latest = None
    for listed in history:
        request = Prompt(prompt.box, prompt.inside, tuple(listed))
        predictor.segment(image, request)
        features, clicks = click_maps(predictor, image, request)
        if listed:  # without corrections the initial map serves and the latest is kept
            latest = clicks
    none = NetworkClicks(clicks.initial, ())
    np.testing.assert_allclose(features.initial.map[0], whole_map(split, none, split.guidance), atol=1e-5)
    if latest is not None:
        assert latest.refinements in [state.refinements for state in (features.initial, *features.recent)]
        np.testing.assert_allclose(
            features.nearest(latest.refinements).map[0], whole_map(split, latest, split.guidance), atol=1e-5
        )


# -- what is computed, and when ----------------------------------------------------------------------------------------


def test_a_correction_runs_one_window_and_the_head(
    predictor: Predictor, fake: FakeBackend, photo: UInt8Array, prompt: Prompt
) -> None:
    first = predictor.segment(photo, prompt)
    assert (first.cache.features, first.cache.windows) == ("miss", 5)
    assert fake.runs == {"encoder": 1, "click": 1, "head": 1}
    assert list(first.timings) == ["image", "prompt", "features", "wait", "crop", "encoder", "clicks", "head", "mask"]

    one = prompt.with_click(100, 100, positive=False)
    second = predictor.segment(photo, one)
    assert (second.cache.features, second.cache.windows) == ("hit", 1)
    assert fake.runs == {"encoder": 1, "click": 2, "head": 2}
    assert list(second.timings) == ["image", "prompt", "features", "wait", "clicks", "head", "mask"]

    third = predictor.segment(photo, one.with_click(130, 90, positive=True).with_click(140, 90, positive=True))
    assert third.cache.windows == 2
    repeated = predictor.segment(photo, one.with_click(130, 90, positive=True).with_click(140, 90, positive=True))
    assert repeated.cache.windows == 0
    assert same(repeated, third)


def test_undo_to_the_first_mask_computes_no_window(
    predictor: Predictor, fake: FakeBackend, photo: UInt8Array, prompt: Prompt
) -> None:
    first = predictor.segment(photo, prompt)
    predictor.segment(photo, prompt.with_click(100, 100, positive=False))
    runs = fake.runs["click"]
    undone = predictor.segment(photo, prompt)
    assert undone.cache.windows == 0
    assert fake.runs["click"] == runs
    assert same(undone, first)


def test_a_click_taken_back_computes_no_window(
    predictor: Predictor, fake: FakeBackend, photo: UInt8Array, prompt: Prompt
) -> None:
    for spot in SPOTS[:3]:
        prompt = prompt.with_click(*spot, positive=False)
        before = predictor.segment(photo, prompt)
    predictor.segment(photo, prompt.with_click(*SPOTS[3], positive=True))
    undone = predictor.segment(photo, prompt)
    assert undone.cache.windows == 0
    assert same(undone, before)
    for spot in SPOTS[4:6]:
        assert predictor.segment(photo, prompt.with_click(*spot, positive=True)).cache.windows == 1
        assert predictor.segment(photo, prompt).cache.windows == 0


class Overflowing(FakeBackend):
    """Its heads give NaN."""

    def open(self, name: str, model: bytes, info: GraphInfo) -> Graph:
        graph = super().open(name, model, info)
        if name in ("head", "network"):
            run = graph.run
            graph.run = lambda inputs: [array * np.nan for array in run(inputs)]  # type: ignore[method-assign]
        return graph


def test_a_network_that_overflows_is_no_empty_mask(
    split_bundle: Path, single_bundle: Path, photo: UInt8Array, prompt: Prompt
) -> None:
    for path in (split_bundle, single_bundle):
        predictor = Predictor(Bundle.open(path), Overflowing())
        for _ in range(2):
            with pytest.raises(BackendError, match="not finite"):
                predictor.segment(photo, prompt)


def test_another_image_box_or_inside_point_is_another_object(
    predictor: Predictor, photo: UInt8Array, prompt: Prompt
) -> None:
    box = prompt.box
    for image, request in (
        (photo, prompt),
        (photo[:, ::-1], prompt),
        (photo, Prompt(Box(box.x0, box.y0, box.x1 + 1, box.y1), prompt.inside)),
        (photo, Prompt(box, Point(160, 120))),
    ):
        assert predictor.segment(image, request).cache.features == "miss"
    assert predictor.segment(photo, prompt).cache.features == "hit"


def test_predictors_share_caches_without_mixing_bundles(
    split: Bundle, photo: UInt8Array, prompt: Prompt, tmp_path: Path
) -> None:
    manifest = (split.path / "manifest.json").read_text().replace("small-split", "another")
    for file in split.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "manifest.json").write_text(manifest)
    shared = feature_cache()
    one, two, other = (
        Predictor(bundle, FakeBackend(), features=shared) for bundle in (split, split, Bundle.open(tmp_path))
    )
    assert one.segment(photo, prompt).cache.features == "miss"
    assert two.segment(photo, prompt).cache.features == "hit"
    assert other.segment(photo, prompt).cache.features == "miss"


class HeldBackend(FakeBackend):
    """Holds the encoder until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.encoding, self.release = threading.Event(), threading.Event()

    def count(self, name: str) -> None:
        if name == "encoder":
            self.encoding.set()
            assert self.release.wait(60)
        super().count(name)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as executor:
        yield executor


def test_sixteen_first_clicks_at_once_run_the_encoder_once(
    split: Bundle, photo: UInt8Array, prompt: Prompt, pool: ThreadPoolExecutor
) -> None:
    backend = HeldBackend()
    predictor, start = Predictor(split, backend), threading.Barrier(17)

    def click(i: int) -> Segmentation:
        start.wait(60)
        return predictor.segment(photo, prompt.with_click(*SPOTS[i % 4], positive=i % 2 == 0) if i else prompt)

    calls = [pool.submit(click, i) for i in range(16)]
    start.wait(60)
    assert backend.encoding.wait(60)
    backend.release.set()
    results = [call.result(60) for call in calls]
    assert backend.runs["encoder"] == 1
    assert [r.cache.features for r in results].count("miss") == 1
    for i, result in enumerate(results):
        request = prompt.with_click(*SPOTS[i % 4], positive=i % 2 == 0) if i else prompt
        assert same(result, Predictor(split, FakeBackend()).segment(photo, request))


def test_a_first_click_is_answered_before_the_next_object_is_encoded(
    split: Bundle, photo: UInt8Array, prompt: Prompt, pool: ThreadPoolExecutor
) -> None:
    order: list[str] = []

    class Ordered(HeldBackend):
        def count(self, name: str) -> None:
            super().count(name)
            order.append(name)

    backend = Ordered()
    predictor = Predictor(split, backend)
    calls = [pool.submit(predictor.segment, np.roll(photo, i, axis=1), prompt) for i in range(4)]
    assert backend.encoding.wait(60)
    while len(predictor._lane._waiting) < 3:
        time.sleep(0.001)
    backend.release.set()
    for call in calls:
        assert call.result(60).area
    assert order == ["encoder", "click", "head"] * 4


def test_no_more_frames_are_cut_at_a_time_than_there_are_cores(
    split: Bundle,
    photo: UInt8Array,
    prompt: Prompt,
    pool: ThreadPoolExecutor,
    wait_for: WaitFor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cutting, release, extract = list[Crop](), threading.Event(), Crop.extract

    def held(crop: Crop, *arguments: Any) -> UInt8Array:
        cutting.append(crop)
        assert release.wait(60)
        return extract(crop, *arguments)

    monkeypatch.setattr("iog.cores.allowed", lambda: 2)
    predictor = Predictor(split, FakeBackend())
    hit = predictor.segment(photo, prompt)
    monkeypatch.setattr(Crop, "extract", held)
    calls = [pool.submit(predictor.segment, np.roll(photo, i, axis=1), prompt) for i in range(1, 7)]
    wait_for(lambda: len(cutting) == 2)
    assert same(predictor.segment(photo, prompt), hit)  # a click that needs none waits for none
    with pytest.raises(DeadlineExceeded, match="waiting to cut the image"):
        predictor.segment(np.roll(photo, 7, axis=1), prompt, timeout=0.05)
    other = Predictor(split, FakeBackend(), images=predictor.images)
    with pytest.raises(DeadlineExceeded, match="waiting to cut the image"):
        other.segment(photo, prompt, timeout=0.05)
    assert len(cutting) == 2
    release.set()
    for call in calls:
        assert call.result(60).cache.features == "miss"
    assert len(cutting) == 6


def test_annotators_of_one_object_do_not_disturb_each_other(
    split: Bundle, photo: UInt8Array, prompt: Prompt, pool: ThreadPoolExecutor
) -> None:
    predictor = Predictor(split, FakeBackend(), lane=Lane(4))

    def annotate(i: int) -> list[Segmentation]:
        request, results = prompt, []
        for j in range(5):
            request = request.with_click(*SPOTS[(i + j) % len(SPOTS)], positive=(i + j) % 3 == 0)
            results.append(predictor.segment(photo, request))
        return results

    for i, results in enumerate(pool.map(annotate, range(8))):
        alone, request = Predictor(split, FakeBackend()), prompt
        for j, result in enumerate(results):
            request = request.with_click(*SPOTS[(i + j) % len(SPOTS)], positive=(i + j) % 3 == 0)
            assert same(result, alone.segment(photo, request))


def test_heads_that_wait_for_an_encoder_run_as_one_batch(
    split: Bundle, photo: UInt8Array, prompt: Prompt, pool: ThreadPoolExecutor
) -> None:
    backend = HeldBackend()
    backend.heads = 8
    backend.release.set()
    predictor = Predictor(split, backend)
    image = Image.of(photo)
    objects = [Prompt(prompt.box, Point(140 + 4 * i, 118)).with_click(*SPOTS[i], positive=i < 2) for i in range(4)]
    for request in objects:
        predictor.segment(image, Prompt(request.box, request.inside))
    backend.release.clear()
    backend.encoding.clear()
    runs = dict(backend.runs)
    first = pool.submit(predictor.segment, photo[:, ::-1], prompt)
    assert backend.encoding.wait(60)
    clicks = [pool.submit(predictor.segment, image, request) for request in objects]
    while len(predictor._heads._line) < 4:
        time.sleep(0.001)
    backend.release.set()
    for request, call in zip(objects, clicks, strict=True):
        found = call.result(60)
        assert same(found, Predictor(split, FakeBackend()).segment(image, request))
        assert (found.cache.features, found.cache.windows) == ("hit", 1)
        assert list(found.timings) == ["image", "prompt", "features", "wait", "clicks", "head", "mask"]
    first.result(60)
    assert backend.runs["click"] - runs["click"] == 2  # the encoder's, and one for the four
    assert backend.runs["head"] - runs["head"] <= 2  # that of the encoder's object may have come in time


def test_a_correction_goes_before_the_initial_clicks_of_another_object(
    split: Bundle, photo: UInt8Array, prompt: Prompt, pool: ThreadPoolExecutor
) -> None:
    order: list[str] = []

    class Ordered(HeldBackend):
        heads = 1

        def count(self, name: str) -> None:
            super().count(name)
            order.append(name)

    backend = Ordered()
    backend.release.set()
    predictor = Predictor(split, backend)
    predictor.segment(photo, prompt)
    backend.release.clear()
    backend.encoding.clear()
    order.clear()
    first = pool.submit(predictor.segment, photo[:, ::-1], prompt)
    assert backend.encoding.wait(60)
    correction = pool.submit(predictor.segment, photo, prompt.with_click(*SPOTS[0], positive=True))
    while not predictor._lane._waiting:
        time.sleep(0.001)
    backend.release.set()
    assert correction.result(60).cache.features == "hit"
    first.result(60)
    assert order == ["encoder", "click", "head", "click", "head"]


def test_evicted_features_are_computed_again(split: Bundle, photo: UInt8Array, prompt: Prompt) -> None:
    fake = FakeBackend()
    predictor = Predictor(split, fake, features=feature_cache(0))
    other = Prompt(Box(100, 60, 200, 180), Point(150, 120))
    clicked = prompt.with_click(100, 100, positive=False)
    first = predictor.segment(photo, clicked)
    assert predictor.segment(photo, clicked).cache.features == "hit"
    predictor.segment(photo, other)
    again = predictor.segment(photo, clicked)
    assert again.cache.features == "miss"
    assert fake.runs["encoder"] == 3
    assert same(again, first)


def test_the_cache_counts_tensors_and_all_click_maps(predictor: Predictor, photo: UInt8Array, prompt: Prompt) -> None:
    image = Image.of(photo)
    for spot in SPOTS[:4]:
        prompt = prompt.with_click(*spot, positive=False)
        predictor.segment(image, prompt)
    features, _ = click_maps(predictor, image, prompt)
    maps = {id(state): state.map for state in (features.initial, *features.recent)}
    assert len(maps) == 3
    assert predictor.features.nbytes == sum(array.nbytes for array in (*features.tensors.values(), *maps.values()))
    assert predictor.features.nbytes == object_bytes(predictor.bundle.manifest)


# -- images ------------------------------------------------------------------------------------------------------------


def test_no_more_images_are_decoded_at_a_time_than_there_are_cores(
    predictor: Predictor, photo: UInt8Array, prompt: Prompt, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, lock, decoding, most = Image.decode, threading.Lock(), 0, 0

    def decode(*arguments: object) -> Image:
        nonlocal decoding, most
        with lock:
            decoding += 1
            most = max(most, decoding)
        time.sleep(0.02)
        with lock:
            decoding -= 1
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "decode", decode)
    files = [png(np.roll(photo, i, axis=0)) for i in range(12)]
    for found in pool.map(lambda data: predictor.segment(data, prompt), files):
        assert found.area
    assert most <= allowed()


def test_bytes_paths_arrays_and_images_give_the_same_mask(
    predictor: Predictor, photo: UInt8Array, prompt: Prompt, tmp_path: Path
) -> None:
    data = png(photo)
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    image = Image.decode(data)
    results = [predictor.segment(source, prompt) for source in (photo, data, path, str(path), image, bytearray(data))]  # type: ignore[arg-type]
    assert all(same(result, results[0]) for result in results)
    assert [r.cache.image for r in results] == [False, False, True, True, True, True]
    assert [r.cache.features for r in results] == ["miss", "miss", "hit", "hit", "hit", "hit"]
    assert results[1].image_digest == image.digest


def test_images_are_forgotten_under_their_budget(split: Bundle, photo: UInt8Array, prompt: Prompt) -> None:
    predictor = Predictor(split, FakeBackend(), images=ImageCache(photo.nbytes))
    one, two = png(photo), png(photo[:, ::-1])
    held = [predictor.segment(data, prompt).cache.image for data in (one, one, two, two, one)]
    assert held == [False, True, False, True, False]
    assert predictor.images.nbytes == photo.nbytes + ENTRY_BYTES


def test_images_of_a_pixel_take_more_of_the_budget_than_a_pixel() -> None:
    """What remembers them would fill the memory otherwise."""
    images = ImageCache(100 * ENTRY_BYTES)
    for number in range(1000):
        images.put(f"{number:064x}", Image.from_array(np.zeros((1, 1, 3), np.uint8)))
    assert 90 <= len(images) <= 100


def test_an_object_that_is_remembered_needs_no_decoded_image(
    split: Bundle, photo: UInt8Array, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(split, FakeBackend(), images=ImageCache(photo.nbytes))
    one, two = png(photo), png(photo[:, ::-1])
    first = predictor.segment(one, prompt)
    predictor.segment(two, prompt)
    monkeypatch.setattr(Image, "decode", None)
    again = predictor.segment(one, prompt)
    assert (again.cache.image, again.cache.features) == (False, "hit")
    assert same(again, first)
    monkeypatch.undo()
    moved = Prompt(replace(prompt.box, x1=prompt.box.x1 - 9), prompt.inside)
    assert predictor.segment(one, moved).cache.features == "miss"
    assert predictor.images.find("0" * 64) is None


def test_clicks_that_join_an_encoder_hold_no_photograph(
    split: Bundle, photo: UInt8Array, prompt: Prompt, wait_for: WaitFor
) -> None:
    lane = Lane()
    predictor = Predictor(split, FakeBackend(), images=ImageCache(photo.nbytes), lane=lane)
    image = Image.decode(png(photo))
    predictor.images.put(image.digest, image)
    pixels = weakref.ref(image.pixels)
    known = predictor.images.find(image.digest)
    assert known is not None
    with ThreadPoolExecutor(3) as pool:
        with lane.turn(Priority.ENCODER, NO_DEADLINE):
            calls = [pool.submit(predictor.predict, known, prompt) for _ in range(3)]
            wait_for(lambda: len(lane._waiting) == 1)  # the others wait for it
            predictor.images.put("another", Image.from_array(photo[:, ::-1]))
            del image
            wait_for(lambda: pixels() is None)
        how = sorted(call.result().cache.features for call in calls)
    assert how.count("miss") == 1
    with pytest.raises(UnknownImage):
        predictor.predict(known, Prompt(prompt.box, Point(prompt.inside.x + 5, prompt.inside.y)))


def test_first_clicks_that_wait_hold_no_photograph(
    split: Bundle, photo: UInt8Array, prompt: Prompt, wait_for: WaitFor
) -> None:
    lane = Lane()
    predictor = Predictor(split, FakeBackend(), images=ImageCache(0), lane=lane)
    photographs = [photo[i:].copy() for i in range(3)]
    decoded: list[weakref.ref[UInt8Array]] = []
    decode = Image.decode

    def counted(*args: Any) -> Image:
        image = decode(*args)
        decoded.append(weakref.ref(image.pixels))
        return image

    with ThreadPoolExecutor(3) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "decode", counted)
        with lane.turn(Priority.ENCODER, NO_DEADLINE):
            calls = [pool.submit(predictor.segment, png(each), prompt) for each in photographs]
            wait_for(lambda: len(lane._waiting) == 3)
            assert len([pixels for pixels in decoded if pixels() is not None]) == 1  # the last one, in the cache
        for call in calls:
            assert call.result().cache.features == "miss"


def test_no_mask_is_made_after_the_deadline(split: Bundle, photo: UInt8Array, prompt: Prompt) -> None:
    predictor = Predictor(split, FakeBackend())

    class Late(Deadline):
        def check(self, doing: str) -> None:
            if doing == "making the mask":
                raise DeadlineExceeded("late")

    with pytest.raises(DeadlineExceeded):
        predictor.segment(photo, prompt, timeout=Late())
    with pytest.raises(ValueError, match="nan seconds"):
        predictor.segment(photo, prompt, timeout=float("nan"))


def test_a_bad_image_is_refused_every_time(predictor: Predictor, prompt: Prompt) -> None:
    for _ in range(2):
        with pytest.raises(InvalidImage):
            predictor.segment(b"no image", prompt)


def test_limits_hold(split: Bundle, photo: UInt8Array, prompt: Prompt, tmp_path: Path) -> None:
    predictor = Predictor(split, FakeBackend(), limits=ImageLimits(max_pixels=100))
    (tmp_path / "photo.png").write_bytes(png(photo))
    for source in (png(photo), tmp_path / "photo.png"):
        with pytest.raises(ImageTooLarge):
            predictor.segment(source, prompt)


# -- requests that cannot be answered ----------------------------------------------------------------------------------


def test_a_prompt_outside_the_image_is_refused_before_any_work(
    predictor: Predictor, fake: FakeBackend, photo: UInt8Array
) -> None:
    with pytest.raises(InvalidPrompt, match="outside the 320x240 image"):
        predictor.segment(photo, Prompt(Box(400, 10, 500, 90), Point(450, 50)))
    assert not fake.runs


def test_clicks_outside_the_crop(predictor: Predictor, fake: FakeBackend, photo: UInt8Array, prompt: Prompt) -> None:
    first = predictor.segment(photo, prompt)
    ignored = predictor.segment(photo, prompt.with_click(5, 5, positive=False))
    assert ignored.cache.windows == 0
    assert same(ignored, first)
    with pytest.raises(InvalidPrompt, match="outside what the network sees") as refused:
        predictor.segment(photo, prompt.with_click(5, 5, positive=True))
    assert refused.value.field == "clicks[0]"
    assert fake.runs["head"] == 2


def test_a_deadline_that_has_passed_starts_nothing(
    predictor: Predictor, fake: FakeBackend, photo: UInt8Array, prompt: Prompt
) -> None:
    with pytest.raises(DeadlineExceeded):
        predictor.segment(png(photo), prompt, timeout=0)
    assert not fake.runs
    assert len(predictor.images) == 0
    assert predictor.segment(png(photo), prompt, timeout=60).area


def test_no_stage_starts_after_the_deadline_and_what_was_done_is_kept(
    split: Bundle, photo: UInt8Array, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr("iog.deadline.time", clock)

    class SlowBackend(FakeBackend):
        def count(self, name: str) -> None:
            super().count(name)
            clock.now += 10

    fake = SlowBackend()
    predictor = Predictor(split, fake)
    with pytest.raises(DeadlineExceeded):
        predictor.segment(photo, prompt, timeout=5)
    assert "head" not in fake.runs
    assert predictor.segment(photo, prompt, timeout=15).cache.features == "hit"


def test_a_failure_of_the_engine_is_not_remembered(split: Bundle, photo: UInt8Array, prompt: Prompt) -> None:
    class Failing(FakeBackend):
        fail = True

        def count(self, name: str) -> None:
            if self.fail:
                raise OutOfMemory("out of memory")
            super().count(name)

    backend = Failing()
    predictor = Predictor(split, backend)
    with pytest.raises(OutOfMemory):
        predictor.segment(photo, prompt)
    backend.fail = False
    assert predictor.segment(photo, prompt).cache.features == "miss"


class Crowded(FakeBackend):
    """Has no memory left in a graph's next runs, `failures` times."""

    def __init__(self, graph: str = "") -> None:
        super().__init__()
        self.graph, self.failures = graph, 0

    def count(self, name: str) -> None:
        if name == self.graph and self.failures:
            self.failures -= 1
            raise OutOfMemory(f"graph {name!r} failed: out of memory")
        super().count(name)


@pytest.mark.parametrize("graph", ["encoder", "click", "head"])
def test_where_memory_is_short_others_are_forgotten_and_the_click_is_answered(
    split: Bundle, photo: UInt8Array, prompt: Prompt, graph: str
) -> None:
    backend = Crowded(graph)
    predictor = Predictor(split, backend)
    image = Image.of(photo)
    objects = [Prompt(prompt.box, Point(140 + 4 * i, 118)) for i in range(4)]
    for held in objects[:3]:
        predictor.segment(image, held)
    backend.failures = 1
    clicked = objects[3].with_click(100, 100, positive=False)
    found = predictor.segment(image, clicked)
    assert same(found, Predictor(split, FakeBackend()).segment(image, clicked))
    held = [predictor.segment(image, request).cache.features for request in (objects[3], objects[2], objects[1])]
    assert held == ["hit"] * 3
    assert predictor.segment(image, objects[0]).cache.features == "miss"


@pytest.mark.parametrize("graph", ["encoder", "click", "head"])
def test_where_memory_stays_short_the_click_fails_and_later_ones_are_answered(
    split: Bundle, photo: UInt8Array, prompt: Prompt, graph: str
) -> None:
    backend = Crowded(graph)
    predictor = Predictor(split, backend)
    image = Image.of(photo)
    for i in range(6):
        predictor.segment(image, Prompt(prompt.box, Point(140 + 4 * i, 118)))
    backend.failures = 1000
    clicked = prompt.with_click(100, 100, positive=False)
    with pytest.raises(OutOfMemory):
        predictor.segment(image, clicked)
    assert 1000 - backend.failures <= 5  # each time twice as many are forgotten
    backend.failures = 0
    assert same(predictor.segment(image, clicked), Predictor(split, FakeBackend()).segment(image, clicked))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            lambda text: text.replace('"shape": [\n            "batch",\n            5,\n            50', "?"),
            BundleError,
        ),
        (lambda text: text.replace("            50\n", "            60\n"), BackendError),
    ],
    ids=["no manifest", "another network's"],
)
def test_a_bundle_whose_graphs_are_others_is_refused(
    split_bundle: Path, tmp_path: Path, change: Callable[[str], str], error: type[Exception]
) -> None:
    for file in split_bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest = (split_bundle / "manifest.json").read_text()
    assert change(manifest) != manifest
    (tmp_path / "manifest.json").write_text(change(manifest))
    with pytest.raises(error):
        Predictor.open(tmp_path)


def test_an_unknown_backend_or_device_is_unavailable(split_bundle: Path) -> None:
    with pytest.raises(BackendUnavailable):
        Predictor.open(split_bundle, "none")
    with pytest.raises(BackendUnavailable):
        Predictor.open(split_bundle, device="none")


def test_a_closed_predictor_says_so(split_bundle: Path, photo: UInt8Array, prompt: Prompt) -> None:
    with Predictor.open(split_bundle) as predictor:
        predictor.segment(photo, prompt)
    with pytest.raises(BackendError, match="closed"):
        predictor.segment(photo, prompt)


# -- networks that cannot be split -------------------------------------------------------------------------------------


def test_a_single_graph_runs_at_every_click(single_bundle: Path, photo: UInt8Array, prompt: Prompt) -> None:
    fake = FakeBackend()
    predictor = Predictor(Bundle.open(single_bundle), fake)
    request = prompt
    for spot in SPOTS[:3]:
        result = predictor.segment(photo, request)
        request = request.with_click(*spot, positive=False)
    assert (result.cache.features, result.cache.windows) == ("none", 0)
    assert fake.runs == {"network": 3}
    assert list(result.timings) == ["image", "prompt", "wait", "crop", "network", "mask"]


def test_a_single_graph_sees_all_clicks(single_bundle: Path, photo: UInt8Array, prompt: Prompt) -> None:
    with Predictor.open(single_bundle) as predictor:
        before = predictor.segment(photo, prompt, scores=True)
        after = predictor.segment(photo, prompt.with_click(110, 100, positive=False), scores=True)
        assert before.mask[100, 110]
        assert not after.mask[100, 110]
        with pytest.raises(DeadlineExceeded):
            predictor.segment(photo, prompt, timeout=0)
