"""A bundle's graphs -> TensorRT engines, with the API of TensorRT or of TensorRT-RTX.

TensorRT builds for the GPU it runs on. TensorRT-RTX needs none: its engines are finished where they are opened.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from iog.backends.cache import cache_directory
from iog.backends.cuda import CudaMemory
from iog.backends.device import adapted, shapes
from iog.backends.surgery import to_half
from iog.backends.trt import PORTABLE_FROM, TrtBackend, installed_apis, logger_of
from iog.bundle import Bundle, EngineInfo, GraphInfo, Manifest, write_bundle
from iog.errors import BackendError, BackendUnavailable, BundleError
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from .networks import IOG
from .quantize import FLOAT_GRAPHS, Inputs, Reader, Sample
from .to_onnx import Precision
from .verify import Case, prove

GPUS = ("sm75", "sm80", "sm86", "sm89", "sm120")  # that TensorRT-RTX can be told to build for


@dataclass(frozen=True)
class EnginePlan:
    """Which engines to build.

    api: "tensorrt" (for the GPU of this machine) or "tensorrt_rtx". gpu: one of GPUS that TensorRT-RTX builds for, None
    for all from Ampere on. precision: of the arithmetic; with int8, of what is no convolution, it is fp32.
    What TensorRT measures is kept in `cache_directory("tensorrt")`: the next build of these graphs is fast and alike.
    """

    api: Literal["tensorrt", "tensorrt_rtx"]
    precision: Precision = "fp16"
    gpu: str | None = None


def target(plan: EnginePlan) -> tuple[Any, str]:
    """The API's module and the GPU to build for. Raises BackendUnavailable if there is none."""
    api = installed_apis().get(plan.api)
    if api is None:
        package = "iog-runtime[trt]" if plan.api == "tensorrt_rtx" else "tensorrt-cu12 or tensorrt-cu13"
        raise BackendUnavailable(f"{plan.api} is not installed; install {package}, or build with another --target")
    if plan.api == "tensorrt_rtx":
        return api, plan.gpu or f"sm{PORTABLE_FROM}+"
    memory = CudaMemory()
    memory.close()
    return api, memory.compute_capability


def build_engines(
    bundle: Bundle, plan: EnginePlan, samples: Sequence[Sample] = ()
) -> tuple[EngineInfo, dict[str, bytes]]:
    """Engines of a bundle's float32 graphs: what a manifest says of them, and their bytes by file name.

    samples: what the bundle's graphs were given, from which int8 takes its ranges.
    Raises BackendUnavailable if the API is not installed or needs a GPU that is not there, BackendError if it refuses
    a graph, BundleError if there is nothing to take int8 ranges from.
    """
    api, gpu = target(plan)
    if plan.precision == "int8":
        bundle = replace(bundle, graphs={**bundle.graphs, **_quantized(bundle, samples)})
    directory = f"engines/{plan.api}-{api.__version__}-{gpu}-{plan.precision}"
    files, stored = {}, {}
    for name, (model, info) in adapted(bundle).items():
        model = to_half(model) if plan.precision == "fp16" else model
        file = f"{directory}/{name}.engine"
        files[file] = engine = build(api, name, model, info, gpu, exact=plan.precision == "fp32")
        stored[name] = {"file": file, "sha256": hashlib.sha256(engine).hexdigest()}
    described = {"api": plan.api, "version": api.__version__, "gpu": gpu, "precision": plan.precision}
    return EngineInfo.model_validate({**described, "graphs": stored}), files


def prove_engines(
    network: IOG,
    manifest: Manifest,
    graphs: Mapping[str, bytes],
    engines: Mapping[str, bytes],
    all_cases: Sequence[Case],
) -> EngineInfo:
    """The first of the manifest's engines, with their largest error over all cases; raises ProofFailed, BackendError.

    Raises BackendUnavailable if this machine cannot run them.
    """
    engine = manifest.engines[0]
    backend = TrtBackend(budget=64 << 20, fall_back=False)
    with TemporaryDirectory() as directory:
        path = Path(directory, "bundle")
        write_bundle(path, manifest, graphs, "", engines=engines)
        results = list(prove(network, Bundle.open(path), all_cases, backend, tolerance(manifest)))
    return engine.model_copy(update={"max_logit_error": max(error for _, error, _ in results)})


def tolerance(manifest: Manifest) -> str:
    """By which the first of the manifest's engines is judged: int8 may change any mask of random weights."""
    precision = manifest.engines[0].precision
    return "random-int8" if precision == "int8" and manifest.provenance.checkpoint_sha256 is None else precision


def _quantized(bundle: Bundle, samples: Sequence[Sample]) -> dict[str, bytes]:
    if not samples:
        raise BundleError("int8 engines need calibration data: samples to take ranges from; choose another precision")
    return {
        name: to_symmetric_int8(model, [run for s in samples for run in (s.heads if name == "head" else [s.first])])
        for name, model in bundle.graphs.items()
        if name not in FLOAT_GRAPHS
    }


def to_symmetric_int8(model: bytes, samples: Iterable[Inputs]) -> bytes:
    """Convolutions in int8 as TensorRT wants them: symmetric ranges, biases in float."""
    with TemporaryDirectory() as directory:
        plain, prepared, quantized = (Path(directory, f"{step}.onnx") for step in ("plain", "prepared", "quantized"))
        plain.write_bytes(model)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            Reader(samples),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
        return quantized.read_bytes()


def build(api: Any, name: str, model: bytes, info: GraphInfo, gpu: str, *, exact: bool = False) -> bytes:
    """One engine, for batches up to the largest that the runtime makes. Raises BackendError.

    exact: float32 products in float32, which by default lose 13 bits of the factors (TF32).
    """
    log = logger_of(api)
    builder = api.Builder(log)
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = api.OnnxParser(network, log)
    if not parser.parse(model):
        errors = " ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise BackendError(f"{api.__name__} refuses graph {name!r}: {' '.join(errors.split())}")
    config = builder.create_builder_config()
    if exact:
        config.clear_flag(api.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    for tensor, (smallest, usual, largest) in shapes(name, info).items():
        profile.set_shape(tensor, smallest, usual, largest)
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(f"{api.__name__} refuses the shapes of graph {name!r}: {log.last}")
    if api.__name__ == "tensorrt_rtx":
        if not gpu.endswith("+"):
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(api.ComputeCapability, gpu.upper()), 0)
        engine = builder.build_serialized_network(network, config)
    else:
        engine = _build_timed(builder, network, config, f"{api.__name__}-{api.__version__}-{gpu}.timings")
    if engine is None:
        raise BackendError(f"{api.__name__} cannot build graph {name!r}: {log.last}")
    return bytes(engine)


def _build_timed(builder: Any, network: Any, config: Any, file: str) -> Any:
    """Build with what earlier builds measured. TensorRT-RTX measures nothing: it has no timing cache."""
    kept = cache_directory("tensorrt")
    timings = None if kept is None else kept / file
    known = b""
    if timings is not None:
        with suppress(OSError):  # none yet, or somebody else's
            known = timings.read_bytes()
    timing = config.create_timing_cache(known)
    config.set_timing_cache(timing, ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if timings is not None:
        written = timings.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # the engine does not depend on it
            written.write_bytes(bytes(timing.serialize()))
            written.replace(timings)  # whole, whoever else builds at the same time
    return engine
