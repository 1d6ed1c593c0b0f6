"""`hfcart verify`: repeat a merge from its record and compare.

The pinning and the determinism are for this: anyone can pull the same commits, merge them again, and see
the same bytes, or how far they are off and what may explain it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from hfcart.commands.merge_again import merge_again
from hfcart.errors import SourceError, VerifyError
from hfcart.formats.safetensors_file import LocalFile, TensorSpec, parse_header, sha256_of, strict_json
from hfcart.progress import Progress
from hfcart.quoting import plural, quoted
from hfcart.recipes.finished_finetuning import is_finetune_record
from hfcart.recipes.finished_merge import read_record
from hfcart.recipes.merge_recipe import make
from hfcart.records import MergeRecord
from hfcart.records.adapters import CONFIG, base_of, is_adapter_file, without_base
from hfcart.records.adapters import FOLDER as ADAPTERS
from hfcart.records.file_names import MAX_RECORD, RECORD
from hfcart.results.files import RESULTS
from hfcart.sources.places import open_store
from hfcart.sources.stores import LocalStore, Store
from hfcart.system.device import choose_device
from hfcart.system.environment import current_environment

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# What from_pretrained might load, and run or follow.
_LOADED = (".safetensors", ".bin", ".pt", ".pth", ".json", ".h5", ".msgpack", ".py", ".pkl")
_HINT = "The weights are not what the record says they are: do not trust them."


@dataclass(frozen=True)
class Verdict:
    """Whether the repeated merge has the recorded bytes, and if not, how far apart they are.

    Attributes:
        identical: whether every byte of the weights is the same.
        sentence: the finding, in words.
        differences: tensor -> (largest absolute difference, ‖difference‖ / ‖recorded‖).
    """

    identical: bool
    sentence: str
    differences: dict[str, tuple[float, float]]

    def rows(self) -> list[tuple[str, str, str]]:
        """The differences as table rows, the largest first."""
        ordered = sorted(self.differences.items(), key=lambda item: -item[1][1])
        return [(name, f"{largest:.3g}", f"{relative:.3g}") for name, (largest, relative) in ordered]


def run_verify(target: str, *, device: str, stream: bool, progress: Progress) -> Verdict:
    """Check a merge's files against its record, repeat the merge, and compare tensor by tensor.

    Args:
        target: a folder, or a Hub repo (`user/name`, `user/name@revision`).
        device: where to compute; "auto" computes on the CPU what was merged on one, whose bytes no other device has.
        stream: read the sources by ranged requests.
        progress: told of every stage.

    Raises:
        VerifyError: no record, or files that are not what it says.
        SourceError: a source is gone or has changed: the sentence says which.
        OutputError: no room for the repeated merge in the folder for temporary files ($TMPDIR).
    """
    store = open_store(target, progress)
    data = store.small(RECORD, MAX_RECORD)
    if data is None:
        raise VerifyError(f"{store.label} has no {RECORD}.", hint="Only folders and repos that hfcart made have one.")
    if is_finetune_record(data):
        raise VerifyError(
            f"{store.label} is a fine-tuned tower: verify repeats merges, not trainings.",
            hint="Its card has the command that trains it again.",
        )
    where = f"{store.label}/{RECORD}"
    record = read_record(data, where)
    device = "cpu" if device == "auto" and record.environment.device == "cpu" else device
    recipe = make({**record.recipe, "device": device, "stream": stream}, where)
    choose_device(device)  # what the user asked for is refused here, what is refused later the record asked for
    progress.step(f"Checking the files of {store.label} against its record")
    _check_files(store, record)
    with tempfile.TemporaryDirectory(prefix="hfcart-verify-") as folder:
        again = Path(folder) / "again"
        try:
            merge_again(recipe.model_copy(update={"out": str(again)}), where, progress)
        except SourceError as error:
            error.message = f"The merge cannot be repeated. {error.message}"
            raise
        return _compare(store, again, record, device)


def _check_files(store: Store, record: MergeRecord) -> None:
    there = {**store.sizes, **store.below(ADAPTERS)}
    for name, digest in sorted(record.files.items()):
        if name not in there:
            raise VerifyError(f"{store.label} lacks {name}, which its record lists.", hint=_HINT)
        found = _digest(store, name)
        if found != digest:
            raise VerifyError(
                f"{store.label}/{name} has sha256 {found[:12]}…, its record says {digest[:12]}….", hint=_HINT
            )
    known = {*record.files, RECORD, RESULTS}  # results may come after the merge; nothing loads them
    extra = [name for name in there if name.endswith(_LOADED) and name not in known]
    if extra:
        raise VerifyError(f"{store.label} holds {extra[0]}, which its record does not list.", hint=_HINT)


def _digest(store: Store, name: str) -> str:
    """sha256 of a file; of an adapter's config whatever base it names, which is the repo it was published in."""
    place, file = _at(store, name)
    if is_adapter_file(name) and file == CONFIG:
        config = place.small(file) or b""
        _check_base(store, name, config)
        return hashlib.sha256(without_base(config)).hexdigest()
    return place.digest(file) or sha256_of(place.fetch(file))


