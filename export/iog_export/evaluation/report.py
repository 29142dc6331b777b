"""report.json for machines, report.md for people."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from iog.bundle import Bundle

from iog_export.installed import versions

from .baselines import BASELINES
from .figures import Figures, Groups, by_fill, by_set, by_size, figures, setbacks, sweep_means
from .measure import BASELINE_CLICKS, REFERENCE, conditions
from .records import Record, Settings
from .session import COUNTS, GOALS, MODEL

LISTED = 100  # of what was skipped

Table = dict[str, dict[str, Figures]]  # group -> segmenter -> figures


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    data: the folder, and the list if it was not the folder's own; skipped: what could not be used, with the reasons;
    uncounted: how many objects were too small to count.
    records: of all objects, in the order of the list.
    """

    bundle: Bundle
    settings: Settings
    data: Path
    listed: Path | None
    skipped: Mapping[str, str]
    uncounted: int
    records: Sequence[Record]

    @property
    def sets(self) -> Table:
        """Figures by data set."""
        return self._figures(by_set(self.records))

    @property
    def sweep(self) -> dict[str, dict[str, float]]:
        """Mean IoU after three clicks, by set and condition; empty without a sweep."""
        labels = list(conditions(self.settings.protocol)) if self.settings.sweep else []
        found = {name: sweep_means(records, labels) for name, records in by_set(self.records).items()}
        return {name: means for name, means in found.items() if means}

    @property
    def setbacks(self) -> dict[str, dict[int, float]]:
        """By set, the further clicks that lower its mean IoU, and by how much."""
        return {name: setbacks(records, MODEL) for name, records in by_set(self.records).items()}

    @property
    def failures(self) -> list[dict[str, Any]]:
        """What raised, on which object."""
        return [
            {"name": record.name, "id": record.id, "segmenter": segmenter, "error": error}
            for record in self.records
            for segmenter, error in record.errors.items()
        ]

    def document(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        manifest = self.bundle.manifest
        return {
            "model": {
                "name": manifest.name,
                "path": str(self.bundle.path),
                "digest": self.bundle.digest,
                "network": manifest.network.model_dump(),
                "input_size": manifest.crop.size,
                "precision": manifest.precision,
                "checkpoint": manifest.provenance.checkpoint,
            },
            "environment": environment(),
            "data": {
                "root": str(self.data),
                "list": self._list,
                "photographs": len({record.name for record in self.records}),
                "objects": len(self.records),
                "uncounted": self.uncounted,
                "skipped": dict(self.skipped),
            },
            "settings": self.settings.model_dump(),
            "figures": {
                "set": _plain(self.sets),
                "size": _plain(self._figures(by_size(self.records))),
                "fill": _plain(self._figures(by_fill(self.records))),
            },
            "setbacks": self.setbacks,
            "sweep": self.sweep,
            "failures": self.failures,
        }

    def markdown(self) -> str:
        """The same in tables."""
        parts = [
            f"# Evaluation of {self.bundle.manifest.name}",
            self._introduction(),
            "## By data set",
            _markdown(self.rows(self.sets, "set")),
            "## By size of the object",
            _markdown(self.rows(self._figures(by_size(self.records)), "size")),
            "## By the share of its box that the object fills",
            _markdown(self.rows(self._figures(by_fill(self.records)), "fill")),
            "## Further clicks that lower a set's mean IoU",
            "In points. An object that needs no further click, at an IoU of "
            f"{100 * GOALS[-1]:g} % from the {COUNTS[-1]}th on, keeps its mask.",
            "\n".join(f"- {name}: {_listed(clicks)}" for name, clicks in self.setbacks.items()),
        ]
        if self.sweep:
            parts += [
                "## How well must be clicked",
                f"Mean IoU after three clicks, {REFERENCE}, and differences to it in points.",
                _markdown(self.differences()),
            ]
        failures, skipped = self.failures, self.skipped
        if failures:
            items = (f"- {f['name']} object {f['id']}, {f['segmenter']}: {f['error']}" for f in failures)
            parts += [f"## Failures: {len(failures)}", "They count in no mean.", "\n".join(items)]
        if skipped:
            items = (f"- {name}: {reason}" for name, reason in islice(skipped.items(), LISTED))
            rest = [f"- and {len(skipped) - LISTED} more, in report.json"] if len(skipped) > LISTED else []
            parts += [f"## Photographs and objects skipped: {len(skipped)}", "\n".join([*items, *rest])]
        return "\n\n".join(parts) + "\n"

    def rows(self, table: Table, by: str) -> list[list[str]]:
        """A table as text, the header first."""
        counts = [count for count in COUNTS if count <= self.settings.clicks]
        ends = sorted({counts[0], counts[-1]})
        failures = any(f.failed for segmenters in table.values() for f in segmenters.values())
        header = [
            *(by, "objects", "segmenter"),
            *(f"IoU@{count}" for count in counts),
            *(f"BIoU@{count}" for count in ends),
            *(f"NoC@{goal * 100:.0f}" for goal in GOALS),
            *(f"never {goal * 100:.0f}" for goal in GOALS),
            *(f"<0.5@{count}" for count in ends),
            *(["failed"] if failures else []),
        ]
        rows = [header]
        for group, segmenters in table.items():
            for segmenter, f in segmenters.items():
                first = segmenter == MODEL
                error = f" ±{f.standard_error[3]:.3f}" if first and f.standard_error else ""
                rows.append(
                    [
                        *((group, str(f.objects + f.failed)) if first else ("", "")),
                        segmenter,
                        *(_number(f.iou.get(c), ".3f") + (error if c == 3 else "") for c in counts),
                        *(_number(f.boundary_iou.get(c), ".3f") for c in ends),
                        *(_number(f.clicks_to.get(goal), ".2f") for goal in GOALS),
                        *(_number(f.not_reached.get(goal), ".0%") for goal in GOALS),
                        *(_number(f.below_half.get(c), ".0%") for c in ends),
                        *([str(f.failed or "")] if failures else []),
                    ]
                )
        return rows

    def differences(self) -> list[list[str]]:
        """The sweep as text: each condition against REFERENCE; the header first."""
        labels = [label for label in conditions(self.settings.protocol) if label != REFERENCE]
        rows = [["set", REFERENCE, *labels]]
        for name, means in self.sweep.items():
            reference = means.get(REFERENCE)
            changes = [
                f"{100 * (means[label] - reference):+.1f}" if label in means and reference is not None else ""
                for label in labels
            ]
            rows.append([name, _number(reference, ".3f"), *changes])
        return rows

    def write(self, out: Path) -> None:
        """report.json and report.md."""
        (out / "report.json").write_text(json.dumps(self.document(), indent=2) + "\n", encoding="utf-8")
        (out / "report.md").write_text(self.markdown(), encoding="utf-8")

    def _figures(self, groups: Groups) -> Table:
        clicks = self.settings.clicks
        table: Table = {}
        for name, records in groups.items():
            table[name] = {MODEL: figures(records, MODEL, clicks, goals=True)}
            for baseline in BASELINES if self.settings.baselines else ():
                table[name][baseline] = figures(records, baseline, min(clicks, BASELINE_CLICKS), goals=False)
        return table

    @property
    def _list(self) -> str:
        return str(self.listed or "val")

    def _introduction(self) -> str:
        s, manifest = self.settings, self.bundle.manifest
        where = environment()
        moved = (
            f", moved by up to {s.inside_radius:g} pixels of the box's longer side scaled to 512"
            if s.inside_radius
            else ""
        )
        photographs = len({record.name for record in self.records})
        lines = [
            f"{manifest.network.architecture} {manifest.network.backbone}, crops of {manifest.crop.size} pixels, "
            f"{manifest.precision}; bundle `{self.bundle.digest[:12]}`, weights of {manifest.provenance.checkpoint}. "
            f"{len(self.records)} objects in {photographs} photographs of {self.data.name}, {self._list}; "
            f"photographs and objects skipped: {len(self.skipped)}, failures: {len(self.failures)}, "
            f"objects too small to count: {self.uncounted}.",
            f"A simulated annotator draws the object's box with each side moved outwards by {100 * s.looseness:g} % of "
            "the box's width or height, and clicks on the object's pixel farthest from its boundary"
            f"{moved}: three clicks. Each further click, {s.clicks} in all at most, lies in the middle of the largest "
            "error of the mask just seen.",
            "IoU@n: mean intersection over union after n clicks, ± its standard error. BIoU@n: the same for the "
            "boundaries, 2 % of the image's diagonal wide. NoC@g: mean number of clicks to an IoU of g %, "
            f"{s.clicks} where that was never reached; never g: on how many objects. <0.5@n: on how many objects the "
            "IoU is under 0.5. Pixels whose label is void count nowhere.",
            f"{where['created']}, backend {s.backend} on {s.device}, {where['machine']}, Python {where['python']}, "
            + ", ".join(f"{name} {found}" for name, found in where["packages"].items())
            + ".",
        ]
        return "\n\n".join(lines)


def environment() -> dict[str, Any]:
    """Where and with what it was measured."""
    return {
        "created": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "packages": versions(),
    }


def _plain(table: Table) -> dict[str, dict[str, Any]]:
    return {name: {segmenter: asdict(f) for segmenter, f in row.items()} for name, row in table.items()}


def _listed(changes: Mapping[int, float]) -> str:
    return ", ".join(f"click {count}: {-100 * loss:.2f}" for count, loss in changes.items()) or "none"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    header, *body = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    rule = ["---" if i == 0 or name == "segmenter" else "---:" for i, name in enumerate(header)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *body))
