"""INT8 graphs: convolutions of uint8 maps with int8 weights, but for those whose loss was measured to be too large.

The graphs are QDQ: ONNX Runtime and OpenVINO fuse each convolution with the QuantizeLinear and DequantizeLinear around
it, and a ReLU behind it is nothing but where its range begins. U8S8 suits VNNI instructions, which do not saturate;
without them `iog.backends.ort` asks for exact products. Only convolutions are worth it: additions and resizes gain
nothing in OpenVINO and lose accuracy. The click graph stays as it is: it is small, and its response to no heat must be
exactly 0.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from iog.arrays import Array, BoolArray
from iog.backends.base import Graph
from iog.backends.ort import OrtBackend
from iog.bundle import Bundle, GraphInfo, Quantization
from iog.errors import IogError
from onnxruntime.quantization import CalibrationDataReader, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from .accuracy import MeanIoU, Track, deployed_ious, mean_ious
from .datasets import DataSet
from .evaluation.measure import Deployed, predictor_of
from .evaluation.objects import spread
from .to_onnx import OnnxGraph
from .verify import Case

Inputs = Mapping[str, Array]

# A ReLU left between two conversions would cost a pass over its map, and half of the convolution's 256 values.
OPERATORS = ["Conv", "Relu"]
DAMAGE_OBJECTS = 16  # enough to rank layers: masks are compared with masks, which has little noise
MIN_OBJECTS = 16  # with fewer, neither the ranges nor the losses mean anything
FLOAT_GRAPHS = frozenset({"click"})


class CalibrationError(IogError):
    """Too few photographs to take ranges from, or ranges with which a bundle loses too much."""


@dataclass(frozen=True)
class Calibration:
    """Objects to quantize by: every second one gives ranges, the others are where losses are measured.

    objects: all of them in photographs that can be decoded, as those of `open_objects` are.
    max_loss: of mean IoU, after three clicks and after five. Raises CalibrationError for fewer than MIN_OBJECTS.
    """

    objects: DataSet
    max_loss: float = 0.005

    def __post_init__(self) -> None:
        if len(self.objects) < MIN_OBJECTS:
            raise CalibrationError(
                f"{len(self.objects)} objects to calibrate on; expected at least {MIN_OBJECTS}: "
                "add photographs with masks"
            )

    @property
    def ranging(self) -> DataSet:
        """Those that give ranges."""
        return self.objects.only(self.objects.items[::2])

    @property
    def judging(self) -> DataSet:
        """Those that losses are measured on."""
        return self.objects.only(self.objects.items[1::2])


@dataclass
class Sample:
    """What the graphs were given for an object: the first graph, and the head at each click (of a split bundle)."""

    first: Inputs
    heads: list[Inputs] = field(default_factory=list)


def record(bundle: Bundle, given: DataSet | Sequence[Case], track: Track) -> list[Sample]:
    """What the graphs of a bundle are given by a simulated annotator, or on a proof's cases."""
    recorder = Recorder()
    with predictor_of(bundle, recorder) as predictor:
        if isinstance(given, DataSet):
            mean_ious(Deployed(predictor), given, track, "recording")
        else:
            for case in track(given, "recording"):
                for prompt in case.prompts:
                    predictor.segment(case.image, prompt)
    return recorder.samples


def quantize(
    bundle: Bundle,
    graphs: Mapping[str, OnnxGraph],
    given: DataSet | Sequence[Case],
    calibration: Calibration | None,
    progress: Callable[[str], None],
    track: Track,
) -> tuple[dict[str, onnx.ModelProto], Quantization]:
    """The graphs of an fp32 bundle in int8, but for layers that cost too much, and what was measured.

    graphs: the bundle's. given: to take ranges from. Raises CalibrationError.
    """
    progress("recording what the graphs are given, and taking ranges")
    quantizer = Quantizer(graphs, record(bundle, given, track), track)
    if calibration is None:
        return quantizer.graphs(quantizer.layers), Quantization(objects=0)
    objects = calibration.judging
    manifest = bundle.manifest
    progress(f"measuring what each of {len(quantizer.layers)} layers loses in int8")
    shown = record(bundle, objects.only(spread(objects.items, DAMAGE_OBJECTS)), track)
    damage = quantizer.damage(shown, math.log(manifest.threshold / (1 - manifest.threshold)), track)

    def ious(changed: Mapping[str, onnx.ModelProto]) -> MeanIoU:
        data = {name: model.SerializeToString() for name, model in changed.items()}
        return deployed_ious(replace(bundle, graphs={**bundle.graphs, **data}), objects, track)

    progress(f"measuring mean IoU on {len(objects)} objects")
    expected = ious({})

    def loss(layers: Collection[str]) -> float:
        return expected.lost_by(ious(quantizer.graphs(layers)))

    kept, lost = least_float(damage, loss, calibration.max_loss, progress)
    return quantizer.graphs([layer for layer in damage if layer not in kept]), Quantization(
        objects=len(calibration.objects),
        damage={layer: round(value, 6) for layer, value in damage.items()},
        kept_float=tuple(kept),
        loss=lost,
        max_loss=calibration.max_loss,
    )


