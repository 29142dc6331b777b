"""Every way to answer a click that is compared: what others do, and this runtime on each of its engines."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from iog import Box, Client, Point, Predictor
from iog.arrays import BoolArray, FloatArray
from iog.backends import Graph, open_backend
from iog.bundle import Bundle, GraphInfo
from iog.crop import Crop, CropSpec
from iog.errors import IogError
from iog.guidance import GuidanceSpec
from iog.image import Image
from iog.prompt import Prompt
from iog.segmentation import Segmentation
from iog_export.evaluation.baselines import grabcut
from iog_export.to_onnx import OnnxGraph

from .compiled import compiled
from .host import Host, Seen
from .networks import NotRun, Published
from .record import DEFAULT_MODEL, EAGER, console
from .scene import frame, photograph
from .server import served

Click = Literal["any", "first", "correction"]

DEFAULT = f"iog-runtime, {DEFAULT_MODEL}"
THROUGH_GRPC = f"{DEFAULT}, through gRPC"
FWHM = 10 / 512  # published, as a share of the frame
PUBLISHED_CORNER_OFFSET = 10
ENGINES = {"ort": "ONNX Runtime", "openvino": "OpenVINO"}
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Competitor:
    """One way to answer clicks.

    answer: is timed. clicks: the kinds that cost differently. network: what it runs; comparable are those that run
    the same. logits: (S/4, S/4) of the same click, untimed; None where they do not come out.
    """

    answer: Callable[[Prompt], object]
    clicks: tuple[Click, ...]
    network: str
    logits: Callable[[Prompt], FloatArray | None] = lambda prompt: None


@dataclass
class Scene:
    """What competitors are made of. stack: closes them. traffic: graphs and what a run of each moves and computes."""

    published: Published
    stack: ExitStack
    compile_limit_s: float = 120.0
    image: Image = field(default_factory=frame)
    jpeg: bytes = field(default_factory=photograph)
    traffic: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def host(self) -> Host:
        """For the published network."""
        size = self.published.size
        crop = CropSpec(size, corner_offset=PUBLISHED_CORNER_OFFSET)
        return Host(crop, GuidanceSpec(size, size * FWHM), self.image)


def names() -> list[str]:
    """Of all competitors."""
    return list(_makers())


def assemble(scene: Scene, only: re.Pattern[str]) -> tuple[dict[str, Competitor], dict[str, str]]:
    """Those that can run here by name, and for the others why not. only: what names match."""
    running: dict[str, Competitor] = {}
    missing: dict[str, str] = {}
    for name, make in _makers().items():
        if not only.search(name):
            continue
        with console.status(f"preparing {name}"):
            try:
                running[name] = make(scene)
            except (NotRun, IogError) as e:
                missing[name] = str(e)
                console.print(f"{name}: not run, because {e}")
    return running, missing


def _makers() -> Mapping[str, Callable[[Scene], Competitor]]:
    ours = {
        f"iog-runtime, {label} {precision}": _ours(backend, precision)
        for backend, label in ENGINES.items()
        for precision in PRECISIONS
    }
    return {
        EAGER: _eager,
        "platform function: base64 JSON around PyTorch eager": _platform_function,
        "torch.compile, whole network": _compiled,
        **{f"{label}, whole network": _onnx_whole(backend) for backend, label in ENGINES.items()},
        "naive split behind the backbone, ONNX Runtime": _naive_split,
        **ours,
        DEFAULT: _default,
        THROUGH_GRPC: _through_grpc,
        "OpenCV GrabCut": _grabcut,
    }


def _whole(scene: Scene, run: Callable[[Seen], FloatArray]) -> Competitor:
    """A network of which every click runs all."""
    host = scene.host

    def answer(prompt: Prompt) -> BoolArray:
        seen, crop = host.see(prompt)
        return host.mask(run(seen), crop)

    return Competitor(answer, ("any",), str(scene.published), lambda prompt: run(host.see(prompt)[0]))


def _run_eager(published: Published, seen: Seen) -> FloatArray:
    with torch.inference_mode():
        logits = published.network(torch.from_numpy(seen.inputs()), torch.from_numpy(seen.all_clicks())).logits
    array: FloatArray = logits[0, 0].numpy()
    return array


def _eager(scene: Scene) -> Competitor:
    return _whole(scene, lambda seen: _run_eager(scene.published, seen))


def _compiled(scene: Scene) -> Competitor:
    return _whole(scene, scene.stack.enter_context(compiled(scene.published, scene.compile_limit_s)))


def _onnx_whole(backend: str) -> Callable[[Scene], Competitor]:
    def make(scene: Scene) -> Competitor:
        network = _opened(scene, "whole network", scene.published.whole(), backend)

        def run(seen: Seen) -> FloatArray:
            logits: FloatArray = network.run({"inputs": seen.inputs(), "clicks": seen.all_clicks()})[0][0, 0]
            return logits

        return _whole(scene, run)

    return make


def _naive_split(scene: Scene) -> Competitor:
    """Remembers the backbone's maps of the last object, and re-runs everything behind them."""
    first, rest = scene.published.naive()
    backbone, decode = _opened(scene, "naive backbone", first), _opened(scene, "naive rest", rest)
    names = [t.name for t in backbone.info.outputs]
    remembered: dict[tuple[bytes, bytes], dict[str, FloatArray]] = {}

    def run(seen: Seen) -> FloatArray:
        key = seen.pixels.tobytes(), seen.initial.tobytes()
        if key not in remembered:
            remembered.clear()
            remembered[key] = dict(zip(names, backbone.run({"inputs": seen.inputs()}), strict=True))
        logits: FloatArray = decode.run({**remembered[key], "clicks": seen.all_clicks()})[0][0, 0]
        return logits

    whole = _whole(scene, run)
    return replace(whole, clicks=("first", "correction"))


