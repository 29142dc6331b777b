"""Messages <-> domain values, nothing else. What the domain refuses is refused with its path in the request."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np

from iog import mask
from iog.arrays import BoolArray, FloatArray
from iog.bundle import Bundle
from iog.crop import Crop
from iog.errors import InvalidPrompt, UnsupportedPrompt
from iog.mask import Bounds, MaskEncoding, Ring
from iog.prompt import MAX_CLICKS, Box, Click, Point, Prompt, Size
from iog.rpc.catalog import Limits, Model
from iog.segmentation import Answer, CacheStatus, Prediction, Segmentation
from iog.v1 import segmentation_pb2 as pb

T = TypeVar("T")

_PROMPT_BYTES = 64 << 10  # of all in a request but the image: ten times what the most clicks take

_ENCODINGS = {
    MaskEncoding.PNG: pb.MASK_ENCODING_PNG,
    MaskEncoding.COCO_RLE: pb.MASK_ENCODING_COCO_RLE,
    MaskEncoding.POLYGONS: pb.MASK_ENCODING_POLYGONS,
    MaskEncoding.SCORE_MAP: pb.MASK_ENCODING_SCORE_MAP,
}
_FROM_ENCODING = {pb.MASK_ENCODING_UNSPECIFIED: MaskEncoding.PNG, **{wire: own for own, wire in _ENCODINGS.items()}}

_FEATURES: dict[Literal["hit", "miss", "joined", "none"], pb.FeatureStatus] = {
    "hit": pb.FEATURE_STATUS_HIT,
    "miss": pb.FEATURE_STATUS_MISS,
    "joined": pb.FEATURE_STATUS_JOINED,
    "none": pb.FEATURE_STATUS_NONE,
}
_FROM_FEATURES = {wire: own for own, wire in _FEATURES.items()}

_KINDS: dict[Literal["split", "single"], pb.ModelKind] = {
    "split": pb.MODEL_KIND_SPLIT,
    "single": pb.MODEL_KIND_SINGLE,
}
_FROM_KIND = {wire: own for own, wire in _KINDS.items()}

_PROMPTS = {
    "inside-outside": pb.PROMPT_KIND_INSIDE_OUTSIDE,
    "extreme-points": pb.PROMPT_KIND_EXTREME_POINTS,
    "box-only": pb.PROMPT_KIND_BOX_ONLY,
}
_FROM_PROMPT = {wire: own for own, wire in _PROMPTS.items()}


def request_of(
    digest: str,
    prompt: Prompt,
    *,
    model: str | None = None,
    scores: bool = False,
    encoding: MaskEncoding = MaskEncoding.SCORE_MAP,
) -> pb.SegmentRequest:
    """The request for a mask of an uploaded image."""
    box, inside = prompt.box, prompt.inside
    return pb.SegmentRequest(
        model=model or "",
        digest=digest,
        inside_outside=pb.InsideOutside(
            box=pb.Box(a=pb.Point(x=box.x0, y=box.y0), b=pb.Point(x=box.x1, y=box.y1)),
            inside=pb.Point(x=inside.x, y=inside.y),
        ),
        clicks=[
            pb.Click(
                point=pb.Point(x=c.x, y=c.y), kind=pb.CLICK_KIND_FOREGROUND if c.positive else pb.CLICK_KIND_BACKGROUND
            )
            for c in prompt.clicks
        ],
        mask_encoding=_ENCODINGS[encoding],
        want_score_map=scores,
    )


def check_encoded(data: bytes) -> None:
    """Raise InvalidPrompt for an encoded SegmentRequest that is large without its image.

    Parsed, millions of clicks take twenty times as many bytes, before anybody can count them.
    """
    if len(data) <= _PROMPT_BYTES:
        return
    at = image = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 2:  # a length, and so many bytes
            length, at = _varint(data, at)
            at += length
            image += length if tag >> 3 == pb.SegmentRequest.ENCODED_IMAGE_FIELD_NUMBER else 0
        elif tag & 7 == 0:
            _, at = _varint(data, at)
        else:
            at += {1: 8, 5: 4}.get(tag & 7, 0)  # groups, 3 and 4, are fields between two tags
        if at - image > _PROMPT_BYTES:
            raise InvalidPrompt(
                "clicks", f"over {_PROMPT_BYTES:,} bytes of a request beside its image; at most {MAX_CLICKS} are taken"
            )


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, seven bits a byte, and where it ends; of what is cut off, what there is."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80 or shift > 63:
            break
    return value, at


def prompt_from(request: pb.SegmentRequest, model: str) -> Prompt:
    """The prompt of a request. Raises InvalidPrompt; UnsupportedPrompt for what `model` was not trained for."""
    kind = request.WhichOneof("prompt")
    if kind is None:
        raise InvalidPrompt("prompt", "is missing; set inside_outside")
    if kind != "inside_outside":
        raise UnsupportedPrompt(kind, f"model {model!r} was not trained for it; it takes inside_outside")
    if len(request.clicks) > MAX_CLICKS:  # before looking at each of what may be millions
        raise InvalidPrompt("clicks", f"{len(request.clicks)} clicks; at most {MAX_CLICKS} are taken")
    given = request.inside_outside
    if not given.HasField("box") or not given.box.HasField("a") or not given.box.HasField("b"):
        raise InvalidPrompt("box", "is missing, or one of its corners a and b is")
    corners = _at("box", lambda: (_point(given.box.a), _point(given.box.b)))
    if not given.HasField("inside"):
        raise InvalidPrompt("inside", "is missing; expected a point on the object")
    inside = _at("inside", lambda: _point(given.inside))
    clicks = tuple(_click(f"clicks[{i}]", click) for i, click in enumerate(request.clicks))
    return Prompt(Box.from_corners(*corners), inside, clicks)


def check_digest(digest: str) -> None:
    """Raises InvalidPrompt for what names no image, ever: to upload one and repeat the request would not help."""
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise InvalidPrompt(
            "digest", f"{digest!r} is no sha256 of an image file; expected its 64 hex digits, in lower case"
        )


def encoding_from(request: pb.SegmentRequest) -> MaskEncoding:
    """How the mask is wanted. Raises InvalidPrompt for a value that is none of the enum's."""
    encoding = _FROM_ENCODING.get(request.mask_encoding)
    if encoding is None:
        raise InvalidPrompt("mask_encoding", f"{request.mask_encoding} is not known; expected 1, 2, 3 or 4")
    return encoding


