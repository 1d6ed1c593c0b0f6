"""How records are written: one number for the format, and one way to put a record into JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RECORD_FORMAT = 1


def canonical_json(record: DataclassInstance, leave: Collection[str] = ()) -> str:
    """Canonical JSON: same record, same text. `leave`: fields that are left out."""
    fields = {name: value for name, value in dataclasses.asdict(record).items() if name not in leave}
    return json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
