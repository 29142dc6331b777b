"""`iog serve`: models over gRPC."""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
import time
from contextlib import ExitStack
from pathlib import Path

import click

import iog
from iog.backends import DEVICES
from iog.cli.models import bundle_path
from iog.cli.values import DEFAULT_PIXELS, ENGINE, PIXELS, THREADS, Seconds, byte_count, in_bytes

EPILOG = """\b
Examples:
  iog serve
  iog serve --model models/pascal --model models/fast --host 0.0.0.0 --port 50051
  IOG_SERVE_PORT=8061 IOG_SERVE_FEATURES_BUDGET=4GiB iog serve

\b
The first model is the default. The line "serving ... on HOST:PORT" says that the
server is ready; Ctrl-C or SIGTERM lets requests in progress finish, then stops.
Coordinates in requests are pixels of the upright image, x to the right, y down.
Without --tls-certificate nothing is encrypted, and no one has to log in: listen on
other addresses than 127.0.0.1 only where all who can connect may.
"""

_M_ARENA_MAX = -8  # malloc.h
option = functools.partial(click.option, show_envvar=True)
logger = logging.getLogger("iog.cli")
pem = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(epilog=EPILOG)
@option(
    "--model",
    metavar="DIR|NAME",
    multiple=True,
    type=click.Path(),
    help="A bundle or a packaged model; may be repeated (in the variable: A:B). [default: the packaged default]",
)
@option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for all.")
@option("--port", type=click.IntRange(0, 65535), default=50051, help="0 for any that is free.")
@option("--backend", type=ENGINE, default="ort", help="The engine; see the README.")
@option("--device", type=click.Choice(DEVICES), default="cpu", help="Of ONNX Runtime.")
@option("--threads", type=THREADS, default=0, help="On the CPU; 0 for one per core that may be used.")
@option("--features-budget", type=byte_count, metavar="SIZE", default="1GiB", help="For recent encoder outputs.")
@option("--images-budget", type=byte_count, metavar="SIZE", default="512MiB", help="For recent images, decoded.")
@option("--max-image-bytes", type=byte_count, metavar="SIZE", default="64MiB", help="Of an encoded image.")
@option("--max-image-pixels", type=PIXELS, default=DEFAULT_PIXELS, help="Of an image, decoded.")
@option("--max-concurrency", type=click.IntRange(min=1), default=64, help="Masks in progress; more are turned away.")
@option("--max-uploads", type=click.IntRange(min=1), default=16, help="Uploads in progress; more are turned away.")
@option("--reflection/--no-reflection", default=True, help="Let clients such as grpcurl read the interface.")
@option(
    "--max-connection-age",
    type=Seconds(min=0),
    default=1800.0,
    help="In seconds, 1 or more; then clients connect anew, so that replicas added later get their share. 0 for never.",
)
@option("--grace", type=Seconds(min=0), default=10.0, help="In seconds: to finish requests when stopping.")
@option("--tls-certificate", type=pem, help="PEM file, with --tls-key.")
@option("--tls-key", type=pem, help="PEM file, with --tls-certificate.")
@click.pass_context
def serve(
    ctx: click.Context,
    model: tuple[str, ...],
    host: str,
    port: int,
    backend: str,
    device: str,
    threads: int,
    features_budget: int,
    images_budget: int,
    max_image_bytes: int,
    max_image_pixels: int,
    max_concurrency: int,
    max_uploads: int,
    reflection: bool,
    max_connection_age: float,
    grace: float,
    tls_certificate: Path | None,
    tls_key: Path | None,
) -> None:
    """Serve models over gRPC (iog.v1.SegmentationService, health, reflection) until stopped.

    The server keeps no sessions: what it remembers makes answers faster, and the budgets bound it.
    """
    if (tls_certificate is None) != (tls_key is None):
        raise click.UsageError("--tls-certificate and --tls-key go together; give both or none", ctx)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    from iog.backends import open_backend
    from iog.bundle import Bundle
    from iog.image import ImageLimits
    from iog.lane import Lane
    from iog.predictor import ImageCache, Predictor, feature_cache
    from iog.rpc.server import ServerConfig
    from iog.rpc.server import serve as serve_until_stopped

    try:
        config = ServerConfig(
            host=host,
            port=port,
            limits=ImageLimits(max_image_bytes, max_image_pixels),
            max_segments=max_concurrency,
            max_uploads=max_uploads,
            reflection=reflection,
            max_connection_age_s=max_connection_age or None,
            grace_s=grace,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
        )
    except ValueError as e:
        raise click.UsageError(str(e), ctx) from e
    each = features_budget // max(1, len(model))  # on a GPU every model reserves its part
    engine = open_backend(backend, device=device, threads=threads, features_budget=each)
    _share_memory(backend)
    features, images, lane = feature_cache(features_budget), ImageCache(images_budget), Lane()
    named: dict[str, Predictor] = {}
    with ExitStack() as stack:
        for which in model or (None,):
            start = time.perf_counter()
            bundle = Bundle.open(bundle_path(which))
            name = bundle.manifest.name
            if name in named:
                raise click.UsageError(
                    f"two models are named {name!r}: {named[name].bundle.path} and {bundle.path}; "
                    "export one of them with another --name",
                    ctx,
                )
            named[name] = stack.enter_context(
                Predictor(bundle, engine, features=features, images=images, lane=lane, limits=config.limits)
            )
            logger.info(
                "iog %s opened %s (%s %s, %s) on %s in %.1f s",
                iog.__version__,
                name,
                bundle.manifest.network.architecture,
                bundle.manifest.network.backbone,
                bundle.manifest.kind,
                f"{backend} {device}" if backend == "ort" else backend,
                time.perf_counter() - start,
            )
            del bundle  # and the graphs that it has read: engines have copies of their own
        logger.info(
            "remembering up to %s of encoder outputs and %s of images",
            in_bytes(features_budget),
            in_bytes(images_budget),
        )
        serve_until_stopped(list(named.values()), config)


def _share_memory(backend: str) -> None:
    """Let all graphs use one arena and all threads one heap of glibc's: what one has freed is there for the others."""
    if backend == "ort":
        from iog.backends.ort import share_arena

        share_arena()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(ctypes.c_int(_M_ARENA_MAX), ctypes.c_int(1))
