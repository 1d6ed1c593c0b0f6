"""How records are written: one number for the format, and one way to put a record into JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RECORD_FORMAT = 1


def canonical_json(record: DataclassInstance) -> str:
    """Canonical JSON: same record, same text."""
    return json.dumps(dataclasses.asdict(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
