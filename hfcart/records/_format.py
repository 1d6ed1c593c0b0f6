"""How records are written: one number for the format, and one way to put a record into JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RECORD_FORMAT = 1
_ADDED = (
    *("adapter", "adapter_of", "adapters", "fallbacks"),
    *("objective", "first_share", "last_share", "own", "first_agreement", "last_agreement"),
)


def canonical_json(record: DataclassInstance, leave: Collection[str] = ()) -> str:
    """Canonical JSON: same record, same text. `leave`: fields that are left out.

    What came later is left out where there is none of it: such records are as they were before.
    """

    def told(pairs: list[tuple[str, object]]) -> dict[str, object]:
        return {name: value for name, value in pairs if value not in (None, (), []) or name not in _ADDED}

    whole = dataclasses.asdict(record, dict_factory=told)
    fields = {name: value for name, value in whole.items() if name not in leave}
    return json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
