from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClickKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLICK_KIND_UNSPECIFIED: _ClassVar[ClickKind]
    CLICK_KIND_FOREGROUND: _ClassVar[ClickKind]
    CLICK_KIND_BACKGROUND: _ClassVar[ClickKind]

class MaskEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MASK_ENCODING_UNSPECIFIED: _ClassVar[MaskEncoding]
    MASK_ENCODING_PNG: _ClassVar[MaskEncoding]
    MASK_ENCODING_COCO_RLE: _ClassVar[MaskEncoding]
    MASK_ENCODING_POLYGONS: _ClassVar[MaskEncoding]
    MASK_ENCODING_SCORE_MAP: _ClassVar[MaskEncoding]

class FeatureStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_STATUS_UNSPECIFIED: _ClassVar[FeatureStatus]
    FEATURE_STATUS_HIT: _ClassVar[FeatureStatus]
    FEATURE_STATUS_MISS: _ClassVar[FeatureStatus]
    FEATURE_STATUS_JOINED: _ClassVar[FeatureStatus]
    FEATURE_STATUS_NONE: _ClassVar[FeatureStatus]

class ModelKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_KIND_UNSPECIFIED: _ClassVar[ModelKind]
    MODEL_KIND_SPLIT: _ClassVar[ModelKind]
    MODEL_KIND_SINGLE: _ClassVar[ModelKind]

class PromptKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROMPT_KIND_UNSPECIFIED: _ClassVar[PromptKind]
    PROMPT_KIND_INSIDE_OUTSIDE: _ClassVar[PromptKind]
    PROMPT_KIND_EXTREME_POINTS: _ClassVar[PromptKind]
    PROMPT_KIND_BOX_ONLY: _ClassVar[PromptKind]
CLICK_KIND_UNSPECIFIED: ClickKind
CLICK_KIND_FOREGROUND: ClickKind
CLICK_KIND_BACKGROUND: ClickKind
MASK_ENCODING_UNSPECIFIED: MaskEncoding
MASK_ENCODING_PNG: MaskEncoding
MASK_ENCODING_COCO_RLE: MaskEncoding
MASK_ENCODING_POLYGONS: MaskEncoding
MASK_ENCODING_SCORE_MAP: MaskEncoding
FEATURE_STATUS_UNSPECIFIED: FeatureStatus
FEATURE_STATUS_HIT: FeatureStatus
FEATURE_STATUS_MISS: FeatureStatus
FEATURE_STATUS_JOINED: FeatureStatus
FEATURE_STATUS_NONE: FeatureStatus
MODEL_KIND_UNSPECIFIED: ModelKind
MODEL_KIND_SPLIT: ModelKind
MODEL_KIND_SINGLE: ModelKind
PROMPT_KIND_UNSPECIFIED: PromptKind
PROMPT_KIND_INSIDE_OUTSIDE: PromptKind
PROMPT_KIND_EXTREME_POINTS: PromptKind
PROMPT_KIND_BOX_ONLY: PromptKind

class UploadImageRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("digest", "total_bytes")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    total_bytes: int
    def __init__(self, digest: _Optional[str] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class UploadImageResponse(_message.Message):
    __slots__ = ("digest", "size", "already_held")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    ALREADY_HELD_FIELD_NUMBER: _ClassVar[int]
    digest: str
    size: ImageSize
    already_held: bool
    def __init__(self, digest: _Optional[str] = ..., size: _Optional[_Union[ImageSize, _Mapping]] = ..., already_held: bool = ...) -> None: ...

class SegmentRequest(_message.Message):
    __slots__ = ("model", "digest", "encoded_image", "inside_outside", "extreme_points", "box_only", "clicks", "mask_encoding", "want_score_map")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENCODED_IMAGE_FIELD_NUMBER: _ClassVar[int]
    INSIDE_OUTSIDE_FIELD_NUMBER: _ClassVar[int]
    EXTREME_POINTS_FIELD_NUMBER: _ClassVar[int]
    BOX_ONLY_FIELD_NUMBER: _ClassVar[int]
    CLICKS_FIELD_NUMBER: _ClassVar[int]
    MASK_ENCODING_FIELD_NUMBER: _ClassVar[int]
    WANT_SCORE_MAP_FIELD_NUMBER: _ClassVar[int]
    model: str
    digest: str
    encoded_image: bytes
    inside_outside: InsideOutside
    extreme_points: ExtremePoints
    box_only: BoxOnly
    clicks: _containers.RepeatedCompositeFieldContainer[Click]
    mask_encoding: MaskEncoding
    want_score_map: bool
    def __init__(self, model: _Optional[str] = ..., digest: _Optional[str] = ..., encoded_image: _Optional[bytes] = ..., inside_outside: _Optional[_Union[InsideOutside, _Mapping]] = ..., extreme_points: _Optional[_Union[ExtremePoints, _Mapping]] = ..., box_only: _Optional[_Union[BoxOnly, _Mapping]] = ..., clicks: _Optional[_Iterable[_Union[Click, _Mapping]]] = ..., mask_encoding: _Optional[_Union[MaskEncoding, str]] = ..., want_score_map: bool = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("x", "y")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    x: float
    y: float
    def __init__(self, x: _Optional[float] = ..., y: _Optional[float] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("a", "b")
    A_FIELD_NUMBER: _ClassVar[int]
    B_FIELD_NUMBER: _ClassVar[int]
    a: Point
    b: Point
    def __init__(self, a: _Optional[_Union[Point, _Mapping]] = ..., b: _Optional[_Union[Point, _Mapping]] = ...) -> None: ...

class InsideOutside(_message.Message):
    __slots__ = ("box", "inside")
    BOX_FIELD_NUMBER: _ClassVar[int]
    INSIDE_FIELD_NUMBER: _ClassVar[int]
    box: Box
    inside: Point
    def __init__(self, box: _Optional[_Union[Box, _Mapping]] = ..., inside: _Optional[_Union[Point, _Mapping]] = ...) -> None: ...

class ExtremePoints(_message.Message):
    __slots__ = ("points",)
    POINTS_FIELD_NUMBER: _ClassVar[int]
    points: _containers.RepeatedCompositeFieldContainer[Point]
    def __init__(self, points: _Optional[_Iterable[_Union[Point, _Mapping]]] = ...) -> None: ...

class BoxOnly(_message.Message):
    __slots__ = ("box",)
    BOX_FIELD_NUMBER: _ClassVar[int]
    box: Box
    def __init__(self, box: _Optional[_Union[Box, _Mapping]] = ...) -> None: ...

class Click(_message.Message):
    __slots__ = ("point", "kind")
    POINT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    point: Point
    kind: ClickKind
    def __init__(self, point: _Optional[_Union[Point, _Mapping]] = ..., kind: _Optional[_Union[ClickKind, str]] = ...) -> None: ...

class SegmentResponse(_message.Message):
    __slots__ = ("model", "bundle_digest", "image_digest", "image_size", "bounds", "area", "png", "coco_rle", "polygons", "crop", "threshold", "score_map", "cache", "timings")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    IMAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    AREA_FIELD_NUMBER: _ClassVar[int]
    PNG_FIELD_NUMBER: _ClassVar[int]
    COCO_RLE_FIELD_NUMBER: _ClassVar[int]
    POLYGONS_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    SCORE_MAP_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    model: str
    bundle_digest: str
    image_digest: str
    image_size: ImageSize
    bounds: Bounds
    area: int
    png: bytes
    coco_rle: CocoRle
    polygons: Polygons
    crop: Crop
    threshold: float
    score_map: ScoreMap
    cache: CacheStatus
    timings: _containers.RepeatedCompositeFieldContainer[StageTiming]
    def __init__(self, model: _Optional[str] = ..., bundle_digest: _Optional[str] = ..., image_digest: _Optional[str] = ..., image_size: _Optional[_Union[ImageSize, _Mapping]] = ..., bounds: _Optional[_Union[Bounds, _Mapping]] = ..., area: _Optional[int] = ..., png: _Optional[bytes] = ..., coco_rle: _Optional[_Union[CocoRle, _Mapping]] = ..., polygons: _Optional[_Union[Polygons, _Mapping]] = ..., crop: _Optional[_Union[Crop, _Mapping]] = ..., threshold: _Optional[float] = ..., score_map: _Optional[_Union[ScoreMap, _Mapping]] = ..., cache: _Optional[_Union[CacheStatus, _Mapping]] = ..., timings: _Optional[_Iterable[_Union[StageTiming, _Mapping]]] = ...) -> None: ...

class ImageSize(_message.Message):
    __slots__ = ("height", "width")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class Bounds(_message.Message):
    __slots__ = ("x0", "y0", "x1", "y1")
    X0_FIELD_NUMBER: _ClassVar[int]
    Y0_FIELD_NUMBER: _ClassVar[int]
    X1_FIELD_NUMBER: _ClassVar[int]
    Y1_FIELD_NUMBER: _ClassVar[int]
    x0: int
    y0: int
    x1: int
    y1: int
    def __init__(self, x0: _Optional[int] = ..., y0: _Optional[int] = ..., x1: _Optional[int] = ..., y1: _Optional[int] = ...) -> None: ...

class CocoRle(_message.Message):
    __slots__ = ("counts", "size")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    counts: str
    size: ImageSize
    def __init__(self, counts: _Optional[str] = ..., size: _Optional[_Union[ImageSize, _Mapping]] = ...) -> None: ...

class Polygons(_message.Message):
    __slots__ = ("rings",)
    RINGS_FIELD_NUMBER: _ClassVar[int]
    rings: _containers.RepeatedCompositeFieldContainer[Ring]
    def __init__(self, rings: _Optional[_Iterable[_Union[Ring, _Mapping]]] = ...) -> None: ...

class Ring(_message.Message):
    __slots__ = ("coordinates", "hole")
    COORDINATES_FIELD_NUMBER: _ClassVar[int]
    HOLE_FIELD_NUMBER: _ClassVar[int]
    coordinates: _containers.RepeatedScalarFieldContainer[int]
    hole: bool
    def __init__(self, coordinates: _Optional[_Iterable[int]] = ..., hole: bool = ...) -> None: ...

class Crop(_message.Message):
    __slots__ = ("x0", "y0", "x1", "y1", "frame_size")
    X0_FIELD_NUMBER: _ClassVar[int]
    Y0_FIELD_NUMBER: _ClassVar[int]
    X1_FIELD_NUMBER: _ClassVar[int]
    Y1_FIELD_NUMBER: _ClassVar[int]
    FRAME_SIZE_FIELD_NUMBER: _ClassVar[int]
    x0: int
    y0: int
    x1: int
    y1: int
    frame_size: int
    def __init__(self, x0: _Optional[int] = ..., y0: _Optional[int] = ..., x1: _Optional[int] = ..., y1: _Optional[int] = ..., frame_size: _Optional[int] = ...) -> None: ...

class ScoreMap(_message.Message):
    __slots__ = ("grid_size", "logits")
    GRID_SIZE_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    grid_size: int
    logits: bytes
    def __init__(self, grid_size: _Optional[int] = ..., logits: _Optional[bytes] = ...) -> None: ...

class CacheStatus(_message.Message):
    __slots__ = ("image_hit", "features", "click_windows")
    IMAGE_HIT_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    CLICK_WINDOWS_FIELD_NUMBER: _ClassVar[int]
    image_hit: bool
    features: FeatureStatus
    click_windows: int
    def __init__(self, image_hit: bool = ..., features: _Optional[_Union[FeatureStatus, str]] = ..., click_windows: _Optional[int] = ...) -> None: ...

class StageTiming(_message.Message):
    __slots__ = ("name", "seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    seconds: float
    def __init__(self, name: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "limits")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    limits: Limits
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "kind", "network", "backbone", "input_size", "prompts", "precision", "bundle_digest", "is_default")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    BACKBONE_FIELD_NUMBER: _ClassVar[int]
    INPUT_SIZE_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: ModelKind
    network: str
    backbone: str
    input_size: int
    prompts: _containers.RepeatedScalarFieldContainer[PromptKind]
    precision: str
    bundle_digest: str
    is_default: bool
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[ModelKind, str]] = ..., network: _Optional[str] = ..., backbone: _Optional[str] = ..., input_size: _Optional[int] = ..., prompts: _Optional[_Iterable[_Union[PromptKind, str]]] = ..., precision: _Optional[str] = ..., bundle_digest: _Optional[str] = ..., is_default: bool = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_image_bytes", "max_image_pixels", "max_clicks")
    MAX_IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_CLICKS_FIELD_NUMBER: _ClassVar[int]
    max_image_bytes: int
    max_image_pixels: int
    max_clicks: int
    def __init__(self, max_image_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ..., max_clicks: _Optional[int] = ...) -> None: ...
