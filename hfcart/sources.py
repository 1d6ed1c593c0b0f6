"""Sources: from what the user typed to towers that are pinned, proven alike, and ready to be read.

pin (one commit each) -> config and headers -> check (nothing of the weights fetched so far) -> fetch or
stream -> digests -> canonical order.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from hfcart.architecture import differences, expected_shapes, read_architecture
from hfcart.errors import CorruptFileError, MismatchError, NotATowerError, SourceError, UsageError
from hfcart.facts import card_facts
from hfcart.names import PROJECTION, canonical
from hfcart.progress import Progress
from hfcart.reader import (
    MAX_INDEX,
    LocalFile,
    ReadRange,
    TensorSpec,
    parse_header,
    parse_index,
    sha256_of,
    strict_json,
)
from hfcart.recipe import LocalSource
from hfcart.records import Architecture, CardFacts, FileRecord, SourceRecord
from hfcart.repo_id import is_repo_id
from hfcart.stores import SMALL, LocalStore, Store
from hfcart.writer import INDEX, SINGLE

Item = TypeVar("Item")
Result = TypeVar("Result")
FLOATS = ("F32", "F16", "BF16")
_HEAD = 1 << 17  # bytes of a remote file read at once: the header of a ViT-L/14 fits
# Towers that others are fine-tuned from, by (hidden_size, num_hidden_layers, patch_size, image_size).
_KNOWN_BASES = {
    (768, 12, 32, 224): "openai/clip-vit-base-patch32",
    (768, 12, 16, 224): "openai/clip-vit-base-patch16",
    (1024, 24, 14, 224): "openai/clip-vit-large-patch14",
}


@dataclass
class Tower:
    """One source while it is being worked with.

    Attributes:
        store: where its files are.
        architecture: what its config.json says.
        facts: what its card says.
        weights: the weight files chosen, in name order.
        wanted: sha256 that a recorded recipe demands of a local source.
        tensors: canonical name -> where it is stored; filled by `read_headers`.
        index: stored name -> shard, if there is an index.
        record: filled by `fetch_all`.
        stored: everything its headers list, by the names in the files.
        files: the weight files that are on this machine, open.
    """

    store: Store
    architecture: Architecture
    facts: CardFacts
    weights: list[str]
    wanted: str | None = None
    tensors: dict[str, TensorSpec] = field(default_factory=dict)
    index: dict[str, str] | None = None
    record: SourceRecord | None = None
    stored: list[TensorSpec] = field(default_factory=list)
    files: dict[str, LocalFile] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`user/name`, or a local folder's base name."""
        return self.store.label

    @property
    def pickled(self) -> bool:
        """Whether its weights only exist as a pickle."""
        return any(not name.endswith(".safetensors") for name in self.weights)

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Fill `buffer` with the stored bytes of a tensor: from the local file, or by a ranged request."""
        spec = self.tensors[name]
        file = self.files.get(spec.file)
        if file is not None:
            file.read_into(buffer, spec.start)
        else:
            buffer[:] = self.store.read(spec.file, spec.start, spec.end)

    def open(self, name: str, path: Path) -> None:
        """Read weight file `name` from `path` from now on."""
        self.files[name] = LocalFile(path, f"{self.label}/{name}")

    def close(self) -> None:
        """Close every file."""
        for file in self.files.values():
            file.close()
        self.files.clear()


def pin(ref: str | LocalSource, progress: Progress) -> Tower:
    """Resolve one source: a Hub repo to a commit, once; a folder to its files. Reads its config and card."""
    text = ref.path if isinstance(ref, LocalSource) else ref
    store = open_store(text, progress, local=isinstance(ref, LocalSource))
    config = store.small("config.json")
    if config is None:
        raise NotATowerError(
            f"{store.label} holds no config.json: it is not a CLIP tower.",
            hint="Give repos or folders that hold a CLIPVisionModel or a CLIPModel saved by transformers.",
        )
    try:
        architecture = read_architecture(strict_json(config), store.label)
    except ValueError as error:
        raise CorruptFileError(f"{store.label}/config.json is not valid JSON: {error}.") from None
    readme = None
    if store.sizes.get("README.md", 0) <= SMALL:
        readme = store.small("README.md")
    else:
        progress.warn(f"{store.label}/README.md is too large to be a card: its licence counts as not stated.")
    facts = card_facts(readme.decode("utf-8", "replace") if readme else None)
    wanted = ref.sha256 if isinstance(ref, LocalSource) else None
    weights, index = _choose_weights(store)
    return Tower(store, architecture, facts, weights, wanted, index=index)


def open_store(text: str, progress: Progress, *, local: bool = False) -> Store:
    """The folder of that path if there is one (or must be), else the Hub repo of that name, resolved to a commit.

    Raises:
        SourceError: no such folder, no such repo, or one that cannot be seen.
    """
    path = _path(text)
    repo = text.partition("@")[0]
    if path is not None and path.is_dir():
        if is_repo_id(text, namespace=True):
            progress.note(f"{text} is a folder here: that is what is merged, not the Hub repo of that name.")
        return LocalStore(path)
    if path is not None and path.is_file():
        raise SourceError(
            f"{text} is a file.", hint=f"Give the folder that holds it and its config.json: {path.parent}"
        )
    if text.startswith(("https://", "http://")):
        raise SourceError(f"{text} is an address.", hint="Write user/name, or user/name@revision.")
    if local or not is_repo_id(repo, namespace=True):
        raise SourceError(
            f"There is no folder {text[:200]}, and a Hub repo is written user/name or user/name@revision.",
            hint="Run the command in the folder that holds it, or give its path.",
        )
    from hfcart import hub  # the Hub's client takes time and memory that a merge of local folders need not spend

    hub.set_notifier(progress.note)
    return hub.HubStore(hub.resolve(text))


def _path(text: str) -> Path | None:
    """The path that a source may be; None for a text no path can be (too long, no such home folder, a NUL in it)."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError):
        return None
    return path