def check_loss(
    exact: Bundle, bundle: Bundle, calibration: Calibration, progress: Callable[[str], None], track: Track
) -> None:
    """Measure what a bundle with uint8 features loses against the fp32 one. Raises CalibrationError for too much."""
    objects = calibration.judging
    progress(f"measuring mean IoU on {len(objects)} objects")
    expected, found = (deployed_ious(each, objects, track) for each in (exact, bundle))
    lost = expected.lost_by(found)
    progress(f"{lost:+.4f} of mean IoU lost with uint8 features, {calibration.max_loss:g} allowed")
    if not lost <= calibration.max_loss:
        raise CalibrationError(
            f"with uint8 features the bundle loses {lost:.4f} of mean IoU, over {calibration.max_loss:g}; "
            "export it with --features fp16, or give other --calibration photographs"
        )


class Recorder:
    """ONNX Runtime, keeping what the graphs are given. samples: one for each run of an encoder or a whole network."""

    name = "ort"
    heads = 1

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._engine = OrtBackend()

    def open(self, name: str, model: bytes, info: GraphInfo) -> Graph:
        """A graph that is recorded, the click graph aside."""
        graph = self._engine.open(name, model, info)
        return graph if name in FLOAT_GRAPHS else _Recorded(name, graph, self.samples)


class _Recorded:
    def __init__(self, name: str, graph: Graph, samples: list[Sample]) -> None:
        self.info = graph.info
        self._name, self._graph, self._samples = name, graph, samples

    def run(self, inputs: Inputs) -> list[Array]:
        if self._name == "head":
            self._samples[-1].heads.append(dict(inputs))
        else:
            self._samples.append(Sample(dict(inputs)))
        return self._graph.run(inputs)

    def close(self) -> None:
        self._graph.close()


class Quantizer:
    """Float graphs and the ranges of their tensors; makes graphs in which some layers are int8.

    layers: what can be quantized or left, "graph layer": a block of the backbone or of the decoder, or a convolution.
    """

    def __init__(self, graphs: Mapping[str, OnnxGraph], samples: Sequence[Sample], track: Track) -> None:
        """graphs: fp32, by name. samples: to take the ranges from."""
        self._plain = {name: graph for name, graph in graphs.items() if name not in FLOAT_GRAPHS}
        self._models = {name: onnx.load_from_string(graph.model) for name, graph in self._plain.items()}
        self._layers: dict[str, list[str]] = {}
        self._ranges: dict[str, TensorsData] = {}
        for name, model in self._models.items():
            layer_of: dict[str, list[str]] = {}  # by what its convolutions put out
            for i, node in enumerate(model.graph.node):
                node.name = f"{node.op_type}_{i}"
                if node.op_type == "Conv":
                    layer = self._layers.setdefault(f"{name} {_layer(node.input[1])}", [])
                    layer.append(node.name)
                    layer_of[node.output[0]] = layer
                elif node.op_type == "Relu" and node.input[0] in layer_of:
                    layer_of[node.input[0]].append(node.name)
            fed = [run for s in samples for run in (s.heads if name == "head" else [s.first])]
            self._ranges[name] = _ranges(model, fed, track, f"ranges of graph {name}")

    @property
    def layers(self) -> Sequence[str]:
        """All that can be quantized."""
        return tuple(self._layers)

    def graphs(self, layers: Collection[str]) -> dict[str, onnx.ModelProto]:
        """The graphs with these layers in int8, those aside that have none of them."""
        chosen: dict[str, list[str]] = {}
        for layer in layers:
            chosen.setdefault(layer.split(" ")[0], []).extend(self._layers[layer])
        return {name: _quantized(self._models[name], self._ranges[name], nodes) for name, nodes in chosen.items()}

    def damage(self, samples: Sequence[Sample], limit: float, track: Track) -> dict[str, float]:
        """By layer, 1 - IoU of the masks (logits above `limit`) without and with this layer alone in int8."""
        engine = OrtBackend()
        plain = {name: engine.open(name, graph.model, graph.info) for name, graph in self._plain.items()}
        expected = list(_masks(plain, {}, samples, limit))
        result = {}
        for layer in track(self.layers, "loss of each layer"):
            changed = {
                name: engine.open(name, model.SerializeToString(), self._plain[name].info)
                for name, model in self.graphs([layer]).items()
            }
            pairs = zip(_masks(plain, changed, samples, limit), expected, strict=True)
            result[layer] = float(np.mean([1 - _iou(mask, reference) for mask, reference in pairs]))
        return result


