"""TensorRT-RTX takes our graphs and builds engines of them, without a GPU. What engines compute is proved on one."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from iog import Predictor
from iog.arrays import Array
from iog.backends.device import adapted
from iog.backends.surgery import to_half
from iog.backends.trt import TrtBackend
from iog.bundle import Bundle, write_bundle
from iog.errors import BackendError, BackendUnavailable, BundleError
from iog_export import tensorrt
from iog_export.accuracy import untracked
from iog_export.cli import export
from iog_export.networks import IOG, NetworkSpec
from iog_export.quantize import Sample, record
from iog_export.tensorrt import EnginePlan, build, build_engines, prove_engines, to_symmetric_int8
from iog_export.verify import PHOTOGRAPHS, cases
from onnx import numpy_helper

rtx = pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT-RTX is not installed: the extra trt has it for Linux on x86-64"
)
try:
    TrtBackend(budget=1 << 20)
    NO_GPU = ""
except BackendUnavailable as e:
    NO_GPU = f"engines can be built here, not run: {e}"
CHELSEA = PHOTOGRAPHS / "chelsea.jpg"
SMALL = ["--backbone", "resnet18", "--width", "32", "--size", "64", "--random-weights", "3"]


def run(model: bytes, inputs: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    found = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, dict(inputs))
    return [np.asarray(array, np.float32) for array in found]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The packaged model."""
    return Bundle.open()


@pytest.fixture(scope="module")
def samples(bundle: Bundle) -> list[Sample]:
    return record(bundle, cases([CHELSEA], bundle.crop)[:1], untracked)


def test_tensorrt_rtx_takes_encoder_click_and_head_and_builds_their_engines(bundle: Bundle) -> None:
    info, files = build_engines(bundle, EnginePlan("tensorrt_rtx", "fp16", "sm89"))
    assert set(info.graphs) == {"encoder", "click", "head"}
    assert (info.api, info.version, info.gpu) == ("tensorrt_rtx", rtx.__version__, "sm89")
    assert info.max_logit_error is None
    weights = sum(len(graph) for graph in bundle.graphs.values())
    assert sum(map(len, files.values())) > 0.5 * weights


def test_a_graph_that_tensorrt_cannot_run_is_refused_with_its_reason(bundle: Bundle) -> None:
    """The bundle's own encoder moves bytes about, which TensorRT does not: `adapted` casts them first."""
    _, info = adapted(bundle)["encoder"]
    with pytest.raises(BackendError, match=r"tensorrt_rtx refuses graph 'encoder': .*UInt8"):
        build(rtx, "encoder", bundle.graphs["encoder"], info, "sm80+")


def test_half_arithmetic_gives_nearly_the_same(bundle: Bundle, samples: list[Sample]) -> None:
    graphs = adapted(bundle)
    inputs = samples[0].heads[2]
    head = {**inputs, "slots": np.zeros((1, 1), np.int32)}
    half = to_half(graphs["head"][0])
    types = Counter(t.data_type for t in onnx.load_from_string(half).graph.initializer)
    assert types[onnx.TensorProto.FLOAT16] > 10 * types[onnx.TensorProto.FLOAT]
    (expected,) = run(bundle.graphs["head"], inputs)
    (found,) = run(half, head)
    np.testing.assert_allclose(found, expected, atol=0.05 * expected.std())


def test_int8_is_symmetric_keeps_biases_in_float_and_follows_the_network(bundle: Bundle, samples: list[Sample]) -> None:
    quantized = to_symmetric_int8(bundle.graphs["head"], samples[0].heads[:3])
    graph = onnx.load_from_string(quantized).graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    quantizers = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(quantizers) > 20
    for node in quantizers:
        zero = values[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    convs = [n for n in graph.node if n.op_type == "Conv"]
    produced = {n.output[0]: n.op_type for n in graph.node}
    assert {produced.get(n.input[1]) for n in convs} == {"DequantizeLinear"}
    assert {produced.get(n.input[2], "") for n in convs if len(n.input) > 2} <= {"", "Cast"}
    (expected,) = run(bundle.graphs["head"], samples[0].heads[2])
    (found,) = run(quantized, samples[0].heads[2])
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95
    model, info = adapted(replace(bundle, graphs={**bundle.graphs, "head": quantized}))["head"]
    assert build(rtx, "head", model, info, "sm80+")


def test_int8_without_calibration_data_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="int8 engines need calibration data"):
        build_engines(bundle, EnginePlan("tensorrt_rtx", "int8"))


