"""A finished merge read back: hfcart.json of a folder or a repo, taken for what it is, a stranger's file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hfcart import __version__
from hfcart.errors import OutputError, UsageError, VerifyError
from hfcart.reader import sha256_of, strict_json
from hfcart.recipe import Recipe, make
from hfcart.records import RECORD_FORMAT, Environment

RECORD = "hfcart.json"
RECIPE = "recipe.yaml"
MAX_RECORD = 50_000_000  # bytes


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="ignore")
    name: str = Field(max_length=200)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Method(BaseModel):
    model_config = ConfigDict(extra="ignore")
    name: str = Field(max_length=60)


class ReadRecord(BaseModel):
    """What verifying and publishing need of a MergeRecord; every field checked.

    Attributes:
        recipe_fields: the recorded recipe, not validated yet.
        method_record: the method's name.
        tensors: name and digest of each.
        files: name -> sha256.
        environment: where it was made.
    """

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    format: int
    recipe_fields: dict[str, Any] = Field(alias="recipe")
    method_record: _Method = Field(alias="method")
    tensors: list[_Tensor]
    files: dict[str, str]
    environment: Environment

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.method_record.name

    @property
    def recipe(self) -> Recipe:
        """The recorded recipe, validated. Raises UsageError."""
        return make(self.recipe_fields, RECORD)

    @property
    def digests(self) -> dict[str, str]:
        """Tensor name -> sha256 of its bytes."""
        return {tensor.name: tensor.sha256 for tensor in self.tensors}

    def check_files(self, folder: Path) -> None:
        """Prove that every recorded file is there and unchanged. Raises OutputError naming the first that is not."""
        for name, digest in sorted(self.files.items()):
            path = folder / name
            if not path.is_file():
                raise OutputError(f"{folder} lacks {name}, which its {RECORD} lists.", hint="Merge it again.")
            if sha256_of(path) != digest:
                raise OutputError(
                    f"{folder}/{name} was changed after the merge: its sha256 is not the one in {RECORD}.",
                    hint=f"Merge again with: hfcart merge --recipe {folder}/{RECIPE} --out NEW",
                )


def read_record(data: bytes, where: str) -> ReadRecord:
    """Parse and check an hfcart.json.

    Raises:
        VerifyError: it is not a merge record of a format this release reads.
    """
    hint = "Only folders and repos that hfcart made have one."
    try:
        record = ReadRecord.model_validate(strict_json(data))
    except (ValueError, ValidationError):
        raise VerifyError(f"{where} is not a merge record of hfcart.", hint=hint) from None
    if record.format != RECORD_FORMAT:
        raise VerifyError(
            f"{where} has format {record.format}, this hfcart reads format {RECORD_FORMAT}.",
            hint="Update hfcart: pip install -U hfcart",
        )
    if bad := [n for n, d in record.files.items() if not _plain(n) or not re.fullmatch(r"[0-9a-f]{64}", d)]:
        raise VerifyError(f"{where} names the file {bad[0][:80]!r}, which no merge writes.")
    try:
        _ = record.recipe
    except UsageError as error:
        raise VerifyError(f"{where} holds a recipe that cannot be run. {error.message}", hint=hint) from None
    return record


def _plain(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}", name) is not None


def commit_message(method: str, sources: int) -> str:
    """The default message of a publishing commit."""
    return f"Merge {sources} CLIP vision towers with {method} (hfcart {__version__})"
