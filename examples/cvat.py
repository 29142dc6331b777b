"""A CVAT interactor: answers the three calls that CVAT makes of its functions, with masks of an iog server.

    iog serve & python examples/cvat.py --port 8070

CVAT finds it with CVAT_NUCLIO_HOST and CVAT_NUCLIO_PORT set to this host and port; there is no nuclio. CVAT sends the
frame and all clicks each time, which is how an iog server wants them: it remembers what it knows of the frame.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import logging
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import iog
import numpy as np
from iog.errors import DeadlineExceeded, InvalidImage, InvalidPrompt, IogError, Overloaded, Unavailable

NAME = "iog"
TIMEOUT_S = 25.0  # CVAT waits 30
MAX_BODY = 32 << 20  # nuclio's limit
FUNCTION = {
    "metadata": {
        "name": NAME,
        "annotations": {
            "name": "IOG",
            "type": "interactor",
            "version": "2",
            "spec": "[]",
            "startswith_box": "true",
            "min_pos_points": "1",
            "min_neg_points": "0",
            "help_message": "Draw an almost tight box, click on the object, then on what is missing or too much.",
        },
    },
    "spec": {"description": "Inside-Outside Guidance"},
    "status": {"state": "ready", "httpPort": 0},
}

log = logging.getLogger("cvat")


def prompt_of(request: Mapping[str, Any]) -> iog.Prompt:
    """Box and clicks as CVAT sends them. Raises InvalidPrompt.

    Old versions of CVAT have the box's corners as the first two foreground points.
    """
    try:
        positive = [iog.Point(x, y) for x, y in request.get("pos_points") or []]
        negative = [iog.Point(x, y) for x, y in request.get("neg_points") or []]
        corners = [iog.Point(x, y) for x, y in request.get("obj_bbox") or []]
    except (TypeError, ValueError) as e:
        raise InvalidPrompt("points", f"are no lists of [x, y]: {e}") from e
    if not corners:
        corners, positive = positive[:2], positive[2:]
    if len(corners) != 2:
        raise InvalidPrompt("obj_bbox", f"has {len(corners)} corners; draw a box around the object first")
    box = iog.Box.from_corners(*corners)
    inside = next((point for point in positive if box.contains(point)), None)
    if inside is None:
        raise InvalidPrompt("pos_points", "none is in the box; click on the object")
    clicks = [iog.Click(p.x, p.y, positive=True) for p in positive if p is not inside]
    return iog.Prompt(box, inside, (*clicks, *(iog.Click(p.x, p.y, positive=False) for p in negative)))


def answer_of(result: iog.Segmentation) -> dict[str, Any]:
    """The mask of its bounds, whose last row and column count in CVAT; the outline of its largest part.

    An empty mask is one background pixel.
    """
    if not result.area:
        x, y, _, _ = result.crop.visible(result.image_size)
        return {"mask": [[0]], "bounds": [x, y, x, y], "points": []}
    x0, y0, x1, y1 = result.bounds
    largest = max((ring.points for ring in result.rings if not ring.hole), key=cv2.contourArea)
    mask = result.region.astype(np.uint8) * 255
    return {"mask": mask.tolist(), "bounds": [x0, y0, x1 - 1, y1 - 1], "points": largest.tolist()}


def status_of(error: IogError) -> HTTPStatus:
    """What CVAT shows its user."""
    if isinstance(error, InvalidPrompt | InvalidImage):
        return HTTPStatus.BAD_REQUEST
    if isinstance(error, Overloaded | Unavailable):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.GATEWAY_TIMEOUT if isinstance(error, DeadlineExceeded) else HTTPStatus.INTERNAL_SERVER_ERROR


class Interactor(ThreadingHTTPServer):
    """Listens on `address`, and asks `client`."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], client: iog.Client) -> None:
        super().__init__(address, Handler)
        self.client = client


class Handler(BaseHTTPRequestHandler):
    """CVAT's calls."""

    server: Interactor
    timeout = TIMEOUT_S  # of a peer that stalls

    def do_GET(self) -> None:
        """All functions, or one."""
        known = {"/api/functions": {NAME: FUNCTION}, f"/api/functions/{NAME}": FUNCTION}
        if self.path in known:
            self._send(HTTPStatus.OK, known[self.path])
        else:
            self._send(HTTPStatus.NOT_FOUND, f"{self.path}: there is one function, /api/functions/{NAME}")

    def do_POST(self) -> None:
        """Segment."""
        self._send(*self._invoked())

    def _invoked(self) -> tuple[HTTPStatus, Any]:
        if self.path != "/api/function_invocations":
            return HTTPStatus.NOT_FOUND, f"{self.path}: expected /api/function_invocations"
        if (function := self.headers.get("x-nuclio-function-name", NAME)) != NAME:
            return HTTPStatus.NOT_FOUND, f"function {function!r}: expected {NAME!r}"
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            return HTTPStatus.LENGTH_REQUIRED, "no Content-Length"
        if int(length) > MAX_BODY:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes; at most {MAX_BODY} are taken"
        try:
            request = json.loads(self.rfile.read(int(length)))
            image = base64.b64decode(request["image"], validate=True)
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            return HTTPStatus.BAD_REQUEST, f"no JSON object with an image in base64: {type(e).__name__}: {e}"
        try:
            result = self.server.client.segment(image, prompt_of(request), timeout=TIMEOUT_S)
        except IogError as e:
            return status_of(e), str(e)
        return HTTPStatus.OK, answer_of(result)

    def _send(self, status: HTTPStatus, content: Any) -> None:
        body = json.dumps(content, separators=(",", ":")).encode()
        with contextlib.suppress(ConnectionError):  # CVAT has given up
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """See BaseHTTPRequestHandler; into our log."""
        log.info("%s " + format, self.client_address[0], *args)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="to listen on; 0.0.0.0 for CVAT in containers [127.0.0.1]")
    parser.add_argument("--port", type=int, default=8070, help="[8070, CVAT's default]")
    parser.add_argument(
        "--iog", default="127.0.0.1:50051", metavar="HOST:PORT", help="the iog server [127.0.0.1:50051]"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with iog.Client(options.iog) as client, Interactor((options.host, options.port), client) as server:
        log.info("CVAT's functions are on %s:%d, answered by %s", *server.server_address[:2], options.iog)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
