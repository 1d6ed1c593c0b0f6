"""A finished sweep read back: sweep.json of a folder, whose best rank and scale a merge may take."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfcart.errors import UsageError, VerifyError
from hfcart.formats.record_json import as_record, record_json
from hfcart.names import key
from hfcart.quoting import printable, quoted, some
from hfcart.records import AdapterSweep, SweepRecord, Swept
from hfcart.records.check import PARTS, is_task_id
from hfcart.records.file_names import SWEEP_RECORD

CARRY = ("all", "matrices")
_MOST = 20_000_000  # bytes; a point of a thousand tasks takes some ten thousand


def read_sweep(folder: Path) -> tuple[SweepRecord, Swept]:
    """The record of a sweep, and what a merge notes of it.

    Raises:
        UsageError: no such folder, or none of a sweep.
        VerifyError: its sweep.json is not what a sweep writes; the sentence says what is wrong.
    """
    path = folder / SWEEP_RECORD
    try:
        there = path.is_file()
    except OSError:  # of a name that is too long
        there = False
    if not there:
        raise UsageError(
            f"{printable(folder, 200)} holds no {SWEEP_RECORD}.", hint="Give the folder that `hfcart sweep` wrote."
        )
    data = path.read_bytes() if path.stat().st_size <= _MOST else b""
    hint = "Sweep again with `hfcart sweep`, which writes a new one."
    try:
        record_json(data)
        record = as_record(data, SweepRecord)
    except ValueError as error:
        raise VerifyError(f"{path} is not the record of a sweep: {error}.", hint=hint) from None
    if wrong := next(_faults(record), None):
        raise VerifyError(f"{path} is not the record of a sweep: {wrong}.", hint=hint)
    return record, Swept(
        part=record.part,
        tasks=record.tasks,
        images=sum(record.images),
        points=len(record.points) - 1,
        accuracy=round(record.accuracy(record.points[record.best]), 6),
        anchor=round(record.accuracy(record.points[0]), 6),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def settings_of(record: SweepRecord) -> dict[str, Any]:
    """The fields of a merge that its best point is: method, rank where it has one, scale, and what all points had.

    Of adapters: the average, and theirs.
    """
    best = record.points[record.best]
    if record.adapters:
        carry = record.adapters.carry
        return {"method": "average", "qkv": record.qkv, "adapters": best.rank, "adapters_carry": carry}
    rank = {} if best.rank is None else {"rank": best.rank}
    return {"method": record.method, "qkv": record.qkv, **record.parameters, **rank, "scale": best.scale}


def of_adapters(folder: str) -> bool:
    """Whether a sweep is one of adapters. Raises what `read_sweep` does."""
    return read_sweep(Path(folder))[0].adapters is not None


def with_sweep(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a merge, completed by the best point of the sweep that they name, if they name one.

    Raises:
        UsageError: it was another method's, of the lowest directions, or what it gives is given as well.
    """
    if not isinstance(fields.get("sweep"), str):
        return fields
    folder = fields["sweep"]
    record, _ = read_sweep(Path(folder))
    found = settings_of(record)
    if record.reverse:
        raise UsageError(f"{folder} kept the lowest singular directions: no merge does.")
    if each := [name for name, value in record.parameters.items() if isinstance(value, list | tuple)]:
        raise UsageError(
            f"{folder} has a {each[0]} for each source: give it, with rank and scale, and leave sweep out."
        )
    others = ("rank", "scale", "lines", "coefficients", *(["adapters"] if record.adapters else []))
    if both := [name for name in others if fields.get(name) is not None]:
        gives = "the rank of adapters" if record.adapters else "rank and scale"
        raise UsageError(f"sweep gives {gives}: leave {' and '.join(both)} out.")
    for name in ("method", "qkv", "adapters_carry"):
        if name in found and isinstance(fields.get(name), str) and key(fields[name]) != key(found[name]):
            raise UsageError(f"{folder} was made with {name} {found[name]}, not with {quoted(fields[name], 60)}.")
    return {**fields, **found}


def refuse_other_sources(record: SweepRecord, sources: list[tuple[str, str | None]], folder: str) -> None:
    """Refuse a sweep of other towers than those that are merged. Raises UsageError."""
    if sorted(record.sources, key=str) == sorted(sources, key=str):
        return
    mine, theirs = ([label for label, _ in each] for each in (sources, record.sources))
    what = "the same towers at other commits" if sorted(mine) == sorted(theirs) else some(sorted(theirs))
    raise UsageError(
        f"{folder} is a sweep of {what}, not of what is merged: {some(sorted(mine))}.",
        hint=f"Sweep these, or leave out --sweep {shlex.quote(folder)} and give --rank and --scale.",
    )


def _faults(record: SweepRecord) -> Iterator[str]:
    points = 1 + max(1, len(record.ranks)) * len(record.scales)
    if record.format != 1 or record.part not in PARTS:
        yield "it is of no known kind"
    if not record.scales or len(record.points) != points or not 1 <= record.best < points:
        yield "its points are not those of its grid"
    elif not record.images or len(record.tasks) != len(record.images) or not all(map(is_task_id, record.tasks)):
        yield "its tasks are none"
    elif any(len(point.correct) != len(record.images) for point in record.points):
        yield "a point has not a count for each task"
    elif not all(
        0 <= c <= n and n > 0 for point in record.points for c, n in zip(point.correct, record.images, strict=True)
    ):
        yield "more images were recognised than there were"
    elif not all(
        0 <= (1.0 if point.p is None else point.p) <= 1 and len(point.discordant) in (0, len(record.images))
        for point in record.points
    ):
        yield "what tells a point from the best is none"
    elif not all(math.isfinite(point.scale) for point in record.points):
        yield "a scale is no number"
    elif record.adapters:
        yield from _faults_of_adapters(record, record.adapters)


def _faults_of_adapters(record: SweepRecord, adapters: AdapterSweep) -> Iterator[str]:
    pairs = zip(adapters.individual, record.images, strict=False)
    if adapters.carry not in CARRY or record.scales != (1.0,) or record.method != "cart":
        yield "its adapters are of no known kind"
    elif not len(adapters.owners) == len(adapters.individual) == len(record.tasks) == len(set(record.tasks)):
        yield "its adapters are not one for each task"
    elif not all(0 <= correct <= n for correct, n in pairs):
        yield "more images were recognised than there were"
    elif not len(adapters.sizes) == len(record.ranks) > 0 or min((*adapters.sizes, adapters.parameters)) < 1:
        yield "its adapters have no sizes"