def response_without_mask(result: Prediction | Segmentation) -> pb.SegmentResponse:
    """The answer to a request whose client makes the mask."""
    crop = result.crop
    response = pb.SegmentResponse(
        model=result.model,
        bundle_digest=result.bundle_digest,
        image_digest=result.image_digest,
        image_size=size_of(result.image_size),
        crop=pb.Crop(x0=crop.x0, y0=crop.y0, x1=crop.x1, y1=crop.y1, frame_size=crop.size),
        threshold=result.threshold,
        cache=pb.CacheStatus(
            image_hit=result.cache.image,
            features=_FEATURES[result.cache.features],
            click_windows=result.cache.windows,
        ),
        timings=[pb.StageTiming(name=name, seconds=seconds) for name, seconds in result.timings.items()],
    )
    if result.logits is not None:
        logits = result.logits.astype("<f4", copy=False).tobytes()
        response.score_map.CopyFrom(pb.ScoreMap(grid_size=len(result.logits), logits=logits))
    return response


def response_of(result: Segmentation, encoding: MaskEncoding) -> pb.SegmentResponse:
    """The answer to a request, with its mask."""
    response = response_without_mask(result)
    response.bounds.CopyFrom(pb.Bounds(**result.bounds._asdict()))
    response.area = result.area
    if encoding is MaskEncoding.PNG:
        response.png = mask.to_png(result.region)
    elif encoding is MaskEncoding.COCO_RLE:
        counts = mask.to_rle(result.region, result.bounds, result.image_size)
        response.coco_rle.CopyFrom(pb.CocoRle(counts=counts.decode("ascii"), size=size_of(result.image_size)))
    elif encoding is MaskEncoding.POLYGONS:
        response.polygons.CopyFrom(
            pb.Polygons(
                rings=[pb.Ring(coordinates=ring.points.ravel().tolist(), hole=ring.hole) for ring in result.rings]
            )
        )
    else:
        raise ValueError(f"a response with a mask as {encoding.name}; see response_without_mask")
    return response


