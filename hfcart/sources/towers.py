"""Sources: from what the user typed to towers that are pinned, proven alike, and ready to be read.

pin (one commit each) -> config and headers -> check (nothing of the weights fetched so far) -> fetch or
stream -> digests -> canonical order.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfcart.clip import open_clip
from hfcart.errors import CorruptFileError, NotATowerError, SourceError
from hfcart.formats.safetensors_file import (
    DTYPE_BYTES,
    LocalFile,
    TensorSpec,
    parse_header,
    sha256_of,
)
from hfcart.progress import Progress
from hfcart.recipes.named import AdapterSource, LocalSource
from hfcart.records import Architecture, CardFacts, FileRecord, SourceRecord
from hfcart.report.accuracy import weights_sha256
from hfcart.sources.stores import LocalStore, Store
from hfcart.system.threads import default_workers, in_parallel

# Towers that others are fine-tuned from, by (hidden_size, num_hidden_layers, patch_size, image_size).
_KNOWN_BASES = {
    (768, 12, 32, 224): "openai/clip-vit-base-patch32",
    (768, 12, 16, 224): "openai/clip-vit-base-patch16",
    (1024, 24, 14, 224): "openai/clip-vit-large-patch14",
}


@dataclass(frozen=True)
class Reopened:
    """What this command has read before, a local folder or an adapter: it must still have the sha256 of then.

    Attributes:
        path: what opens it.
        sha256: as in SourceRecord.
        base: of an adapter, what opens its base.
        local: whether `path` is one of this machine.
    """

    path: str
    sha256: str
    base: str | Reopened | None = None
    local: bool = True

    def __str__(self) -> str:
        """What was typed."""
        return self.path

    def as_field(self) -> dict[str, Any]:
        """As a recipe has it among its sources."""
        plain = {"path": self.path, "sha256": self.sha256}
        if self.base is None:
            return plain
        base = self.base.as_field() if isinstance(self.base, Reopened) else self.base
        return {"adapter": plain if self.local else self.path, "base": base}


Ref = str | LocalSource | AdapterSource | Reopened
"""What opens a source: as it was typed, as a recipe has it, or as it was opened before."""


@dataclass
class Tower:
    """One source while it is being worked with.

    Attributes:
        store: where its files are.
        described: what its config.json or open_clip_config.json says; None if it has neither.
        facts: what its card says.
        weights: the weight files chosen, in name order.
        wanted: sha256 that a recorded recipe, or an earlier reading, demands of a local source.
        tensors: canonical name -> where it is stored; filled by `read_headers`.
        index: stored name -> shard, if there is an index.
        record: filled by `fetch_all`.
        projection: where its visual projection is stored, None if it has none.
        beside: canonical name -> where the text side of an OpenCLIP model is stored, and its logit scale.
        stored: everything its headers list, by the names in the files.
        files: the weight files that are on this machine, open.
        reopened: whether `wanted` is of an earlier reading.
        converted: the pickles that its weight files were made of, if they were.
        base: the tower that it is an adapter of; None for a whole tower.
        given: whether it is an adapter's base because the user said so.
        recent: of a base, what each thread read of it last.
    """

    store: Store
    described: Architecture | None
    facts: CardFacts
    weights: list[str]
    wanted: str | None = None
    tensors: dict[str, TensorSpec] = field(default_factory=dict)
    index: dict[str, str] | None = None
    record: SourceRecord | None = None
    projection: TensorSpec | None = None
    beside: dict[str, TensorSpec] = field(default_factory=dict)
    stored: list[TensorSpec] = field(default_factory=list)
    files: dict[str, LocalFile] = field(default_factory=dict)
    reopened: bool = False
    converted: list[FileRecord] = field(default_factory=list)
    base: Tower | None = None
    given: bool = False
    recent: threading.local = field(default_factory=threading.local)

    @property
    def label(self) -> str:
        """`user/name`, or a local folder's base name."""
        return self.store.label

    def __getstate__(self) -> dict[str, Any]:
        """For another process: all but what threads have read."""
        return {name: value for name, value in self.__dict__.items() if name != "recent"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take that up."""
        self.__dict__.update(state, recent=threading.local())

    @property
    def architecture(self) -> Architecture:
        """What it is. Raises NotATowerError if only its shapes tell, and nothing which activation it has."""
        if self.described is None:
            raise NotATowerError(
                f"{self.label} has neither config.json nor {open_clip.CONFIG}, and no shape shows which activation a "
                "tower has.",
                hint="Put one of them beside its weights; for a merge, give the base it comes from (--base user/name), "
                "or the activation: --activation quick_gelu for OpenAI's weights, gelu for most of LAION's.",
            )
        return self.described

    @property
    def source(self) -> SourceRecord:
        """The tower's record, once it is fetched."""
        if self.record is None:
            raise RuntimeError(f"{self.label} is not fetched yet")
        return self.record

    @property
    def again(self) -> str | Reopened:
        """What opens it again in this command, or nothing if it is no longer the same."""
        local = isinstance(self.store, LocalStore)
        if not local and self.base is None:
            return self.store.ref or ""
        path = str(self.store.opened) if isinstance(self.store, LocalStore) else self.store.ref or ""
        return Reopened(path, self.source.sha256, self.base.again if self.base else None, local)

    @property
    def pickled(self) -> bool:
        """Whether its weights only exist as a pickle."""
        return any(not name.endswith(".safetensors") for name in self.weights)

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Fill `buffer` with the stored bytes of a tensor: from the local file, or by a ranged request."""
        self.read_stored(self.tensors[name], buffer)

    def read_stored(self, spec: TensorSpec, buffer: memoryview) -> None:
        """Fill `buffer` with the stored bytes of anything that the headers list; in its own order if transposed."""
        file = self.files.get(spec.file)
        if spec.transposed:
            import numpy  # only torch's users come here

            rows, columns = spec.shape
            stored = memoryview(bytearray(len(buffer)))
            self.read_stored(dataclasses.replace(spec, transposed=False), stored)
            entries = numpy.frombuffer(stored, f"u{DTYPE_BYTES[spec.dtype]}").reshape(columns, rows)
            buffer[:] = entries.T.tobytes()
        elif file is not None:
            file.read_into(buffer, spec.start)
        else:
            self.store.read_into(spec.file, spec.start, buffer)

    def in_ranges(self, name: str) -> bool:
        """Whether weight file `name`, unless it is downloaded, is read by ranged requests."""
        store = self.store
        return store.remote and not self.converted and bool(store.digest(name)) and not store.here(name)

    def size(self, name: str) -> int:
        """Bytes of weight file `name`."""
        return self.files[name].size if name in self.files else self.store.sizes[name]

    def sealed(self, name: str) -> str:
        """sha256 of weight file `name`, which is here. Its tensors are read as they were hashed from now on."""
        parts = (*self.tensors.values(), *self.beside.values())
        taken = {(spec.start, spec.end) for spec in parts if spec.file == name}
        begun = {start for start, _ in taken}  # of a tensor that is cut in parts, only the parts are read
        others = {(spec.start, spec.end) for spec in self.stored if spec.file == name and spec.start not in begun}
        return self.files[name].sealed(taken | others)

    def open(self, name: str, path: Path) -> None:
        """Read weight file `name` from `path` from now on. Raises CorruptFileError if that is not possible."""
        try:
            self.files[name] = LocalFile(path, f"{self.label}/{name}")
        except OSError as error:
            raise CorruptFileError(f"{self.label}/{name} cannot be read: {error.strerror}.") from None

    def make_record(self, files: list[FileRecord]) -> None:
        """Fill `record` from the weight files' digests. Raises SourceError if a recipe demands others."""
        content = weights_sha256([file.sha256 for file in files] + ([self.base.source.sha256] if self.base else []))
        if self.reopened and content != self.wanted:
            raise CorruptFileError(
                f"{self.label} changed while it was used: {files[0].name} or another of its "
                "weight files had other bytes when it was opened before.",
                hint="Run the same command again when nothing else writes to it.",
            )
        if self.wanted and content != self.wanted:
            raise SourceError(
                f"{self.label} is not the tower the recipe was made with: its weights have sha256 {content[:12]}…, "
                f"expected {self.wanted[:12]}….",
                hint="Find the folder with those weights, or take the sha256 out of the recipe to merge this one.",
            )
        store = self.store
        self.record = SourceRecord(
            label=store.label,
            repo=store.repo,
            revision=store.revision,
            commit=store.commit,
            sha256=content,
            files=tuple(files),
            facts=self.facts,
            path=store.path,
            adapter_of=self.base.source if self.base else None,
        )

    def content(self) -> list[str]:
        """The digests of its weight files, by the Hub's own where it has them."""
        return [self.store.digest(name) or sha256_of(self.store.fetch(name)) for name in self.weights]

    @property
    def describing(self) -> Store:
        """Where its image preprocessing is stated: an adapter may leave that to its base."""
        own = self.base is None or "preprocessor_config.json" in self.store.sizes
        return self.store if own or self.base is None else self.base.store

    def close(self) -> None:
        """Close every file."""
        for file in self.files.values():
            file.close()
        self.files.clear()


def content_of(tower: Tower) -> str:
    """Digest of its weights as in SourceRecord.sha256, by the Hub's own digests where it has them."""
    return weights_sha256(tower.content() + ([content_of(tower.base)] if tower.base else []))


def with_bases(towers: Sequence[Tower]) -> list[Tower]:
    """These towers and those that adapters among them belong to, each once, a base before its adapters."""
    bases = [tower.base for tower in towers if tower.base]
    return list({id(tower): tower for tower in (*bases, *towers)}.values())


def known_base(arch: Architecture) -> str | None:
    """The CLIP model that others of this shape are fine-tuned from, None if none is known."""
    return _KNOWN_BASES.get((arch.hidden_size, arch.num_hidden_layers, arch.patch_size, arch.image_size))


def fetch_all(towers: Sequence[Tower], progress: Progress, *, stream: bool) -> None:
    """Make every tower readable, and give each its record.

    Without `stream` the weight files are downloaded into the Hub's cache, in parallel, and proven against
    the Hub's own digests. With it only what is there already, or has no sha256 (small files outside LFS), is.
    """
    towers = with_bases(towers)
    open_ones = [tower for tower in towers if tower.record is None and not tower.converted]
    remote = [(t, name) for t in open_ones if t.store.remote for name in t.weights]
    wanted = [(t, name) for t, name in remote if not (stream and t.in_ranges(name))]
    if len(wanted) < len(remote):
        progress.note(
            "Read in ranges, weights are proven by nothing but their size: the record has the digests the Hub promises."
        )
    new = {(tower.label, name) for tower, name in wanted if not tower.store.here(name)}
    stop = threading.Event()

    def fetch(item: tuple[Tower, str]) -> None:
        tower, name = item
        told = progress.advance if (tower.label, name) in new else None
        tower.open(name, tower.store.fetch(name, told, stop))
        file = tower.files[name]
        if parse_header(file.read, file.size, file.where) != {s.name: s for s in tower.stored if s.file == name}:
            raise CorruptFileError(
                f"{file.where} has another header than what the Hub sent of it before: something changes what is sent.",
                hint="Run the same command again: the file is in the cache now, and proven.",
            )

    if new:
        progress.start("Downloading", sum(t.store.sizes[n] for t, n in wanted if (t.label, n) in new), "bytes")
    try:
        in_parallel(fetch, wanted, stop)
    finally:
        if new:
            progress.finish()
    progress.step("Checking digests")
    files = [(tower, name) for tower in open_ones for name in tower.weights]
    with ThreadPoolExecutor(default_workers()) as pool:
        digests = list(pool.map(lambda file: _digest(*file), files))
    for tower in towers:
        if tower.record is None:
            own = [(name, digest) for (t, name), digest in zip(files, digests, strict=True) if t is tower]
            tower.make_record(tower.converted or [FileRecord(name, tower.size(name), d) for name, d in own])
        if isinstance(tower.store, LocalStore):
            tower.store.check()  # its config and its weights are of one moment


def _digest(tower: Tower, name: str) -> str:
    promised = tower.store.digest(name)
    if promised and name not in tower.files:
        return promised  # read in ranges, of which nothing proves it
    found = tower.sealed(name)
    if promised and found != promised:
        raise CorruptFileError(
            f"{tower.label}/{name} has sha256 {found[:12]}…, and had {promised[:12]}… when it was fetched.",
            hint="Run the same command again when nothing else writes to the cache.",
        )
    return found
