"""`iog export --precision int8`: which layers become int8 is decided by what they lose."""

import hashlib
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import cv2
import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner, Result
from iog.arrays import Array
from iog.backends.ort import DTYPES
from iog.backends.ort_cuda import OrtDeviceBackend, prepared
from iog.bundle import Bundle, GraphInfo, TensorInfo
from iog.crop import CropSpec
from iog.guidance import GuidanceSpec
from iog.predictor import Predictor
from iog_export import quantize, to_onnx
from iog_export.accuracy import MeanIoU, open_objects, untracked
from iog_export.cli import export
from iog_export.datasets import DataError, DataSet, open_layout
from iog_export.export import ExportPlan
from iog_export.quantize import Calibration, CalibrationError, Quantizer, Sample, least_float
from iog_export.storage import channel_ranges, store_as_uint8
from iog_export.to_onnx import OnnxGraph
from iog_export.verify import PHOTOGRAPHS, cases
from onnx import numpy_helper

CHELSEA = PHOTOGRAPHS / "chelsea.jpg"
TINY = ["--backbone", "resnet18", "--width", "16", "--size", "64", "--random-weights", "2"]

# `coarse` maps are sums of a channel that is a thousand times larger than the one that matters: eight bits lose it.
NETWORK = """
<ir_version: 8, opset_import: ["": 18]>
network (uint8[batch,16,16,3] image, uint8[batch,2,16,16] guidance) => (float[batch,16,16] logits)
<int64[1] one = {1}, float level = {300.0}>
{
  planes = Transpose<perm = [0, 3, 1, 2]>(image)
  values = Cast<to = 1>(planes)
  a = Conv(values, fine_weight)
  seen = Relu(a)
  b = Conv(seen, coarse_weight)
  c = Conv(b, last_weight)
  sum = Sub(c, level)
  logits = Squeeze(sum, one)
}"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(export, [*arguments, "--photograph", str(CHELSEA)])


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    """The exports are of one network, whose tracing takes most of their time."""
    traced: dict[str, onnx.ModelProto] = {}

    def export_graph(name: str, *rest: Any) -> onnx.ModelProto:
        if name not in traced:
            traced[name] = to_onnx.export_graph(name, *rest)
        model = onnx.ModelProto()
        model.CopyFrom(traced[name])
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iog_export.export.export_graph", export_graph)
        yield


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen photographs of discs for training, two for validation."""
    root = tmp_path_factory.mktemp("album")
    rng = np.random.default_rng(5)
    for folder in ("images", "masks"):
        (root / "discs" / folder).mkdir(parents=True)
    for i in range(18):
        labels = np.zeros((72, 96), np.uint8)
        cv2.circle(labels, tuple(map(int, rng.integers(30, 45, 2))), int(rng.integers(14, 22)), (1,), -1)
        pixels = rng.integers(0, 60, (72, 96, 3)) + labels[:, :, None] * np.array([60, 120, 170])
        assert cv2.imwrite(str(root / "discs" / "images" / f"{i}.jpg"), pixels.astype(np.uint8))
        assert cv2.imwrite(str(root / "discs" / "masks" / f"{i}.png"), labels)
    (root / "train.txt").write_text("\n".join(f"discs/{i}" for i in range(16)))
    (root / "val.txt").write_text("discs/16\ndiscs/17")
    return root


@pytest.fixture(scope="module")
def quantizer() -> tuple[Quantizer, list[Sample]]:
    model = onnx.parser.parse_model(NETWORK)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = name.replace("_weight", ".weight")  # no name of the text format has a dot
    weights = {
        "fine.weight": np.ones((2, 3, 1, 1)),
        "coarse.weight": np.array([[1, 1], [1000, 1000]]).reshape(2, 2, 1, 1),
        "last.weight": np.array([[1, 1e-6]]).reshape(1, 2, 1, 1),
    }
    model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items())
    data = model.SerializeToString()
    info = GraphInfo(
        file="network.onnx",
        sha256=hashlib.sha256(data).hexdigest(),
        inputs=(
            TensorInfo(name="image", dtype="uint8", shape=("batch", 16, 16, 3)),
            TensorInfo(name="guidance", dtype="uint8", shape=("batch", 2, 16, 16)),
        ),
        outputs=(TensorInfo(name="logits", dtype="float32", shape=("batch", 16, 16)),),
        macs=0,
    )
    rng = np.random.default_rng(1)
    samples = [
        Sample(
            {
                "image": rng.integers(0, 100, (1, 16, 16, 3)).astype(np.uint8),
                "guidance": np.zeros((1, 2, 16, 16), np.uint8),
            }
        )
        for _ in range(4)
    ]
    return Quantizer({"network": OnnxGraph(data, info)}, samples, untracked), samples


