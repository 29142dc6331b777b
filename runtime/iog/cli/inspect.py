"""`iog inspect`: what is in a bundle, once its hashes are verified."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from iog.cli.models import bundle_path
from iog.cli.output import print_rich
from iog.cli.values import in_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from iog.bundle import Bundle, TensorInfo

EPILOG = """\b
Examples:
  iog inspect
  iog inspect models/pascal
  iog inspect models/pascal --json | jq .manifest.proof
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", metavar="[DIR|NAME]", required=False)
@click.option(
    "--json", "as_json", envvar="IOG_INSPECT_JSON", is_flag=True, help="Print JSON: the manifest and what was found."
)
def inspect(bundle: str | None, as_json: bool) -> None:
    """Verify a bundle, the packaged default unless another is named, and show what is in it.

    Every file must have the sha256 that the manifest names. No code of the bundle runs.
    """
    from iog.bundle import Bundle

    found = Bundle.open(bundle_path(bundle))
    found.check_engines()
    if as_json:
        document = {
            "path": str(found.path),
            "digest": found.digest,
            "graph_bytes": {name: len(data) for name, data in found.graphs.items()},
            "manifest": found.manifest.model_dump(mode="json"),
        }
        click.echo(json.dumps(document, indent=2))
        return
    for part in (_facts(found), "", _graphs(found), "", _proof(found)):
        print_rich(part)


def _facts(bundle: Bundle) -> RenderableType:
    from rich.table import Table

    from iog.backends import FEATURES_BUDGET
    from iog.features import object_bytes

    m = bundle.manifest
    features = ""
    if memory := object_bytes(m):
        held = f"{in_bytes(FEATURES_BUDGET)} holds {FEATURES_BUDGET // memory:,}"
        features = f"{in_bytes(memory)} an object: {held}"
    relax = " + ".join(
        text
        for text, given in (
            (f"{m.crop.relax_pixels:g} image pixels", m.crop.relax_pixels),
            (f"{100 * m.crop.relax_fraction:g} % of the longer side", m.crop.relax_fraction),
        )
        if given
    )
    kinds = {
        "split": "split: the encoder runs once per object, click and head at every click",
        "single": "single: the whole network runs at every click",
    }
    source = m.provenance.checkpoint
    if m.provenance.checkpoint_sha256:
        source += f" (sha256 {m.provenance.checkpoint_sha256[:12]})"
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (
        ("model", m.name),
        ("", m.description),
        ("directory", str(bundle.path)),
        ("digest", bundle.digest),
        ("network", f"{m.network.architecture} {m.network.backbone}, decoder width {m.network.width}, {m.precision}"),
        ("kind", kinds[m.kind]),
        ("prompt", m.prompt),
        ("crop", f"box + {relax or 'nothing'} to {m.crop.size}x{m.crop.size}, {m.crop.interpolation}"),
        ("corners", f"{m.crop.corner_offset} network pixels outside the box" if m.crop.corner_offset else "on the box"),
        ("clicks", f"{m.guidance.encoding}, {m.guidance.fwhm:g} network pixels wide at half maximum"),
        ("threshold", f"{m.threshold:g}"),
        ("features", features),
        ("engines", "; ".join(f"{e.api} {e.version} for {e.gpu}, {e.precision}" for e in m.engines)),
        ("weights", source),
        ("exported", m.provenance.created),
        ("with", ", ".join(f"{name} {version}" for name, version in m.provenance.versions.items())),
    ):
        if value:
            table.add_row(name, value)
    return table


def _graphs(bundle: Bundle) -> RenderableType:
    from rich.table import Table

    table = Table("graph", "file", box=None, pad_edge=False)
    for column in ("size", "GMAC"):
        table.add_column(column, justify="right")
    for column in ("inputs", "outputs", "sha256"):
        table.add_column(column, overflow="fold")
    for name, graph in bundle.manifest.graphs.items():
        table.add_row(
            name,
            graph.file,
            in_bytes(len(bundle.graphs[name])),
            f"{graph.macs / 1e9:.2f}",
            "\n".join(map(_tensor, graph.inputs)),
            "\n".join(map(_tensor, graph.outputs)),
            f"{graph.sha256[:12]} verified",
        )
    return table


def _proof(bundle: Bundle) -> str:
    p = bundle.manifest.proof
    text = (
        f"proved against torch on {len(p.cases)} prompts: logits within {p.max_logit_error:.1e} of their standard "
        f"deviation (tolerance {p.logit_tolerance:g}), {p.mask_disagreement:.1e} of mask pixels differ at most "
        f"(tolerance {p.mask_tolerance:g})"
    )
    if q := p.quantization:
        loss = "not measured" if q.loss is None else f"{100 * q.loss:.2f} points on half of {q.objects} objects"
        text += f"\nint8 but for: {', '.join(q.kept_float) or 'nothing'}; loss of mean IoU {loss}"
    if a := p.accuracy:
        shares = ", ".join(f"{a.iou[n]:.4f} (torch {a.torch[n]:.4f}) after {n} clicks" for n in a.iou)
        text += f"\nmean IoU on {a.objects} objects of {a.data}: {shares}"
    return text


def _tensor(tensor: TensorInfo) -> str:
    shape = f"{tensor.name}: {tensor.dtype} [{', '.join(map(str, tensor.shape))}]"
    return f"{shape}, channels last" if tensor.channels_last else shape
