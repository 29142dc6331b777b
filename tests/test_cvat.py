"""The CVAT bridge over HTTP, as CVAT calls it, in front of a real server with the packaged model."""

import base64
import importlib.util
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import iog
import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from iog.mask import Bounds
from iog.rpc.server import Server, ServerConfig

ROOT = Path(__file__).parents[1]
PHOTOGRAPH = (ROOT / "export" / "iog_export" / "photographs" / "astronaut.jpg").read_bytes()
IMAGE = base64.b64encode(PHOTOGRAPH).decode()
BOX = [[13, 8], [373, 511]]

spec = importlib.util.spec_from_file_location("cvat", ROOT / "examples" / "cvat.py")
assert spec is not None
assert spec.loader is not None
cvat = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cvat)


@pytest.fixture(scope="module")
def predictor() -> Iterator[iog.Predictor]:
    with iog.Predictor.open() as predictor:
        yield predictor


@contextmanager
def bridged(server: str) -> Iterator[str]:
    """The bridge's address."""
    with iog.Client(server) as client, cvat.Interactor(("127.0.0.1", 0), client) as bridge:
        thread = threading.Thread(target=bridge.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{bridge.server_port}"
        finally:
            bridge.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def address(predictor: iog.Predictor) -> Iterator[str]:
    with Server([predictor], ServerConfig(port=0)) as server, bridged(server.address) as address:
        yield address


@pytest.fixture
def call(address: str) -> Callable[..., tuple[int, Any]]:
    """Status and content of an answer."""

    def call(path: str, data: Any = None, function: str = "iog") -> tuple[int, Any]:
        body = data if isinstance(data, bytes | None) else json.dumps(data).encode()
        request = urllib.request.Request(address + path, body, {"x-nuclio-function-name": function})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as e:
            with e:
                return e.code, json.load(e)

    return call


def test_cvat_finds_one_interactor(call: Callable[..., tuple[int, Any]]) -> None:
    status, functions = call("/api/functions")
    assert (status, list(functions)) == (200, ["iog"])
    assert call("/api/functions/iog") == (200, functions["iog"])
    annotations = functions["iog"]["metadata"]["annotations"]
    assert annotations["type"] == "interactor"
    assert all(isinstance(value, str) for value in annotations.values())
    assert call("/api/functions/dextr")[0] == 404


@pytest.mark.parametrize(
    "request_",
    [
        {"obj_bbox": BOX, "pos_points": [[175, 320]], "neg_points": [[14, 474]]},
        {
            "obj_bbox": BOX[::-1],
            "pos_points": [[400, 100], [175, 320]],
            "neg_points": [[14, 474]],
        },  # one not in the box
        {"pos_points": [*BOX, [175, 320]], "neg_points": [[14, 474]]},  # CVAT of old
        {"obj_bbox": [], "pos_points": [*BOX, [175, 320]], "neg_points": [[14, 474]]},
    ],
)
def test_masks_are_the_predictors(
    request_: dict[str, Any], predictor: iog.Predictor, call: Callable[..., tuple[int, Any]]
) -> None:
    prompt = iog.Prompt(iog.Box(13, 8, 373, 511), iog.Point(175, 320))
    if [400, 100] in request_["pos_points"]:
        prompt = prompt.with_click(400, 100, positive=True)
    expected = predictor.segment(PHOTOGRAPH, prompt.with_click(14, 474, positive=False))
    status, answer = call("/api/function_invocations", {"image": IMAGE, **request_})
    assert status == 200
    x0, y0, x1, y1 = answer["bounds"]
    assert Bounds(x0, y0, x1 + 1, y1 + 1) == expected.bounds
    assert np.array_equal(np.array(answer["mask"]), 255 * expected.region)
    outline = PIL.Image.new("1", (512, 512))
    PIL.ImageDraw.Draw(outline).polygon([tuple(point) for point in answer["points"]], fill=1, outline=1)
    inside = np.asarray(outline)
    assert (inside & expected.mask).sum() > 0.98 * (inside | expected.mask).sum()


def test_an_empty_mask_is_one_background_pixel(predictor: iog.Predictor) -> None:
    result = predictor.segment(PHOTOGRAPH, iog.Prompt(iog.Box(0, 0, 373, 511), iog.Point(175, 320)))
    empty = iog.Segmentation(**result.common, region=np.zeros((0, 0), np.bool_), bounds=Bounds(0, 0, 0, 0))
    assert cvat.answer_of(empty) == {"mask": [[0]], "bounds": [0, 0, 0, 0], "points": []}


@pytest.mark.parametrize(
    ("data", "status", "problem"),
    [
        ({"image": IMAGE, "obj_bbox": BOX, "pos_points": []}, 400, "pos_points: none is in the box"),
        ({"image": IMAGE, "obj_bbox": BOX, "pos_points": [[400, 100]]}, 400, "pos_points: none is in the box"),
        ({"image": IMAGE, "pos_points": [[175, 320]]}, 400, "obj_bbox: has 1 corners"),
        ({"image": IMAGE, "obj_bbox": BOX, "pos_points": [175, 320]}, 400, "no lists of"),
        ({"image": IMAGE, "obj_bbox": BOX, "pos_points": [[float("nan"), 320]]}, 400, "nan"),
        ({"image": "?", "obj_bbox": BOX, "pos_points": [[175, 320]]}, 400, "base64"),
        ({"image": "", "obj_bbox": BOX, "pos_points": [[175, 320]]}, 400, "image"),
        ({"obj_bbox": BOX}, 400, "image"),
        ([1], 400, "image"),
        (b"{", 400, "JSON"),
        (b"[" * 100_000, 400, "JSON"),
    ],
)
def test_what_cannot_be_used_is_told(
    data: Any, status: int, problem: str, call: Callable[..., tuple[int, Any]]
) -> None:
    got, told = call("/api/function_invocations", data)
    assert got == status, told
    assert problem in told


def test_other_functions_and_paths_are_unknown(call: Callable[..., tuple[int, Any]]) -> None:
    assert call("/api/function_invocations", {}, function="dextr")[0] == 404
    assert call("/api/functions/iog", {})[0] == 404


def test_a_server_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cvat, "TIMEOUT_S", 0.5)
    body = json.dumps({"image": IMAGE, "obj_bbox": BOX, "pos_points": [[175, 320]]}).encode()
    with bridged("127.0.0.1:1") as address, pytest.raises(urllib.error.HTTPError) as e:
        urllib.request.urlopen(f"{address}/api/function_invocations", body, timeout=30)
    with e.value:
        assert e.value.code in (503, 504)
