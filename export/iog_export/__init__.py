"""The torch side of iog-runtime: networks, published checkpoints, and their export to the runtime's graphs."""

import iog  # noqa: F401  # before ONNX Runtime, whose telemetry it switches off