def _choose_weights(store: Store) -> tuple[list[str], dict[str, str] | None]:
    """What from_pretrained would load: one safetensors file, else shards by their index, else a pickle."""
    if SINGLE in store.sizes:
        return [SINGLE], None
    if INDEX in store.sizes:
        index = parse_index(store.small(INDEX, MAX_INDEX) or b"", list(store.sizes), f"{store.label}/{INDEX}")
        return sorted(set(index.values())), index
    if "pytorch_model.bin" in store.sizes:
        return ["pytorch_model.bin"], None
    pickles = sorted(name for name in store.sizes if name.endswith((".bin", ".pt", ".pth")))
    shards = [name for name in pickles if re.fullmatch(r"pytorch_model-\d+-of-\d+\.bin", name)]
    if shards or len(pickles) == 1:
        return shards or pickles, None
    raise NotATowerError(
        f"{store.label} holds no weights: expected {SINGLE}, {INDEX} or pytorch_model.bin at its top level, "
        f"found {', '.join(sorted(store.sizes)[:8]) or 'nothing'}.",
        hint="Name a revision that has them: user/name@revision.",
    )


def pin_all(refs: Sequence[str | LocalSource], progress: Progress) -> list[Tower]:
    """Pin every source, several at a time; the first failure in the order given is the one raised."""
    progress.step("Resolving sources")
    return in_parallel(lambda ref: pin(ref, progress), refs)


def in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], stop: threading.Event | None = None
) -> list[Result]:
    """Results of `work` on each item, in order, eight at a time. The first failure, or Ctrl-C, starts nothing more.

    Args:
        work: called in worker threads.
        items: what to call it on.
        stop: set at the first failure, for work that looks at it.
    """
    pool = ThreadPoolExecutor(8)
    jobs = [pool.submit(work, item) for item in items]
    try:
        wait(jobs, return_when=FIRST_EXCEPTION)
        for job in jobs:  # the first in order among those that failed so far
            if job.done() and (error := job.exception()) is not None:
                raise error
        return [job.result() for job in jobs]
    except BaseException:
        if stop is not None:
            stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def infer_base(towers: Sequence[Tower]) -> str:
    """The base model that the sources' cards agree on, else the one that has the config's shape.

    Raises:
        UsageError: neither says.
    """
    stated = {tower.facts.base_models for tower in towers if tower.facts.base_models}
    if len(stated) == 1 and len(only := stated.pop()) == 1:
        return only[0]
    arch = towers[0].architecture
    shape = (arch.hidden_size, arch.num_hidden_layers, arch.patch_size, arch.image_size)
    if shape not in _KNOWN_BASES:
        raise UsageError(
            "This method needs the base model, and neither the sources' cards nor their shape tell which.",
            hint="Give it: --base user/name",
        )
    return _KNOWN_BASES[shape]