def least_float(
    damage: Mapping[str, float],
    loss: Callable[[Collection[str]], float],
    budget: float,
    progress: Callable[[str], None] = lambda step: None,
) -> tuple[list[str], float]:
    """The layers that must stay float for a loss within `budget`, the most damaging ones first, and the loss then.

    loss: of graphs in which the given layers are int8. Raises CalibrationError if it is over `budget` even with the
    least damaging layer alone: the graphs of a bundle in int8 have at least one.
    """
    ranked = sorted(damage, key=lambda layer: -damage[layer])
    found = np.inf
    for count in range(len(ranked)):
        found = loss(ranked[count:])
        progress(f"{found:+.4f} of mean IoU lost with {count} of {len(ranked)} layers in float, {budget:g} allowed")
        if found <= budget:
            return ranked[:count], found
    raise CalibrationError(
        f"with one of {len(ranked)} layers in int8 the bundle still loses {found:.4f} of mean IoU, over {budget:g}; "
        "export it with --precision fp16, or give other --calibration photographs"
    )


def _masks(
    plain: Mapping[str, Graph], changed: Mapping[str, Graph], samples: Sequence[Sample], limit: float
) -> Iterator[BoolArray]:
    """One for each click. Where the encoder is not changed, the head is given what was recorded."""
    for sample in samples:
        if "network" in plain:
            yield {**plain, **changed}["network"].run(sample.first)[0] > limit
            continue
        features: Inputs = {}
        if encoder := changed.get("encoder"):
            outputs = encoder.run(sample.first)
            features = {t.name: a for t, a in zip(encoder.info.outputs, outputs, strict=True)}
        for inputs in sample.heads:
            yield {**plain, **changed}["head"].run({**inputs, **features})[0] > limit


def _iou(a: BoolArray, b: BoolArray) -> float:
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def _layer(weight: str) -> str:
    """What a weight belongs to: convolutions of one residual block share their fate."""
    return re.sub(r"(\.\d+)\.(conv\d|downsample\.0)$", r"\1", weight.removesuffix(".weight"))


class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
    """What a graph is given, one after the other, as ONNX Runtime's calibrators ask for it."""

    def __init__(self, fed: Iterable[Inputs]) -> None:
        self._fed = iter(fed)

    def get_next(self) -> dict[str, Array] | None:
        """The next one, None after the last."""
        given = next(self._fed, None)
        return None if given is None else dict(given)


def _ranges(model: onnx.ModelProto, fed: Sequence[Inputs], track: Track, what: str) -> TensorsData:
    with TemporaryDirectory() as directory:
        plain, augmented = Path(directory, "plain.onnx"), Path(directory, "augmented.onnx")
        onnx.save_model(model, plain)
        calibrator = create_calibrator(plain, OPERATORS, str(augmented))
        calibrator.collect_data(Reader(track(fed, what)))
        return calibrator.compute_data()


def _quantized(model: onnx.ModelProto, ranges: TensorsData, nodes: list[str]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with _quiet():
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=OPERATORS,
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    for node in result.graph.node:
        node.name = ""
    return result


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep advice about preprocessing, which the export has done, from the user's terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
