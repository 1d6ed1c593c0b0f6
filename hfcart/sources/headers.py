"""The headers of every source, read before a byte of weights is: what it stores, where, and in which form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hfcart.clip.tensor_names import PROJECTION
from hfcart.errors import CorruptFileError
from hfcart.formats.safetensors_file import TensorSpec, parse_header, sha256_of
from hfcart.formats.shard_layout import INDEX
from hfcart.progress import Progress
from hfcart.quoting import plural, printable, some
from hfcart.records import FileRecord
from hfcart.sources.forms import find_tower
from hfcart.sources.lora.tower import AdaptedTower
from hfcart.sources.stores import Store
from hfcart.sources.towers import Tower, with_bases
from hfcart.system.threads import in_parallel


def read_headers(towers: Sequence[Tower], converted: Path, progress: Progress) -> None:
    """Read every header: by ranged requests on the Hub, not a byte of weights among them.

    A pickle has no header: it is fetched and converted under `converted` first, and one sentence says so. Another says
    what of an unusual form was seen through or left out.
    """
    progress.step("Reading headers")

    def one(tower: Tower) -> None:
        if tower.pickled:
            _convert(tower, converted, progress)
        for name in tower.weights:
            _add_header(tower, name)
        _check_index(tower)
        if isinstance(tower, AdaptedTower):
            return
        found = find_tower(tower.stored, tower.label)
        tower.tensors, tower.projection, tower.beside = found.tensors, found.tensors.get(PROJECTION), found.beside
        if found.note:
            progress.note(f"{tower.label} {found.note}.")

    in_parallel(one, with_bases(towers))
    for tower in towers:  # once what they are added to is known
        if isinstance(tower, AdaptedTower):
            progress.note(f"{tower.label} {tower.take_up()}.")


def _add_header(tower: Tower, name: str) -> None:
    where = f"{tower.label}/{name}"
    if not tower.store.remote and name not in tower.files:
        tower.open(name, tower.store.fetch(name))
    file = tower.files.get(name)
    specs = parse_header(file.read, file.size, where) if file else _remote_header(tower, name, where)
    tower.stored += specs.values()


def _remote_header(tower: Tower, name: str, where: str) -> dict[str, TensorSpec]:
    """The header of a file on the Hub. No digest proves a part of a file: it has to come in twice the same."""
    store = tower.store
    for left in (2, 1, 0):
        header = bytearray()

        def read(start: int, end: int, header: bytearray = header) -> bytes:
            part = _range(store, name, start, end)
            header.extend(part)
            return part

        try:
            specs = parse_header(read, store.sizes[name], where)
        except CorruptFileError:
            if not left:
                raise
            continue
        if store.here(name) or _range(store, name, 0, len(header)) == header:
            return specs
    raise CorruptFileError(
        f"The header of {where} comes in with other bytes each time it is read.",
        hint="Something between here and the Hub changes what is sent: run the same command elsewhere.",
    )


def _range(store: Store, name: str, start: int, end: int) -> bytes:
    found = bytearray(end - start)
    store.read_into(name, start, memoryview(found))
    return bytes(found)


def _check_index(tower: Tower) -> None:
    """An index must say of every tensor what the headers say: from_pretrained would follow it."""
    if tower.index is None:
        return
    held = {spec.name: spec.file for spec in tower.stored}
    odd = sorted(name for name in held.keys() | tower.index.keys() if held.get(name) != tower.index.get(name))
    if odd:
        said, found = tower.index.get(odd[0], "nowhere"), held.get(odd[0], "nowhere")
        raise CorruptFileError(
            f"{tower.label}/{INDEX} does not fit its shards: it puts {printable(odd[0], 120)} {printable(said, 120)}, "
            f"its headers {found}" + (f" ({plural(len(odd), 'such tensor')})." if len(odd) > 1 else "."),
            hint="Ask its owner to upload the model again.",
        )


def _convert(tower: Tower, converted: Path, progress: Progress) -> None:
    from hfcart.sources.pickles import convert  # it imports torch, which no other source needs here

    records, files = [], []
    for name in tower.weights:
        path = tower.store.fetch(name)
        try:
            digest = sha256_of(path)
        except OSError as error:
            raise CorruptFileError(f"{tower.label}/{name} cannot be read: {error.strerror}.") from None
        records.append(FileRecord(name, path.stat().st_size, digest))
        target = converted / f"{digest}.safetensors"
        convert(path, target, f"{tower.label}/{name}")  # each time: nothing would prove an earlier run's file
        if sha256_of(path) != digest:
            raise CorruptFileError(
                f"{tower.label}/{name} changed while it was read.",
                hint="Run the same command again when nothing else writes to it.",
            )
        tower.open(target.name, target)
        files.append(target.name)
    progress.note(f"{tower.label} has no safetensors: {some(tower.weights)} was loaded (data only) and converted.")
    tower.weights = files
    tower.converted = records