def test_the_layer_that_eight_bits_spoil_is_found_and_left_in_float(
    quantizer: tuple[Quantizer, list[Sample]],
) -> None:
    layers, samples = quantizer
    damage = layers.damage(samples, 0.0, untracked)
    assert set(damage) == {"network fine", "network coarse", "network last"}
    assert damage["network fine"] < 0.03
    worst = max(damage.values())
    assert worst > 0.2

    def loss(quantized: Collection[str]) -> float:
        return sum(damage[layer] for layer in quantized)

    kept, lost = least_float(damage, loss, 0.03)
    assert kept == sorted(damage, key=lambda layer: -damage[layer])[: len(kept)]
    assert kept
    assert "network fine" not in kept
    assert lost <= 0.03


def test_a_budget_that_no_choice_of_layers_meets_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"still loses 0.2000 of mean IoU, over 0.1; export it with .*fp16"):
        least_float({"head a": 0.3, "head b": 0.1}, lambda layers: 0.2, 0.1)


def test_weights_are_int8_by_channel_and_maps_uint8(quantizer: tuple[Quantizer, list[Sample]]) -> None:
    graph = quantizer[0].graphs(["network fine"])["network"].graph
    types = {t.name: t.data_type for t in graph.initializer}
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    assert types["fine.weight_quantized"] == onnx.TensorProto.INT8
    assert shapes["fine.weight_scale"] == (2,)
    assert types["values_zero_point"] == onnx.TensorProto.UINT8
    assert types["coarse.weight"] == onnx.TensorProto.FLOAT


def test_a_relu_is_part_of_its_int8_convolution_and_stays_behind_a_float_one(
    quantizer: tuple[Quantizer, list[Sample]],
) -> None:
    int8 = quantizer[0].graphs(["network fine"])["network"].graph
    assert [node.op_type for node in int8.node].count("Relu") == 0
    zero_points = {t.name: numpy_helper.to_array(t) for t in int8.initializer if t.name.endswith("zero_point")}
    assert zero_points["seen_zero_point"] == 0  # all 256 values are for what the ReLU lets through
    (conv,) = (node for node in int8.node if node.op_type == "Conv" and "fine" in node.input[1])
    assert [n.op_type for n in int8.node if conv.output[0] in n.input] == ["QuantizeLinear"]
    float_first = quantizer[0].graphs(["network coarse"])["network"].graph
    assert [node.op_type for node in float_first.node].count("Relu") == 1


def test_uint8_features_keep_each_channel_to_half_a_step() -> None:
    text = """
    <ir_version: 8, opset_import: ["": 18]>
    stored (float[batch,2,4] level1) => (float[batch,2,4] detail) { detail = Identity(level1) }"""
    model = onnx.parser.parse_model(text)
    values = np.array([[[0, 1, 2, 3], [-500, 0, 250, 500]]], np.float32)
    given: list[dict[str, Array]] = [{"level1": values, "detail": values}]
    store_as_uint8(model, channel_ranges(given, ["level1", "detail"]))
    onnx.checker.check_model(model, full_check=True)
    assert [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)] == [
        onnx.TensorProto.UINT8
    ] * 2
    scale, zero = (numpy_helper.to_array(t) for t in model.graph.initializer if t.name.startswith("detail"))
    stored = np.clip(np.rint(values / scale[:, None]) + zero[:, None], 0, 255)
    restored = (stored - zero[:, None]) * scale[:, None]
    assert (np.abs(restored - values) <= np.array([[0.5 * 3 / 255], [0.5 * 1000 / 255]]) * 1.001).all()


