"""Bundles with small but real ONNX graphs, and a photograph to click on."""

import hashlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.parser
import pytest
from hypothesis import settings
from iog import Box, Point, Prompt
from iog.arrays import UInt8Array
from iog.backends import NAMES, open_backend
from iog.bundle import (
    FEATURES,
    CropInfo,
    GraphInfo,
    GuidanceInfo,
    Manifest,
    NetworkInfo,
    Proof,
    Provenance,
    TensorInfo,
    is_map,
    write_bundle,
)
from iog.errors import BackendUnavailable
from onnx import numpy_helper

# Shells start what ends in & with SIGINT ignored, and it and all it starts stay so: Ctrl-C could not be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

# no deadline: nothing here asserts how fast this machine is; the same examples everywhere
settings.register_profile("iog", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("iog")

HEADER = '<ir_version: 8, opset_import: ["": 17]>'

# A network of size 128 with a grid of 8, fwhm 10, hence windows of 79 pixels and 4 cells like the published one.
ENCODER = """
encoder (uint8[batch,128,128,3] image, uint8[batch,2,128,128] guidance)
  => (float[batch,5,8,8] context, float[batch,5,50] pooled, float[batch,5,8,8] level1, float[batch,5,16,16] level2,
      float[batch,5,32,32] detail)
<float full = {255.0}, int64[3] flat = {0, 5, 64}, int64[1] first = {0}, int64[1] last = {50}, int64[1] axis = {2}>
{
  planes = Transpose<perm = [0, 3, 1, 2]>(image)
  bytes = Concat<axis = 1>(planes, guidance)
  values = Cast<to = 1>(bytes)
  x = Div(values, full)
  context = AveragePool<kernel_shape = [16, 16], strides = [16, 16]>(x)
  level1 = MaxPool<kernel_shape = [16, 16], strides = [16, 16]>(x)
  level2 = AveragePool<kernel_shape = [8, 8], strides = [8, 8]>(x)
  detail = AveragePool<kernel_shape = [4, 4], strides = [4, 4]>(x)
  flattened = Reshape(context, flat)
  pooled = Slice(flattened, first, last, axis)
}"""

# One convolution over the field of a cell, without heat outside the frame.
CLICK = """
click (uint8[batch,2,79,79] window, int32[batch,2] origin) => (float[batch,8,4,4] cells)
<int32 zero = {0}, int32 size = {128}, float full = {255.0}, int64[1] one = {1}, int64[1] two = {2}>
{
  first = Unsqueeze(origin, two)
  at = Add(first, steps)
  not_before = GreaterOrEqual(at, zero)
  not_after = Less(at, size)
  within = And(not_before, not_after)
  inside = Cast<to = 1>(within)
  xs, ys = Split<axis = 1>(inside)
  column = Transpose<perm = [0, 2, 1]>(ys)
  square = MatMul(column, xs)
  valid = Unsqueeze(square, one)
  values = Cast<to = 1>(window)
  scaled = Div(values, full)
  heat = Mul(scaled, valid)
  response = Conv<strides = [16, 16]>(heat, kernel)
  cells = Tanh(response)
}"""

HEAD = """
head (float[batch,5,8,8] context, float[batch,5,50] pooled, float[batch,5,8,8] level1, float[batch,5,16,16] level2,
      float[batch,5,32,32] detail, float[batch,8,8,8] clicks) => (float[batch,32,32] logits)
<float half = {0.4}, float gain = {8.0}, float small = {0.1}, int64[1] one = {1}>
{
  brightness = ReduceMean<axes = [1], keepdims = 0>(detail)
  centred = Sub(brightness, half)
  seen = Mul(centred, gain)
  spread = Conv(clicks, spreading)
  large = DepthToSpace<blocksize = 4>(spread)
  clicked = Squeeze(large, one)
  a = ReduceMean<axes = [1, 2, 3], keepdims = 0>(context)
  b = ReduceMean<axes = [1, 2], keepdims = 0>(pooled)
  c = ReduceMean<axes = [1, 2, 3], keepdims = 0>(level1)
  d = ReduceMean<axes = [1, 2, 3], keepdims = 0>(level2)
  total = Sum(a, b, c, d)
  level = Mul(total, small)
  shift = Unsqueeze(level, one)
  shifts = Unsqueeze(shift, one)
  logits = Sum(seen, clicked, shifts)
}"""

NETWORK = """
network (uint8[batch,128,128,3] image, uint8[batch,2,128,128] guidance) => (float[batch,32,32] logits)
<float half = {0.4}, float gain = {8.0}>
{
  planes = Transpose<perm = [0, 3, 1, 2]>(image)
  bytes = Concat<axis = 1>(planes, guidance)
  values = Cast<to = 1>(bytes)
  weighted = Conv<strides = [4, 4]>(values, blocks)
  mean = ReduceMean<axes = [1], keepdims = 0>(weighted)
  centred = Sub(mean, half)
  logits = Mul(centred, gain)
}"""


@pytest.fixture(scope="session")
def wait_for() -> Callable[[Callable[[], bool]], None]:
    """Waits for a condition; fails after a minute without it."""

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.001)

    return wait