def _platform_function(scene: Scene) -> Competitor:
    """What a function of an annotation platform does at every click: everything, from the frame's bytes to JSON."""
    encoded, host = base64.b64encode(scene.jpeg).decode(), scene.host

    def function(body: str) -> str:
        request = json.loads(body)
        image = Image.decode(base64.b64decode(request["image"]))
        inside, *positive = request["pos_points"]
        prompt = Prompt(Box(*request["obj_bbox"]), Point(*inside))
        for points, foreground in ((positive, True), (request["neg_points"], False)):
            for x, y in points:
                prompt = prompt.with_click(x, y, foreground)
        seeing = replace(host, image=image)
        seen, crop = seeing.see(prompt)
        mask = seeing.mask(_run_eager(scene.published, seen), crop)
        return json.dumps({"mask": mask.astype(np.uint8).tolist()})

    def answer(prompt: Prompt) -> BoolArray:
        positive, negative = ([(c.x, c.y) for c in prompt.clicks if c.positive == kind] for kind in (True, False))
        box, inside = prompt.box, prompt.inside
        body = {
            "image": encoded,
            "pos_points": [(inside.x, inside.y), *positive],
            "neg_points": negative,
            "obj_bbox": (box.x0, box.y0, box.x1, box.y1),
        }
        return np.array(json.loads(function(json.dumps(body)))["mask"], np.bool_)

    return Competitor(answer, ("any",), str(scene.published))


def _grabcut(scene: Scene) -> Competitor:
    """On the square frame that the published network gets, with the box and all points moved into it."""
    host = scene.host

    def answer(prompt: Prompt) -> BoolArray:
        prompt = prompt.within(scene.image.size)
        crop = Crop.around(prompt.box, host.crop)
        (x0, y0), *_, (x1, y1) = crop.corners(prompt.box, 0).tolist()
        points = [(prompt.inside.x, prompt.inside.y), *((c.x, c.y) for c in prompt.clicks)]
        inside, *others = crop.to_network(points).tolist()
        clicks = (replace(c, x=x, y=y) for c, (x, y) in zip(prompt.clicks, others, strict=True))
        moved = Prompt(Box(x0, y0, x1, y1), Point(*inside), tuple(clicks))
        frame = crop.extract(scene.image.pixels, host.crop.interpolation)  # (S, S, 3)
        return host.mask_of_frame(grabcut(frame, moved), crop)

    return Competitor(answer, ("any",), "no network")


def _ours(backend: str, precision: str) -> Callable[[Scene], Competitor]:
    def make(scene: Scene) -> Competitor:
        engine = open_backend(backend)  # before minutes of export
        bundle = Bundle.open(scene.published.bundle(precision))
        if backend == "ort":
            _note_traffic(scene, bundle, f"{{}}, {precision}")
        return _predictor(scene, Predictor(bundle, engine), str(scene.published))

    return make


def _default(scene: Scene) -> Competitor:
    _note_traffic(scene, Bundle.open(), "default model's {}")
    return _predictor(scene, Predictor.open(), DEFAULT_MODEL)


def _predictor(scene: Scene, predictor: Predictor, network: str) -> Competitor:
    scene.stack.enter_context(predictor)
    return Competitor(
        lambda prompt: _with_mask(predictor.segment(scene.image, prompt)),
        ("first", "correction"),
        network,
        lambda prompt: predictor.segment(scene.image, prompt, scores=True).logits,
    )


def _with_mask(answer: Segmentation) -> Segmentation:
    """With its mask of the whole image, as all others answer; it is made when it is asked for."""
    answer.mask  # noqa: B018
    return answer


def _through_grpc(scene: Scene) -> Competitor:
    """A server in a process of its own."""
    running = scene.stack.enter_context(served())
    client = scene.stack.enter_context(Client(running.address))
    return Competitor(
        lambda prompt: _with_mask(client.segment(scene.image, prompt)), ("first", "correction"), DEFAULT_MODEL
    )


def _note_traffic(scene: Scene, bundle: Bundle, name: str) -> None:
    for graph in ("encoder", "head"):
        scene.traffic[name.format(graph)] = traffic(bundle.manifest.graphs[graph], len(bundle.graphs[graph]))


def traffic(info: GraphInfo, model_bytes: int) -> dict[str, float]:
    """What one run computes and at least moves: its weights once, its inputs and its outputs."""
    tensors = sum(
        np.dtype(t.dtype).itemsize * math.prod(d for d in t.shape if isinstance(d, int))
        for t in (*info.inputs, *info.outputs)
    )
    return {"macs": info.macs, "bytes": model_bytes + tensors}


def _opened(scene: Scene, name: str, graph: OnnxGraph, backend: str = "ort") -> Graph:
    opened = open_backend(backend).open(name, graph.model, graph.info)
    scene.traffic[name] = traffic(graph.info, len(graph.model))
    scene.stack.callback(opened.close)
    return opened
