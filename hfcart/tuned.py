"""A finished fine-tuning read back: hfcart.json of a folder or a repo, taken for what it is, a stranger's file."""

from __future__ import annotations

import re
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hfcart import __version__
from hfcart.errors import VerifyError
from hfcart.merged import read_record
from hfcart.reader import strict_json
from hfcart.records import RECORD_FORMAT, FinetuneRecord, MergeRecord
from hfcart.repo_id import is_repo_id

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z_]{1,40}")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")


def is_finetune_record(data: bytes) -> bool:
    """Whether an hfcart.json says that it is a fine-tuning's (a merge's has no kind). Proves nothing else."""
    try:
        found = strict_json(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("kind") == "finetune"


def read_finetune_record(data: bytes, where: str) -> FinetuneRecord:
    """Parse and check an hfcart.json of a fine-tuning: every field's type, every digest, every file name.

    Args:
        data: the file's bytes.
        where: its name in messages.

    Raises:
        VerifyError: it is not a fine-tuning's record of a format this release reads.
    """
    refusal = VerifyError(
        f"{where} is not a record of a fine-tuning by hfcart, of format {RECORD_FORMAT}.",
        hint="Only folders and repos that hfcart made have one; a newer format needs pip install -U hfcart.",
    )
    try:
        record = TypeAdapter(FinetuneRecord).validate_python(strict_json(data))
    except (ValueError, ValidationError, RecursionError):
        raise refusal from None
    names = [*record.files, *(tensor.name for tensor in record.tensors)]
    digests = [*record.files.values(), *(tensor.sha256 for tensor in record.tensors)]
    digests += [task.card_sha256 for task in record.tasks]
    good = (
        record.kind == "finetune"
        and record.format == RECORD_FORMAT
        and len(record.sources) == 1
        and len(record.tasks) > 0
        and all(map(_PLAIN.fullmatch, names))
        and all(map(_SHA256.fullmatch, digests))
        and all(is_repo_id(task.dataset.repo) for task in record.tasks)
        and _is_recipe(record.recipe)
    )
    if not good:
        raise refusal
    return record


def _is_recipe(recipe: dict[str, Any]) -> bool:
    """Whether it has the form that a fine-tuning records: the card's command is made of it."""
    base, tasks = recipe.get("base"), recipe.get("tasks")
    name = base.get("path") if isinstance(base, dict) else base
    numbers = [value for key, value in recipe.items() if key not in ("base", "tasks", "precision")]
    return (
        isinstance(name, str)
        and isinstance(tasks, list)
        and all(isinstance(text, str) and text.isprintable() for text in (name, *tasks))
        and recipe.get("precision") in ("float32", "bfloat16")
        and all(map(_NAME.fullmatch, recipe))
        and all(type(value) in (int, float) for value in numbers)
    )


def read_any(data: bytes, where: str) -> MergeRecord | FinetuneRecord:
    """The record of whatever hfcart made: a merge or a fine-tuning. Raises VerifyError if it is neither."""
    return read_finetune_record(data, where) if is_finetune_record(data) else read_record(data, where)


def commit_message(record: MergeRecord | FinetuneRecord) -> str:
    """The default message of a publishing commit."""
    if isinstance(record, MergeRecord):
        return f"Merge {len(record.sources)} CLIP vision towers with {record.method.name} (hfcart {__version__})"
    names = ", ".join(task.task for task in record.tasks[:3]) + (", …" if len(record.tasks) > 3 else "")
    return f"Fine-tune {record.sources[0].label} on {names} (hfcart {__version__})"