def test_an_int8_bundle_is_calibrated_proved_and_says_what_it_costs(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny8"
    arguments = ["--precision", "int8", "--calibration", str(album), "--max-loss", "100", "--accuracy", str(album)]
    result = run(*TINY, *arguments, "--out", str(out))
    assert result.exit_code == 0, result.output
    bundle = Bundle.open(out)
    proof = bundle.manifest.proof
    assert bundle.manifest.precision == "int8"
    assert {t.dtype for t in bundle.manifest.graphs["encoder"].outputs} == {"float16"}
    assert [t.channels_last for t in bundle.manifest.graphs["encoder"].outputs] == [True, False, True, True, True, True]
    assert bundle.manifest.graphs["head"].inputs[0].shape[1:3] == (4, 4)
    assert proof.quantization is not None
    assert proof.quantization.objects == 16
    assert proof.quantization.kept_float == ()  # any loss is allowed here
    assert {"encoder backbone.conv1", "encoder backbone.layer4.1", "head conv2"} <= set(proof.quantization.damage)
    assert proof.accuracy is not None
    assert proof.accuracy.objects == 2
    assert set(proof.accuracy.iou) == set(proof.accuracy.torch) == {3, 5}
    operators = {name: {n.op_type for n in onnx.load(out / f"{name}.onnx").graph.node} for name in bundle.graphs}
    assert "QuantizeLinear" in operators["encoder"] & operators["head"]
    assert "QuantizeLinear" not in operators["click"]
    result = run(*TINY, "--out", str(tmp_path / "tiny"))
    assert result.exit_code == 0, result.output
    (inner, _) = cases([CHELSEA], bundle.crop)

    def logits(path: Path, engine: str) -> Array:
        with Predictor.open(path, engine) as predictor:
            found = [predictor.segment(inner.image, prompt, scores=True).logits for prompt in inner.prompts]
        return np.array(found)

    exact = logits(tmp_path / "tiny", "ort")
    for engine in ("ort", "openvino"):
        correlation = np.corrcoef(logits(out, engine).ravel(), exact.ravel())[0, 1]
        assert correlation > 0.98


def test_too_few_objects_to_calibrate_on_are_refused(album: Path) -> None:
    with pytest.raises(CalibrationError, match="2 objects to calibrate on; expected at least 16"):
        Calibration(open_objects(open_layout(album, "val"), None))


def test_objects_whose_photographs_cannot_be_decoded_are_not_calibrated_on(album: Path, tmp_path: Path) -> None:
    shutil.copytree(album, tmp_path / "album")
    image = tmp_path / "album" / "discs" / "images" / "3.jpg"
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    result = run(*TINY, "--precision", "int8", "--calibration", str(tmp_path / "album"), "--out", str(tmp_path / "x"))
    assert isinstance(result.exception, CalibrationError)
    assert "15 objects to calibrate on; expected at least 16" in str(result.exception)
    assert "skipped discs/3: " in result.output


def test_uint8_features_that_lose_too_much_on_other_objects_than_gave_ranges_are_refused(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = Calibration(open_objects(open_layout(album, "train"), None))
    measured = []

    def ious(bundle: Bundle, objects: DataSet, track: object) -> MeanIoU:
        stored = {t.dtype for t in bundle.manifest.graphs["head"].inputs if t.name != "clicks"}
        assert objects.items == calibration.judging.items
        measured.append(stored)
        return MeanIoU(8, {3: 0.7, 5: 0.8} if stored == {"float32"} else {3: 0.69, 5: 0.78})

    monkeypatch.setattr(quantize, "deployed_ious", ious)
    arguments = ["--features", "uint8", "--calibration", str(album), "--max-loss", "1", "--out", str(tmp_path / "x")]
    result = run(*TINY, *arguments)
    assert isinstance(result.exception, CalibrationError)
    assert "with uint8 features the bundle loses 0.0200 of mean IoU, over 0.01" in str(result.exception)
    assert measured == [{"float32"}, {"uint8"}]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("sha256", "features", "expected"),
    [("0" * 64, "uint8", "uint8"), ("0" * 64, None, "fp16"), (None, "uint8", "random-int8")],
)
def test_the_proof_judges_by_the_coarsest_rounding(
    sha256: str | None, features: Literal["uint8"] | None, expected: str
) -> None:
    plan = ExportPlan("some", CropSpec(64), GuidanceSpec(64, 2.0), "fp16", 0.5, "some.pt", sha256, features=features)
    assert plan.tolerance == expected


def test_accuracy_is_not_measured_on_photographs_that_gave_ranges(album: Path, tmp_path: Path) -> None:
    (tmp_path / "discs").symlink_to(album / "discs")
    (tmp_path / "val.txt").write_text("discs/3\ndiscs/17")
    arguments = ["--precision", "int8", "--calibration", str(album), "--accuracy", str(tmp_path)]
    result = run(*TINY, *arguments, "--out", str(tmp_path / "x"))
    assert result.exit_code == 2
    problem = "1 photographs of its validation split, such as discs/3, are in the training split of --calibration"
    assert problem in " ".join(result.output.replace("│", " ").split())


def test_the_format_of_the_photographs_can_be_named(album: Path, tmp_path: Path) -> None:
    for folder in ("img", "inst"):  # as SBD has
        (tmp_path / folder).mkdir()
    (tmp_path / "discs").symlink_to(album / "discs")
    (tmp_path / "train.txt").write_text("discs/0")
    arguments = ["--precision", "int8", "--calibration", str(tmp_path), "--out", str(tmp_path / "x")]
    assert "looks like folders and sbd" in str(run(*TINY, *arguments).exception)
    assert "1 objects to calibrate on" in str(run(*TINY, *arguments, "--format", "folders").exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "weights.pth", "--precision", "int8"], "--precision int8 needs --calibration DATA"),
        (["--random-weights", "1", "--precision", "int8", "--features", "uint8"], "does not go with --precision int8"),
        (
            ["--random-weights", "1", "--calibration", "."],
            "--calibration is for --precision int8, --engine-precision int8 and --features uint8",
        ),
        (["--random-weights", "1", "--engine-precision", "int8"], "onnx has no engines"),
        (["--checkpoint", "weights.pth", "--features", "uint8"], "--features uint8 needs --calibration DATA"),
        (["--random-weights", "1", "--network", "iog", "--features", "fp16"], "others store nothing between clicks"),
        (["--random-weights", "1", "--precision", "int8", "--calibration", "nowhere"], "'nowhere' does not exist"),
    ],
)
def test_calibration_that_does_not_fit_the_precision_is_refused(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    result = run(*arguments, "--out", str(tmp_path / "x"))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_a_folder_that_holds_no_photographs_is_refused_before_any_work(tmp_path: Path) -> None:
    result = run(*TINY, "--precision", "int8", "--calibration", str(tmp_path), "--out", str(tmp_path / "x"))
    assert isinstance(result.exception, DataError)
    assert str(tmp_path) in str(result.exception)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("features", ["fp32", "fp16", "uint8"])
def test_features_are_stored_alike_where_fp16_bundles_compute_in_halves(
    album: Path, tmp_path: Path, features: str
) -> None:
    out = tmp_path / "half"
    arguments = ["--precision", "fp16", "--features", features, "--out", str(out)]
    if features == "uint8":
        arguments += ["--calibration", str(album), "--max-loss", "100"]
    result = run(*TINY, *arguments)
    assert result.exit_code == 0, result.output
    bundle = Bundle.open(out)
    backend = OrtDeviceBackend("cpu", 1, budget=1)
    for name, (model, info) in prepared(bundle).items():
        program = backend._program(name, model, info, SimpleNamespace(), bundle.manifest.precision)  # type: ignore[arg-type]
        session = program._session
        for declared, found in ((info.inputs, session.get_inputs()), (info.outputs, session.get_outputs())):
            assert [(t.name, t.dtype) for t in declared] == [(t.name, DTYPES[t.type]) for t in found]
        graph = onnx.load_from_string(model).graph
        assert sum(t.data_type == onnx.TensorProto.FLOAT16 for t in graph.initializer) > 5
        taken = {node.input[0] for node in graph.node if node.op_type == "Gather"}
        assert name != "head" or taken >= {t.name for t in info.inputs} - {"clicks", "slots"}  # as they lie there