def read_headers(towers: Sequence[Tower], converted: Path, progress: Progress) -> None:
    """Read every header: by ranged requests on the Hub, not a byte of weights among them.

    A pickle has no header: it is fetched and converted under `converted` first, and one sentence says so.
    """
    progress.step("Reading headers")

    def one(tower: Tower) -> None:
        if tower.pickled:
            _convert(tower, converted, progress)
        for name in tower.weights:
            _add_header(tower, name)
        _check_index(tower)

    in_parallel(one, towers)


def _add_header(tower: Tower, name: str) -> None:
    where = f"{tower.label}/{name}"
    if not tower.store.remote and name not in tower.files:
        tower.open(name, tower.store.fetch(name))
    file = tower.files.get(name)
    if file is not None:
        specs = parse_header(file.read, file.size, where)
    else:
        specs = parse_header(_remote(tower.store, name), tower.store.sizes[name], where)
    tower.stored += specs.values()
    for spec in specs.values():
        own = canonical(spec.name)
        if own is None:
            continue
        if own in tower.tensors:
            raise CorruptFileError(f"{where} holds {own} twice, as {tower.tensors[own].name} and as {spec.name}.")
        tower.tensors[own] = spec


def _check_index(tower: Tower) -> None:
    """An index must say of every tensor what the headers say: from_pretrained would follow it."""
    if tower.index is None:
        return
    held = {spec.name: spec.file for spec in tower.stored}
    odd = sorted(name for name in held.keys() | tower.index.keys() if held.get(name) != tower.index.get(name))
    if odd:
        said, found = tower.index.get(odd[0], "nowhere"), held.get(odd[0], "nowhere")
        raise CorruptFileError(
            f"{tower.label}/{INDEX} does not fit its shards: it puts {odd[0][:120]} {said}, its headers {found}"
            + (f" ({len(odd)} such tensors)." if len(odd) > 1 else "."),
            hint="Ask its owner to upload the model again.",
        )


def _remote(store: Store, name: str) -> ReadRange:
    """Ranged reads of a remote file whose head is asked for once: length and header in one request."""
    size = store.sizes[name]
    head = store.read(name, 0, min(_HEAD, size)) if size else b""
    return lambda start, end: head[start:end] if end <= len(head) else store.read(name, start, end)


def _convert(tower: Tower, converted: Path, progress: Progress) -> None:
    from hfcart.pickles import convert  # it imports torch, which no other source needs here

    records, files = [], []
    for name in tower.weights:
        path = tower.store.fetch(name)
        digest = sha256_of(path)
        records.append(FileRecord(name, path.stat().st_size, digest))
        target = converted / f"{digest}.safetensors"
        if not target.exists():
            convert(path, target, f"{tower.label}/{name}")
        tower.open(target.name, target)
        files.append(target.name)
    progress.note(f"{tower.label} has no safetensors: {', '.join(tower.weights)} was loaded (data only) and converted.")
    tower.weights = files
    tower.record = _record(tower, records)


def check_alike(towers: Sequence[Tower], base: Tower | None, *, projection: bool) -> Architecture:
    """Prove from configs and headers that all towers are one architecture. Returns it.

    The reference is the config that most sources share (the first of them in a draw).

    Raises:
        MismatchError: with a row for every difference, by repo and name.
    """
    reference = Counter(tower.architecture for tower in towers).most_common(1)[0][0]
    expected = expected_shapes(reference, projection=projection)
    rows: list[tuple[str, str, str, str]] = []
    for tower in (*towers, *([base] if base else [])):
        label = tower.label + (" (base)" if tower is base else "")
        rows += [(label, *row) for row in differences(tower.architecture, reference, projection=projection)]
        rows += [(label, *row) for row in _tensor_differences(tower, expected, projection=projection)]
        if not projection:
            tower.tensors.pop(PROJECTION, None)
    if rows:
        labels = sorted({row[0] for row in rows})
        raise MismatchError(
            f"{len(labels)} of {len(towers) + (base is not None)} towers differ from the rest in architecture: "
            f"{', '.join(labels)}. Nothing was downloaded.",
            rows,
            hint="Leave out the towers that differ, or name a revision that fits: user/name@revision.",
        )
    return reference