def _check_base(store: Store, name: str, config: bytes) -> None:
    """Refuse an adapter in a repo that names another one as its base: peft would add it to what nobody verified."""
    base, own = base_of(config), {name.casefold() for name in (store.repo, store.name) if name}
    if own and base is not None and base.casefold() not in own:
        raise VerifyError(
            f"{store.label}/{name} names {quoted(base, 100)} as the base of the adapter, expected {store.repo}.",
            hint="Load it with the tower it lies beside, or ask the repo's owner to publish the merge again.",
        )


def _at(store: Store, path: str) -> tuple[Store, str]:
    """The folder that a file lies in, and its name there."""
    folder, _, file = path.rpartition("/")
    return (store.within(folder) if folder else store), file


def _compare(store: Store, again: Path, record: MergeRecord, device: str) -> Verdict:
    """Compare what is published, not what its record says of it: the record is whose word is in question."""
    repeated = read_record((again / RECORD).read_bytes(), RECORD)
    theirs, ours = _tensors(store), _tensors(LocalStore(again))
    if {n: (s.dtype, s.shape) for n, s in theirs.items()} != {n: (s.dtype, s.shape) for n, s in ours.items()}:
        raise VerifyError(f"{store.label} does not hold the tensors that its recipe makes.", hint=_HINT)
    differences = {}
    for name in sorted(ours):
        recorded, own = _read(store, theirs[name]), _read(LocalStore(again), ours[name])
        if recorded != own:
            differences[name] = _distance(recorded, own, ours[name].dtype)
    changed = _changes(record, device)
    why = (
        f"made with {changed}: last bits may differ there"
        if changed
        else "made with the same versions on the same kind of machine, so the record or the weights may be wrong"
    )
    if differences:
        largest = max(relative for _, relative in differences.values())
        sentence = (
            f"Not identical: {len(differences)} of {plural(len(ours), 'tensor')} differ, at most by {largest:.2g} of "
            f"their norm; the record was {why}."
        )
        return Verdict(False, sentence, differences)
    names = sorted(record.files.keys() | repeated.files.keys())
    others = [name for name in names if record.files.get(name) != repeated.files.get(name)]
    others += [f"{part} in {RECORD}" for part in _retold(store.small(RECORD, MAX_RECORD) or b"{}", repeated)]
    if others:
        sentence = f"Not identical: the weights are the same, but {', '.join(others)} should read otherwise."
        return Verdict(False, sentence, {})
    return Verdict(
        True, f"Identical: all {plural(len(ours), 'tensor')} of {store.label} came out with the same bytes.", {}
    )


def _retold(recorded: bytes, repeated: MergeRecord) -> list[str]:
    """The parts of a record that the repeated merge does not confirm; where it was made may differ.

    How coefficients were learned, or a parameter or settings chosen, is not repeated: the recipe has them.
    """
    # The file itself, and not what was read of it: a method's own words are read from our registry.
    then, now = strict_json(recorded), json.loads(repeated.to_json())
    for each in (then, now):
        towers = [*each["sources"], *([each["base"]] if each["base"] else [])]
        for source in (*towers, *(tower["adapter_of"] for tower in towers if tower.get("adapter_of"))):
            source["revision"] = None  # what was asked for; the recipe asks for the commit it led to
    left_out = ("environment", "files", "adaptation", "selection", "swept")
    return [part for part in now if part not in left_out and then.get(part, now[part]) != now[part]]


def _changes(record: MergeRecord, device: str) -> str:
    then, now = dataclasses.asdict(record.environment), dataclasses.asdict(current_environment(choose_device(device)))
    return ", ".join(f"{key} {then[key]} (here {now[key]})" for key in now if then[key] != now[key])


def _tensors(store: Store) -> dict[str, TensorSpec]:
    """Every tensor of a merge by its name, those of an adapter behind its folder; `file` of each is the path."""
    out: dict[str, TensorSpec] = {}
    for path in sorted([*store.sizes, *store.below(ADAPTERS)]):
        if path.endswith(".safetensors"):
            place, name = _at(store, path)
            file = LocalFile(place.fetch(name), f"{store.label}/{path}")
            try:
                found = parse_header(file.read, file.size, f"{store.label}/{path}")
            finally:
                file.close()
            before = path.removesuffix(name)
            out |= {before + tensor: dataclasses.replace(spec, file=path) for tensor, spec in found.items()}
    return out


def _read(store: Store, spec: TensorSpec) -> bytes:
    place, name = _at(store, spec.file)
    file = LocalFile(place.fetch(name), f"{store.label}/{spec.file}")
    try:
        return file.read(spec.start, spec.end)
    finally:
        file.close()


def _distance(recorded: bytes, repeated: bytes, dtype: str) -> tuple[float, float]:
    one, other = (torch.frombuffer(bytearray(b), dtype=_DTYPES[dtype]).double() for b in (recorded, repeated))
    norm = float(torch.linalg.vector_norm(one))
    difference = one - other
    return float(difference.abs().max()), float(torch.linalg.vector_norm(difference)) / (norm or 1.0)
