"""`iog models`, and how commands find a bundle or a server."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from iog.cli import values
from iog.errors import BundleError

if TYPE_CHECKING:
    from iog.client import Client
    from iog.rpc.catalog import Limits

F = TypeVar("F", bound=Callable[..., Any])

REACH_S = 5.0  # a wrong address should not take the whole timeout to be noticed

EPILOG = """\b
Examples:
  iog models
  iog models --server localhost:50051
"""


def server_options(command: F) -> F:
    """--server, --tls and --root-certificates."""
    for option in (
        click.option(
            "--root-certificates",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="PEM file that vouches for the server, if no public authority does.",
        ),
        click.option("--tls", is_flag=True, help="Encrypt the connection."),
        click.option("--server", type=values.address, metavar="HOST:PORT", help="Ask this server."),
    ):
        command = option(command)
    return command


def connect(server: str, timeout: float, tls: bool, root_certificates: Path | None) -> tuple[Client, Limits]:
    """A client of a server that has answered, and what that refuses. Raises Unavailable."""
    from iog.client import Client
    from iog.errors import Unavailable

    certificates = root_certificates.read_bytes() if root_certificates else None
    client = Client(server, timeout=timeout, tls=tls or certificates is not None, root_certificates=certificates)
    try:
        limits = client.limits(timeout=min(REACH_S, timeout))
    except BaseException as e:
        client.close()
        if isinstance(e, Unavailable):
            secure = tls or certificates is not None
            raise Unavailable(
                f"no server answers at {server}; start one with `iog serve`, or correct the address"
                + (", or give the --root-certificates that vouch for it" if secure else ", or use --tls if it does")
                + f" ({e})"
            ) from e
        raise
    return client, limits


@functools.cache
def packaged() -> dict[str, Path]:
    """Bundles that come with iog-runtime, by name, the default first."""
    from iog.bundle import DEFAULT_BUNDLE, MANIFEST, read_manifest

    found = sorted(DEFAULT_BUNDLE.parent.glob(f"*/{MANIFEST}"), key=lambda path: (path.parent != DEFAULT_BUNDLE, path))
    return {read_manifest(path.parent)[0].name: path.parent for path in found}


def bundle_path(model: str | None) -> Path | None:
    """The bundle that a --model means: a directory, or the name of a packaged model; None for the default.

    Raises BundleError if it is neither.
    """
    if model is None:
        return None
    path = Path(model)
    if path.is_dir():
        return path
    known = packaged()
    if model in known:
        return known[model]
    raise BundleError(
        f"model {model!r} is neither a bundle directory nor a packaged model ({', '.join(known) or 'there is none'})"
    )


@click.command(epilog=EPILOG)
@server_options
@click.option("--json", "as_json", envvar="IOG_MODELS_JSON", is_flag=True, help="Print JSON.")
def models(server: str | None, tls: bool, root_certificates: Path | None, as_json: bool) -> None:
    """List the models that --model can name: the packaged ones, or those of a server."""
    rows: list[dict[str, Any]]
    if server is not None:
        client, _ = connect(server, REACH_S, tls, root_certificates)
        with client:
            rows = [asdict(model) for model in client.models()]
    else:
        from iog.bundle import DEFAULT_BUNDLE, read_manifest

        rows = []
        for name, path in packaged().items():
            manifest, digest = read_manifest(path)
            rows.append(
                {
                    "name": name,
                    "kind": manifest.kind,
                    "network": manifest.network.architecture,
                    "backbone": manifest.network.backbone,
                    "input_size": manifest.crop.size,
                    "prompts": [manifest.prompt],
                    "precision": manifest.precision,
                    "bundle_digest": digest,
                    "default": path == DEFAULT_BUNDLE,
                    "description": manifest.description,
                    "path": str(path),
                }
            )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("no model is packaged; make a bundle with `iog export`")
        return
    from rich.table import Table

    from iog.cli.output import print_rich

    table = Table("name", "network", "input", "kind", "precision", "bundle", "", box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['network']} {row['backbone']}",
            f"{row['input_size']} px",
            row["kind"],
            row["precision"],
            row["bundle_digest"][:12],
            "; ".join(filter(None, ["default" if row["default"] else "", row.get("description", "")])),
        )
    print_rich(table)