def _tensor_differences(
    tower: Tower, expected: dict[str, tuple[int, ...]], *, projection: bool
) -> list[tuple[str, str, str]]:
    rows: dict[tuple[str, str, str], list[int]] = {}

    def add(name: str, want: str, found: str) -> None:
        block = re.fullmatch(r"(vision_model\.encoder\.layers\.)(\d{1,4})(\..+)", name)
        key = (f"{block[1]}{{}}{block[3]}" if block else name, want, found)
        rows.setdefault(key, []).append(int(block[2]) if block else -1)

    for name, shape in expected.items():
        spec = tower.tensors.get(name)
        want = f"float {list(shape)}"
        if spec is None:
            add(name, want, "missing")
        elif spec.dtype not in FLOATS:
            add(name, "F32, F16 or BF16", spec.dtype)
        elif spec.shape != shape:
            add(name, want, f"{spec.dtype} {list(spec.shape)}")
    for name, spec in tower.tensors.items():
        if name not in expected and (projection or name != PROJECTION):
            add(name[:120], "no such tensor", f"{spec.dtype} {list(spec.shape)}")
    return [(_with_layers(name, sorted(layers)), want, found) for (name, want, found), layers in rows.items()]


def _with_layers(name: str, layers: list[int]) -> str:
    """`...layers.{0-3,7}.mlp...` for a difference that repeats in several blocks."""
    if layers[0] < 0:
        return name
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return name.replace("{}", text if len(layers) == 1 else "{" + text + "}")


def fetch_all(towers: Sequence[Tower], progress: Progress, *, stream: bool) -> None:
    """Make every tower readable, and give each its record.

    Without `stream` the weight files are downloaded into the Hub's cache, in parallel, and proven against
    the Hub's own sha256. With it only what has no such digest (small files outside LFS) is.
    """
    wanted = [
        (tower, name)
        for tower in towers
        if tower.store.remote and tower.record is None
        for name in tower.weights
        if not (stream and tower.store.digest(name))
    ]
    new = {(tower.label, name) for tower, name in wanted if not tower.store.here(name)}
    stop = threading.Event()

    def fetch(item: tuple[Tower, str]) -> None:
        tower, name = item
        told = progress.advance if (tower.label, name) in new else None
        tower.open(name, tower.store.fetch(name, told, stop))

    if new:
        progress.start("Downloading", sum(t.store.sizes[n] for t, n in wanted if (t.label, n) in new), "bytes")
    try:
        in_parallel(fetch, wanted, stop)
    finally:
        if new:
            progress.finish()
    progress.step("Checking digests")
    files = [(tower, name) for tower in towers if tower.record is None for name in tower.weights]
    with ThreadPoolExecutor(2) as pool:
        digests = list(pool.map(lambda file: _digest(*file), files))
    for tower in towers:
        if tower.record is None:
            own = [(name, digest) for (t, name), digest in zip(files, digests, strict=True) if t is tower]
            tower.record = _record(tower, [FileRecord(name, tower.store.sizes[name], d) for name, d in own])


def _digest(tower: Tower, name: str) -> str:
    promised = tower.store.digest(name)
    if promised and name not in tower.files:
        return promised
    found = _hash(tower.files[name])
    if promised and found != promised:
        raise CorruptFileError(
            f"{tower.label}/{name} has sha256 {found[:12]}…, the Hub says {promised[:12]}…: the download is broken.",
            hint=f"Remove it from the cache and run again: hf cache rm model/{tower.label}",
        )
    return found


def _hash(file: LocalFile) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    for start in range(0, file.size, len(buffer)):
        part = buffer[: min(len(buffer), file.size - start)]
        file.read_into(part, start)
        digest.update(part)
    return digest.hexdigest()


def _record(tower: Tower, files: list[FileRecord]) -> SourceRecord:
    joined = "".join(file.sha256 for file in files)
    content = joined if len(files) == 1 else hashlib.sha256(joined.encode()).hexdigest()
    if tower.wanted and content != tower.wanted:
        raise SourceError(
            f"{tower.label} is not the tower the recipe was made with: its weights have sha256 {content[:12]}…, "
            f"expected {tower.wanted[:12]}….",
            hint="Find the folder with those weights, or take the sha256 out of the recipe to merge this one.",
        )
    store = tower.store
    return SourceRecord(
        label=store.label,
        repo=store.repo,
        revision=store.revision,
        commit=store.commit,
        sha256=content,
        files=tuple(files),
        facts=tower.facts,
    )