def _weights() -> Mapping[str, np.ndarray]:
    random = np.random.default_rng(7)
    blocks = np.ones((1, 5, 4, 4)) * np.reshape([1, 1, 1, 9, -9], (1, 5, 1, 1)) / (3 * 16 * 255)
    return {
        "steps": np.arange(79, dtype=np.int32),
        "kernel": random.normal(0, 0.1, (8, 2, 31, 31)).astype(np.float32),
        "spreading": random.normal(0, 0.6, (16, 8, 1, 1)).astype(np.float32),
        "blocks": blocks.astype(np.float32),
    }


def _model(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEADER + text)
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in _weights().items() if k in used)
    onnx.checker.check_model(model, full_check=True)
    return model


def _info(name: str, model: onnx.ModelProto, data: bytes) -> GraphInfo:
    def tensor(value: onnx.ValueInfoProto) -> TensorInfo:
        shape = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        turned = any(value.name in (*n.input, *n.output) and n.op_type == "Transpose" for n in model.graph.node)
        info = TensorInfo.model_validate({"name": value.name, "dtype": dtype, "shape": shape})
        return info.model_copy(update={"channels_last": is_map(info) and turned})

    return GraphInfo(
        file=f"{name}.onnx",
        sha256=hashlib.sha256(data).hexdigest(),
        inputs=tuple(tensor(v) for v in model.graph.input),
        outputs=tuple(tensor(v) for v in model.graph.output),
        macs=1000,
    )


def _write(path: Path, texts: Mapping[str, str]) -> Path:
    return _bundle(path, {name: _model(text) for name, text in texts.items()})


def _bundle(path: Path, models: Mapping[str, onnx.ModelProto]) -> Path:
    graphs = {name: model.SerializeToString() for name, model in models.items()}
    split = "head" in models
    manifest = Manifest(
        format=1,
        name=path.name,
        kind="split" if split else "single",
        network=NetworkInfo(
            architecture="iog-refine" if split else "iog", backbone="resnet18", width=32, normalize=False
        ),
        guidance=GuidanceInfo(fwhm=10),
        crop=CropInfo(size=128, relax_pixels=10, relax_fraction=0, interpolation="bilinear", corner_offset=0),
        threshold=0.5,
        precision="fp32",
        graphs={name: _info(name, models[name], data) for name, data in graphs.items()},
        provenance=Provenance(checkpoint="none", checkpoint_sha256=None, created="2020-06-14", versions={}),
        proof=Proof(cases=("none",), max_logit_error=0, logit_tolerance=1e-3, mask_disagreement=0, mask_tolerance=1e-4),
    )
    write_bundle(path, manifest, graphs, f"# {path.name}\n")
    return path


def pytest_configure(config: pytest.Config) -> None:
    # pycocotools up to 2.0.11 on numpy 2, in coco.decode
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation doesn't accept:DeprecationWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that run on every backend are skipped on those that this machine has no device for, and say which."""
    missing = {}
    for name in NAMES:
        try:
            open_backend(name)
        except BackendUnavailable as e:
            missing[name] = str(e)
    for item in items:
        for value in (
            item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
        ):
            if isinstance(value, str) and value in missing:
                item.add_marker(pytest.mark.skip(reason=f"backend {value}: {missing[value]}"))


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What engines keep between runs goes elsewhere than at home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def split_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split bundle, "small-split": brightness decides, clicks add and subtract."""
    path = tmp_path_factory.mktemp("bundles") / "small-split"
    return _write(path, {"encoder": ENCODER, "click": CLICK, "head": HEAD})


@pytest.fixture(scope="session")
def last_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, "small-last", with maps among the features channels last, as int8 bundles have them."""
    from iog_export.storage import store_channels_last

    models = {name: _model(text) for name, text in {"encoder": ENCODER, "click": CLICK, "head": HEAD}.items()}
    for model in models.values():
        store_channels_last(model, FEATURES)
    return _bundle(tmp_path_factory.mktemp("bundles") / "small-last", models)


@pytest.fixture(scope="session")
def single_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one graph, "small-single"."""
    return _write(tmp_path_factory.mktemp("bundles") / "small-single", {"network": NETWORK})


@pytest.fixture(scope="session")
def photo() -> UInt8Array:
    """(240, 320, 3) RGB: a bright disc, radius 70 around (150, 120), on a dark ground, with grain."""
    y, x = np.mgrid[:240, :320]
    light = np.where(np.hypot(x - 150, y - 120) < 70, 170, 60)[..., None]
    grain = np.random.default_rng(3).integers(-50, 50, (240, 320, 3))
    return (light + grain).astype(np.uint8)


@pytest.fixture(scope="session")
def prompt() -> Prompt:
    """The disc in `photo`."""
    return Prompt(Box(80, 50, 220, 190), Point(150, 120))