@pytest.fixture(scope="module")
def exported(split_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with engines."""
    path = tmp_path_factory.mktemp("engines") / "small"
    small = Bundle.open(split_bundle)
    info, files = build_engines(small, EnginePlan("tensorrt_rtx"))
    manifest = small.manifest.model_copy(update={"engines": (info,)})
    write_bundle(path, manifest, small.graphs, "# small", engines=files)
    return path


def test_engines_are_stored_under_the_gpu_and_version_that_they_fit(exported: Path) -> None:
    bundle = Bundle.open(exported)
    (engines,) = bundle.manifest.engines
    directory = exported / "engines" / f"tensorrt_rtx-{rtx.__version__}-sm80+-fp16"
    assert {name: exported / stored.file for name, stored in engines.graphs.items()} == {
        name: directory / f"{name}.engine" for name in ("encoder", "click", "head")
    }
    for stored in engines.graphs.values():
        assert len(bundle.engine(stored)) == (exported / stored.file).stat().st_size


@pytest.mark.parametrize(
    ("precision", "sha256", "judged"),
    [("int8", "0" * 64, "int8"), ("int8", None, "random-int8"), ("fp16", None, "fp16")],
)
def test_engines_in_int8_are_excused_only_for_random_weights(
    exported: Path, monkeypatch: pytest.MonkeyPatch, precision: str, sha256: str | None, judged: str
) -> None:
    bundle = Bundle.open(exported)
    engine = bundle.manifest.engines[0]
    files = {stored.file: bundle.engine(stored) for stored in engine.graphs.values()}
    provenance = bundle.manifest.provenance.model_copy(update={"checkpoint_sha256": sha256})
    engines = (engine.model_copy(update={"precision": precision}),)
    manifest = bundle.manifest.model_copy(update={"provenance": provenance, "engines": engines})
    asked = []

    def prove(network: object, bundle: Bundle, cases: object, backend: object, tolerance: str) -> list[Any]:
        asked.append(tolerance)
        return [("chelsea", 0.1, 0.0)]

    monkeypatch.setattr(tensorrt, "prove", prove)
    monkeypatch.setattr(tensorrt, "TrtBackend", lambda **options: None)
    network = IOG(NetworkSpec("resnet18", width=8))
    assert prove_engines(network, manifest, bundle.graphs, files, []).max_logit_error == 0.1
    assert asked == [judged]


def test_an_engine_that_was_changed_is_refused(exported: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(exported)
    stored = bundle.manifest.engines[0].graphs["head"]
    file = tmp_path / stored.file
    file.parent.mkdir(parents=True)
    file.write_bytes(bundle.engine(stored)[:-1] + b"?")
    altered = Bundle(tmp_path, bundle.manifest, bundle.digest, bundle.graphs)
    with pytest.raises(BundleError, match=r"head\.engine: sha256 .*the manifest says"):
        altered.engine(stored)
    with pytest.raises(BundleError, match=r"encoder\.engine: No such file"):
        altered.engine(bundle.manifest.engines[0].graphs["encoder"])


@pytest.mark.parametrize(
    "file", ["engines/../head.engine", "/engines/x/head.engine", "head.engine", "engines/x/y/a.engine"]
)
def test_an_engine_lies_in_the_bundle(exported: Path, tmp_path: Path, file: str) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    manifest["engines"][0]["graphs"]["head"]["file"] = file
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"engines\.0\.graphs\.head\.file"):
        Bundle.open(tmp_path)


@pytest.mark.slow
def test_an_export_builds_engines_and_says_whether_they_were_proved(tmp_path: Path) -> None:
    arguments = ["--target", "tensorrt-rtx", "--photograph", str(CHELSEA), "--out", str(tmp_path / "small")]
    result = CliRunner().invoke(export, [*SMALL, *arguments])
    assert result.exit_code == 0, result.output
    bundle = Bundle.open(tmp_path / "small")
    (engines,) = bundle.manifest.engines
    assert {len(bundle.engine(stored)) > 1000 for stored in engines.graphs.values()} == {True}
    if NO_GPU:
        assert engines.max_logit_error is None
        assert "the engines could not be proved here" in result.output
    else:
        assert engines.max_logit_error is not None
    with Predictor.open(tmp_path / "small") as predictor:  # engines are nothing to those who do not run them
        assert predictor.segment(CHELSEA, cases([CHELSEA], predictor.bundle.crop)[0].prompts[0]).crop.size == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "tensorrt", "--gpu", "sm89"], "--gpu is for --target tensorrt-rtx"),
        (["--target", "tensorrt-rtx", "--gpu", "sm61"], "'sm61' is not one of"),
    ],
)
def test_targets_that_make_no_sense_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(export, [*SMALL, *arguments, "--out", str(tmp_path / "x")])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_an_api_that_is_missing_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "installed_apis", lambda: {"tensorrt_rtx": rtx})
    result = CliRunner().invoke(export, [*SMALL, "--target", "tensorrt", "--out", str(tmp_path / "x")])
    assert isinstance(result.exception, BackendUnavailable)
    assert "tensorrt is not installed" in str(result.exception)
    assert "exporting" not in result.output


@pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engines_compute_what_the_network_computes(precision: str, tmp_path: Path) -> None:
    arguments = ["--target", "tensorrt-rtx", "--engine-precision", precision, "--photograph", str(CHELSEA)]
    result = CliRunner().invoke(export, [*SMALL, *arguments, "--out", str(tmp_path / "x")])
    assert result.exit_code == 0, result.output
    (engines,) = Bundle.open(tmp_path / "x").manifest.engines
    assert engines.max_logit_error is not None
    assert engines.max_logit_error < {"fp32": 1e-3, "fp16": 0.2}[precision]
