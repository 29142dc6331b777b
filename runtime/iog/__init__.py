"""Click-to-mask with Inside-Outside Guidance: the encoder runs once per object, the head at every click."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import IogError as IogError
from .prompt import Box as Box
from .prompt import Click as Click
from .prompt import Point as Point
from .prompt import Prompt as Prompt

if TYPE_CHECKING:
    from .client import Client as Client
    from .image import Image as Image
    from .mask import MaskEncoding as MaskEncoding
    from .predictor import Predictor as Predictor
    from .segmentation import Segmentation as Segmentation

__version__ = "0.1.0"

# ONNX Runtime tells its makers where it runs, and keeps a database of it in the home directory, unless this is set
# before it is loaded. Whoever wants that may set it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Loaded when they are first used: `import iog` takes neither gRPC nor an inference engine nor OpenCV with it.
_LAZY = {
    "Client": "client",
    "Image": "image",
    "MaskEncoding": "mask",
    "Predictor": "predictor",
    "Segmentation": "segmentation",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