def segmentation_from(response: pb.SegmentResponse, *, scores: bool = False) -> Segmentation:
    """What the server's Predictor returned; the mask is made here if it has not travelled.

    scores: keep the logits, for `.scores`, if they came.
    """
    crop, size = response.crop, size_from(response.image_size)
    answer = Answer(
        image_size=size,
        crop=Crop(crop.x0, crop.y0, crop.x1, crop.y1, crop.frame_size),
        threshold=response.threshold,
        model=response.model,
        bundle_digest=response.bundle_digest,
        image_digest=response.image_digest,
        cache=cache_from(response.cache),
        timings={timing.name: timing.seconds for timing in response.timings},
    )
    logits = _logits(response)
    if logits is not None and response.WhichOneof("mask") is None:
        return Prediction(**answer.common, logits=logits).segmentation(scores=scores)
    bounds = Bounds(response.bounds.x0, response.bounds.y0, response.bounds.x1, response.bounds.y1)
    region = _region(response, bounds, size)
    return Segmentation(**answer.common, region=region, bounds=bounds, logits=logits if scores else None)


def cache_from(cache: pb.CacheStatus) -> CacheStatus:
    """What was remembered. What a newer server calls its features is none of ours."""
    return CacheStatus(cache.image_hit, _FROM_FEATURES.get(cache.features, "none"), cache.click_windows)


def size_of(size: Size) -> pb.ImageSize:
    """Height and width."""
    return pb.ImageSize(height=size.height, width=size.width)


def size_from(size: pb.ImageSize) -> Size:
    """Height and width."""
    return Size(size.height, size.width)


def model_of(bundle: Bundle, default: bool) -> pb.Model:
    """What clients may know of a bundle."""
    manifest = bundle.manifest
    return pb.Model(
        name=manifest.name,
        kind=_KINDS[manifest.kind],
        network=manifest.network.architecture,
        backbone=manifest.network.backbone,
        input_size=manifest.crop.size,
        prompts=[_PROMPTS[manifest.prompt]],
        precision=manifest.precision,
        bundle_digest=bundle.digest,
        is_default=default,
    )


def model_from(model: pb.Model) -> Model:
    """A model that the server lists. Kinds and prompts of newer servers are left out."""
    return Model(
        name=model.name,
        kind=_FROM_KIND.get(model.kind, "single"),
        network=model.network,
        backbone=model.backbone,
        input_size=model.input_size,
        prompts=tuple(_FROM_PROMPT[prompt] for prompt in model.prompts if prompt in _FROM_PROMPT),
        precision=model.precision,
        bundle_digest=model.bundle_digest,
        default=model.is_default,
    )


def limits_of(limits: Limits) -> pb.Limits:
    """What a server refuses."""
    return pb.Limits(max_image_bytes=limits.image_bytes, max_image_pixels=limits.image_pixels, max_clicks=limits.clicks)


def limits_from(limits: pb.Limits) -> Limits:
    """What a server refuses."""
    return Limits(limits.max_image_bytes, limits.max_image_pixels, limits.max_clicks)


def _logits(response: pb.SegmentResponse) -> FloatArray | None:
    if not response.HasField("score_map"):
        return None
    grid = response.score_map.grid_size
    return np.frombuffer(response.score_map.logits, "<f4").astype(np.float32).reshape(grid, grid)


def _region(response: pb.SegmentResponse, bounds: Bounds, size: Size) -> BoolArray:
    match response.WhichOneof("mask"):
        case "coco_rle":
            return mask.from_rle(response.coco_rle.counts.encode("ascii"), bounds, size)
        case "polygons":
            rings = [
                Ring(np.array(ring.coordinates, np.int32).reshape(-1, 2), ring.hole) for ring in response.polygons.rings
            ]
            return mask.from_rings(rings, bounds)
        case _:
            return mask.from_png(response.png)


def _point(point: pb.Point) -> Point:
    return Point(point.x, point.y)


def _click(field: str, click: pb.Click) -> Click:
    if not click.HasField("point"):
        raise InvalidPrompt(field, "has no point")
    if click.kind not in (pb.CLICK_KIND_FOREGROUND, pb.CLICK_KIND_BACKGROUND):
        raise InvalidPrompt(f"{field}.kind", f"{click.kind} says neither foreground (1) nor background (2)")
    return _at(field, lambda: Click(click.point.x, click.point.y, click.kind == pb.CLICK_KIND_FOREGROUND))


def _at(field: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except InvalidPrompt as e:
        raise InvalidPrompt(field, e.problem) from e
