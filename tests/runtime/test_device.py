"""What runs on a GPU, on a device whose memory is the host's: the same code but for copies and streams."""

import ctypes
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from iog import Box, Point, Predictor, Prompt
from iog.arrays import Array, UInt8Array
from iog.backends import Graph, open_backend
from iog.backends.base import BundleBackend, open_graphs, stack
from iog.backends.device import MOST, Buffer
from iog.backends.ort_cuda import OrtDeviceBackend, OrtProgram
from iog.backends.surgery import pad
from iog.bundle import Bundle
from iog.errors import BackendError, OutOfMemory
from iog.image import Image
from iog.predictor import feature_cache

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
SPOTS = [(100, 100), (104, 97), (130, 100), (200, 150), (75, 45), (150, 120)]


class HostMemory:
    """Device memory on the host: addresses are addresses."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []

    def allocate(self, nbytes: int) -> int:
        self.arrays.append(np.zeros(nbytes, np.uint8))
        return int(self.arrays[-1].ctypes.data)

    def write(self, buffer: Buffer, array: Array) -> None:
        assert (array.shape, array.dtype) == (buffer.shape, buffer.dtype)
        ctypes.memmove(buffer.address, array.ctypes.data, buffer.nbytes)

    def read(self, buffer: Buffer) -> Array:
        out = np.empty(buffer.shape, buffer.dtype)
        ctypes.memmove(out.ctypes.data, buffer.address, buffer.nbytes)
        return out

    def copy(self, source: Buffer, to: Buffer) -> None:
        assert (source.shape, source.dtype) == (to.shape, to.dtype)
        ctypes.memmove(to.address, source.address, source.nbytes)

    def close(self) -> None:
        self.arrays.clear()


@pytest.fixture(scope="module", params=["small", "channels last", "default"])
def split(request: pytest.FixtureRequest, split_bundle: Path, last_bundle: Path) -> Bundle:
    return Bundle.open({"small": split_bundle, "channels last": last_bundle}.get(request.param))


def engine(bundle: Bundle, slots: int = 8) -> OrtDeviceBackend:
    features = bundle.manifest.graphs["encoder"].outputs if "encoder" in bundle.manifest.graphs else ()
    member = sum(int(np.prod(t.shape[1:])) * np.dtype(t.dtype).itemsize for t in features)  # type: ignore[arg-type]
    return OrtDeviceBackend("cpu", 1, budget=slots * member, memory=HostMemory)


@pytest.fixture
def graphs(split: Bundle) -> Iterator[dict[str, Graph]]:
    opened = dict(open_graphs(engine(split), split))
    yield opened
    for graph in opened.values():
        graph.close()


def encoded(graphs: dict[str, Graph], bundle: Bundle, seed: int) -> list[Array]:
    """Features of noise, on the device or as arrays."""
    random = np.random.default_rng(seed)
    size = bundle.guidance.size
    image = random.integers(0, 256, (1, size, size, 3), np.uint8)
    inside, corners = random.integers(0, size, (1, 2), np.int32), random.integers(0, size, (4, 2), np.int32)
    return graphs["encoder"].run({"image": image, "points": pad([inside], [corners])})


def test_a_batch_of_objects_in_any_slots_has_the_logits_that_each_has_alone(
    split: Bundle, graphs: dict[str, Graph]
) -> None:
    slots = [encoded(graphs, split, seed)[0] for seed in range(3)]
    shape = split.manifest.graphs["head"].inputs[-1].shape[1:]
    clicks = np.random.default_rng(9).normal(size=(5, 1, *shape)).astype(np.float32)  # type: ignore[arg-type]
    order = [2, 0, 2, 1, 0]
    head = graphs["head"]
    (together,) = head.run({"slots": stack([slots[i] for i in order]), "clicks": np.concatenate(clicks)})
    assert together.shape[0] == 5
    for logits, i, click_map in zip(together, order, clicks, strict=True):
        (alone,) = head.run({"slots": slots[i], "clicks": click_map})
        np.testing.assert_allclose(logits, alone[0], atol=1e-3 * alone.std())


def test_no_tensor_of_an_arena_has_more_values_than_engines_can_count(split: Bundle) -> None:
    class Boundless(HostMemory):
        """Of which only the sizes matter."""

        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []

        def allocate(self, nbytes: int) -> int:
            self.sizes.append(nbytes)
            return 0

    memory, features = Boundless(), split.manifest.graphs["encoder"].outputs
    members = [math.prod(d for d in t.shape[1:] if isinstance(d, int)) for t in features]
    for graph in OrtDeviceBackend("cpu", 1, budget=1 << 50, memory=lambda: memory).load(split).values():
        graph.close()
    each = sum(n * np.dtype(t.dtype).itemsize for n, t in zip(members, features, strict=True))
    held = max(memory.sizes) // each
    assert max(members) * held < 2**31
    assert held == 1 << 16 or max(members) * (held + 2) > 2**31  # and alignment


def test_clicks_on_a_device_give_the_same_scores(split: Bundle, photo: UInt8Array, prompt: Prompt) -> None:
    image = Image.of(photo)
    one = prompt.with_click(100, 100, positive=False)
    requests = [prompt, one, one.with_click(130, 90, positive=True), prompt.with_click(200, 150, positive=False)]
    with Predictor(split, engine(split)) as device, Predictor(split, open_backend("ort", threads=1)) as host:
        for request in requests:
            found, expected = (p.segment(image, request, scores=True) for p in (device, host))
            assert found.cache == expected.cache
            assert found.logits is not None
            assert expected.logits is not None
            np.testing.assert_allclose(found.logits, expected.logits, atol=1e-3 * expected.logits.std())


@pytest.mark.skipif(not HAS_CUDA, reason="ONNX Runtime has no CUDAExecutionProvider here")
def test_clicks_on_a_gpu_give_nearly_the_same_scores_also_when_recordings_repeat(
    split: Bundle, photo: UInt8Array, prompt: Prompt
) -> None:
    image = Image.of(photo)
    one = prompt.with_click(100, 100, positive=False)
    requests = [prompt, one, one.with_click(130, 90, positive=True)]
    others = [Prompt(Box(60 + i, 40, 230, 200), prompt.inside) for i in range(4)]  # encoded, too, once recorded
    tolerance = 0.1 if split.manifest.precision == "fp16" else 1e-3  # arithmetic in halves, in float32
    gpu = open_backend("ort", device="cuda", features_budget=1 << 28)
    with Predictor(split, gpu) as device, Predictor(split, open_backend("ort", threads=1)) as host:
        for request in [*requests, *others, *requests, *requests]:
            found, expected = (p.segment(image, request, scores=True) for p in (device, host))
            assert found.logits is not None
            assert expected.logits is not None
            np.testing.assert_allclose(found.logits, expected.logits, atol=tolerance * expected.logits.std())


def test_a_network_of_one_graph_runs_on_a_device_too(single_bundle: Path, photo: UInt8Array, prompt: Prompt) -> None:
    bundle = Bundle.open(single_bundle)
    clicked = prompt.with_click(110, 100, positive=False)
    with Predictor(bundle, engine(bundle)) as device, Predictor(bundle, open_backend("ort")) as host:
        found, expected = (p.segment(photo, clicked, scores=True) for p in (device, host))
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)


def test_features_stay_on_the_device_and_are_counted_by_their_size(split: Bundle, graphs: dict[str, Graph]) -> None:
    (slots,) = encoded(graphs, split, 0)
    assert not isinstance(slots, np.ndarray)
    outputs = open_backend("ort", threads=1).open("encoder", split.graphs["encoder"], split.manifest.graphs["encoder"])
    inputs = {t.name: np.zeros((1, *t.shape[1:]), t.dtype) for t in outputs.info.inputs}  # type: ignore[arg-type]
    assert slots.nbytes == sum(array.nbytes for array in outputs.run(inputs))


def test_more_members_than_a_batch_takes_run_in_pieces(split: Bundle, graphs: dict[str, Graph]) -> None:
    random, spec = np.random.default_rng(0), split.guidance
    new = random.integers(0, spec.size, (MOST + 6, 2), np.int32)
    inputs = {"points": pad(list(new[:, None]), [new[:1]] * len(new)), "origin": spec.window_origins(new)}
    (cells,) = graphs["click"].run(inputs)
    for i in (0, MOST - 1, MOST, MOST + 5):
        (alone,) = graphs["click"].run({name: value[i : i + 1] for name, value in inputs.items()})
        np.testing.assert_allclose(cells[i], alone[0], atol=1e-5)


def test_a_slot_is_free_again_when_nothing_refers_to_it(split_bundle: Path) -> None:
    bundle = Bundle.open(split_bundle)
    graphs = dict(open_graphs(engine(bundle, slots=2), bundle))
    one, two = encoded(graphs, bundle, 1), encoded(graphs, bundle, 2)
    with pytest.raises(OutOfMemory, match="all 2 slots"):
        encoded(graphs, bundle, 3)
    batch = stack([*one, *two])
    del one, two
    with pytest.raises(OutOfMemory):
        encoded(graphs, bundle, 3)
    del batch
    encoded(graphs, bundle, 3)


def test_a_full_arena_forgets_the_object_that_was_used_least_recently(
    split_bundle: Path, photo: UInt8Array, prompt: Prompt
) -> None:
    bundle = Bundle.open(split_bundle)
    image = Image.of(photo)
    objects = [prompt, Prompt(prompt.box, Point(160, 120)), Prompt(Box(100, 60, 200, 180), Point(150, 120))]
    with Predictor(bundle, engine(bundle, slots=2)) as predictor, Predictor(bundle, open_backend("ort")) as host:
        how = []
        for i in (0, 1, 0, 2, 0, 1):
            found = predictor.segment(image, objects[i], scores=True)
            np.testing.assert_allclose(found.logits, host.segment(image, objects[i], scores=True).logits, atol=1e-4)
            how.append(found.cache.features)
        assert how == ["miss", "miss", "hit", "miss", "hit", "miss"]


@pytest.mark.parametrize("where", ["device", "host"])
def test_annotators_at_once_share_batches_and_get_their_own_masks(
    split_bundle: Path, photo: UInt8Array, prompt: Prompt, where: str
) -> None:
    bundle = Bundle.open(split_bundle)
    backend = engine(bundle) if where == "device" else open_backend("ort", threads=1)
    backend.heads = 8
    image = Image.of(photo)
    objects = [Prompt(prompt.box, Point(140 + 4 * i, 118)) for i in range(6)]
    start = threading.Barrier(6)

    def annotate(i: int) -> list[Array | None]:
        request, results = objects[i], []
        start.wait(60)
        for spot in SPOTS:
            results.append(predictor.segment(image, request, scores=True).logits)
            request = request.with_click(*spot, positive=i % 2 == 0)
        return results

    with Predictor(bundle, backend) as predictor, Predictor(bundle, open_backend("ort")) as host:
        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(annotate, range(6)))
        for i, found in enumerate(results):
            request = objects[i]
            for logits, spot in zip(found, SPOTS, strict=True):
                expected = host.segment(image, request, scores=True).logits
                np.testing.assert_allclose(logits, expected, atol=1e-4)
                request = request.with_click(*spot, positive=i % 2 == 0)


def test_a_closed_graph_says_so(split: Bundle, graphs: dict[str, Graph]) -> None:
    (slots,) = encoded(graphs, split, 0)
    for graph in graphs.values():
        graph.close()
        graph.close()
    clicks = np.zeros((1, *split.manifest.graphs["head"].inputs[-1].shape[1:]), np.float32)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="'head' is closed"):
        graphs["head"].run({"slots": slots, "clicks": clicks})
    with pytest.raises(BackendError, match="'encoder' is closed"):
        encoded(graphs, split, 1)


def test_a_full_arena_costs_one_object_of_its_own_and_none_of_other_models(
    split_bundle: Path, photo: UInt8Array, prompt: Prompt
) -> None:
    bundle, features, image = Bundle.open(split_bundle), feature_cache(), Image.of(photo)
    objects = [Prompt(prompt.box, Point(140 + 4 * i, 118)) for i in range(4)]
    with (
        Predictor(bundle, engine(bundle, slots=3), features=features) as one,
        Predictor(bundle, engine(bundle, slots=3), features=features) as other,
    ):
        for predictor in (other, one):
            for request in objects[:3]:
                predictor.segment(image, request)
        one.segment(image, objects[3])
        assert [one.segment(image, request).cache.features for request in objects[1:]] == ["hit"] * 3
        assert [other.segment(image, request).cache.features for request in objects[:3]] == ["hit"] * 3


def test_features_of_one_load_are_not_anothers(split_bundle: Path, photo: UInt8Array, prompt: Prompt) -> None:
    bundle, features = Bundle.open(split_bundle), feature_cache()
    expected = Predictor(bundle, open_backend("ort")).segment(photo, prompt, scores=True)
    for backend in (engine(bundle), engine(bundle), open_backend("ort")):
        with Predictor(bundle, backend, features=features) as predictor:
            found = predictor.segment(photo, prompt, scores=True)
        assert found.cache.features == "miss"
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
    with Predictor(bundle, open_backend("ort"), features=features) as predictor:
        assert predictor.segment(photo, prompt).cache.features == "hit"


def test_memory_that_forgetting_does_not_free_costs_others_nothing(
    split_bundle: Path, photo: UInt8Array, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(split_bundle)
    with Predictor(bundle, engine(bundle)) as predictor:
        predictor.segment(photo, prompt)

        def full(self: OrtProgram, tensors: object) -> None:
            raise OutOfMemory("cudaMalloc failed")

        with monkeypatch.context() as patched:
            patched.setattr(OrtProgram, "run", full)
            with pytest.raises(OutOfMemory):
                predictor.segment(photo, Prompt(prompt.box, Point(150, 120)))
        assert predictor.segment(photo, prompt).cache.features == "hit"


def test_only_engines_that_share_memory_take_whole_bundles(split_bundle: Path) -> None:
    assert isinstance(engine(Bundle.open(split_bundle)), BundleBackend)
    assert not isinstance(open_backend("ort"), BundleBackend)


def test_of_a_bundle_that_cannot_be_compiled_nothing_is_left(split: Bundle) -> None:
    closed: list[str] = []

    class Recorded(HostMemory):
        def close(self) -> None:
            closed.append("memory")

    backend = OrtDeviceBackend("cpu", 1, budget=1 << 20, memory=Recorded)
    program = OrtDeviceBackend._program

    def failing(name: str, *arguments: object) -> OrtProgram:
        if name == "head":
            raise OutOfMemory("no room")
        made = program(backend, name, *arguments)  # type: ignore[arg-type]
        made.close = lambda: closed.append(name)  # type: ignore[method-assign]
        return made

    backend._program = failing  # type: ignore[method-assign]
    with pytest.raises(OutOfMemory, match="no room"):
        backend.load(split)
    assert closed == ["encoder", "click", "memory"]
