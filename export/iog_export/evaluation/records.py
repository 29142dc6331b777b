"""results.jsonl: the settings, then one line for each object as it is done, so that a stopped evaluation can go on."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import pydantic
from iog.errors import IogError
from iog.prompt import Box, Click, Point, Prompt
from pydantic import BaseModel, ConfigDict

from iog_export.datasets import Item

from .protocol import Protocol

Key = tuple[str, int]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(_Model):
    """What decides the figures; results of other settings are never mixed with these.

    measurement: raised when the same settings come to mean other figures. bundle: its name and digest.
    objects: how many, and the digest of their list. looseness, inside_radius, clicks, seed: see `Protocol`.
    """

    measurement: int = 2
    bundle: str
    backend: str
    device: str
    looseness: float
    inside_radius: float
    clicks: int
    seed: int
    baselines: bool
    sweep: bool
    objects: str

    @property
    def protocol(self) -> Protocol:
        """How the annotator draws."""
        return Protocol(self.looseness, self.clicks, self.inside_radius, self.seed)


class Track(_Model):
    """One segmenter on one object.

    clicks: the corrections placed, (x, y, positive). ious, boundary_ious: after 3, 4, ... clicks, for as long as they
    count in any figure.
    """

    clicks: tuple[tuple[float, float, bool], ...]
    ious: tuple[float, ...]
    boundary_ious: tuple[float, ...]


class Record(_Model):
    """One object.

    box, inside: the first three clicks; None of an object whose photograph could not be read.
    tracks, errors: by segmenter, which is in one of both. sweep: IoU after three clicks by condition.
    """

    name: str
    id: int
    area: int
    fill: float
    box: tuple[float, float, float, float] | None
    inside: tuple[float, float] | None
    tracks: dict[str, Track]
    errors: dict[str, str] = {}
    sweep: dict[str, float] = {}

    @classmethod
    def of(
        cls,
        item: Item,
        start: Prompt | None,
        tracks: dict[str, Track],
        errors: dict[str, str] | None = None,
        sweep: dict[str, float] | None = None,
    ) -> Record:
        """What was measured of an object after these first three clicks."""
        return cls(
            name=item.name,
            id=item.id,
            area=item.area,
            fill=item.fill,
            box=(start.box.x0, start.box.y0, start.box.x1, start.box.y1) if start else None,
            inside=(start.inside.x, start.inside.y) if start else None,
            tracks=tracks,
            errors=errors or {},
            sweep=sweep or {},
        )

    @property
    def key(self) -> Key:
        """Names the object."""
        return self.name, self.id

    @property
    def collection(self) -> str:
        """The set that the photograph belongs to."""
        return self.name.split("/", 1)[0]

    def prompt(self, segmenter: str, count: int) -> Prompt:
        """What the segmenter was given after `count` clicks."""
        assert self.box is not None, "what has a track has been opened"
        assert self.inside is not None
        placed = self.tracks[segmenter].clicks[: count - 3]
        return Prompt(Box(*self.box), Point(*self.inside), tuple(Click(*click) for click in placed))


class Results:
    """The file and what is in it. records: by object; of an object that was measured again, the later ones."""

    def __init__(self, path: Path, settings: Settings) -> None:
        """Start the file, or go on with it: only with the same settings. Raises IogError."""
        self.records: dict[Key, Record] = {}
        header = json.dumps({"settings": settings.model_dump()}).encode() + b"\n"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            if len(lines) == 1 and not header.startswith(lines[0]):
                _check_same(path, lines[0], settings)
            lines.pop()  # cut short when the evaluation was killed
        if lines:
            _check_same(path, lines[0], settings)
        for number, line in enumerate(lines[1:], 2):
            try:
                record = Record.model_validate_json(line)
            except pydantic.ValidationError as e:
                raise IogError(f"{path}: line {number} is damaged; delete it to have its object measured again") from e
            self.records[record.key] = record
        self._file = path.open("r+b" if lines else "wb")
        self._file.truncate(self._file.seek(sum(map(len, lines))))
        if not lines:
            self._write(header)

    def add(self, record: Record) -> None:
        """Keep a record, in the file too before this returns."""
        self.records[record.key] = record
        self._write(record.model_dump_json().encode() + b"\n")

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()


def _check_same(path: Path, header: bytes, settings: Settings) -> None:
    try:
        there: dict[str, Any] = dict(json.loads(header)["settings"])
    except (ValueError, KeyError, TypeError) as e:
        raise IogError(f"{path} holds something else than results of `iog evaluate`; choose another --out") from e
    here = settings.model_dump()
    differences = [
        f"{name} {there.get(name)} (now {here.get(name)})"
        for name in dict.fromkeys([*here, *there])
        if there.get(name) != here.get(name)
    ]
    if differences:
        raise IogError(
            f"{path} holds results of other settings: {', '.join(differences)}; choose another --out, or delete it"
        )
