"""A finished merge read back: hfcart.json of a folder or a repo, taken for what it is, a stranger's file."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hfcart.errors import OutputError, UsageError, VerifyError
from hfcart.methods import METHODS
from hfcart.reader import sha256_of, strict_json
from hfcart.recipe import make
from hfcart.records import RECORD_FORMAT, FinetuneRecord, MergeRecord, SourceRecord
from hfcart.repo_id import is_repo_id

RECORD = "hfcart.json"
RECIPE = "recipe.yaml"
MAX_RECORD = 50_000_000  # bytes
# What Plan.recorded_recipe writes, besides the method's own parameters.
_RECORDED = {
    *("sources", "method", "base", "qkv", "matrices", "dtype", "max_shard_size"),
    *("with_projection", "full_clip", "allow_distant", "lines", "coefficients"),
}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")


def read_record(data: bytes, where: str) -> MergeRecord:
    """Parse and check an hfcart.json: every field's type, every digest, every file name, and that its recipe runs.

    Args:
        data: the file's bytes.
        where: its name in messages.

    Raises:
        VerifyError: it is not a merge record of a format this release reads.
    """
    hint = "Only folders and repos that hfcart made have one."
    try:
        found = strict_json(data)
        if isinstance(found, dict) and isinstance(number := found.get("format"), int) and number > RECORD_FORMAT:
            raise VerifyError(
                f"{where} has format {number}, this hfcart reads format {RECORD_FORMAT}.",
                hint="Update hfcart: pip install -U hfcart",
            )
        record = TypeAdapter(MergeRecord).validate_python(found)
    except (ValueError, ValidationError, RecursionError):
        raise VerifyError(f"{where} is not a merge record of hfcart.", hint=hint) from None
    names = [*record.files, *(tensor.name for tensor in record.tensors)]
    digests = [*record.files.values(), *(tensor.sha256 for tensor in record.tensors)]
    if (
        record.format != RECORD_FORMAT
        or not all(map(_PLAIN.fullmatch, names))
        or not all(map(_SHA256.fullmatch, digests))
    ):
        raise VerifyError(f"{where} is not a merge record of hfcart.", hint=hint)
    try:
        _check_recipe(record.recipe, where)
        make(record.recipe, where)
    except UsageError as error:
        raise VerifyError(f"{where} holds a recipe that cannot be run. {error.message}", hint=hint) from None
    return record


def _check_recipe(recipe: dict[str, Any], where: str) -> None:
    """Refuse what no merge records: a stranger's recipe must not choose paths of ours, nor publish in our name."""
    method = METHODS.get(str(recipe.get("method")))
    known = _RECORDED | {p.name for p in method.parameters} if method else _RECORDED
    if method and method.statistics:
        known |= {"tasks"}
        if not all(isinstance(task, dict) for task in recipe.get("tasks") or [None]):
            raise UsageError(f"{where}: it does not say which task each source was fine-tuned on.")
    if unknown := sorted(set(recipe) - known):
        raise UsageError(f"{where}: no merge records {', '.join(map(repr, unknown))}.")
    sources = recipe.get("sources")
    for source in [*(sources if isinstance(sources, list | tuple) else []), *filter(None, [recipe.get("base")])]:
        if isinstance(source, str):
            repo, _, commit = source.partition("@")
            good = is_repo_id(repo, namespace=True) and _COMMIT.fullmatch(commit) is not None
        else:
            name = source.get("path") if isinstance(source, dict) else None
            good = isinstance(name, str) and "/" not in name and "\\" not in name and name not in ("", ".", "..", "~")
        if not good:
            raise UsageError(f"{where}: the source {str(source)[:80]!r} is neither a pinned repo nor a folder's name.")


def pinned(source: SourceRecord) -> str | None:
    """What opens a recorded source again, `user/name@commit`; None for a local one, or one of no such form."""
    known = is_repo_id(source.repo or "", namespace=True) and _COMMIT.fullmatch(source.commit or "")
    return f"{source.repo}@{source.commit}" if known else None


def check_files(record: MergeRecord | FinetuneRecord, folder: Path) -> None:
    """Prove that every recorded file is there and unchanged. Raises OutputError naming the first that is not."""
    for name, digest in sorted(record.files.items()):
        path = folder / name
        if not path.is_file():
            raise OutputError(f"{folder} lacks {name}, which its {RECORD} lists.", hint="Make it again.")
        if sha256_of(path) != digest:
            again = f"hfcart merge --recipe {shlex.quote(str(folder / RECIPE))} --out NEW"
            raise OutputError(
                f"{folder}/{name} was changed after it was made: its sha256 is not the one in {RECORD}.",
                hint=f"Make it again: {again if RECIPE in record.files else f'{folder}/README.md has the command.'}",
            )
