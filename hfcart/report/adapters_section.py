"""The card's section on the adapters beside a tower: how they are used, and what each weighs. Pure."""

from __future__ import annotations

import math
from typing import Any

from hfcart.clip.tensor_names import is_matrix
from hfcart.formats.markdown import code
from hfcart.records import MergeRecord
from hfcart.report.template import percent

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def adapters_section(record: MergeRecord) -> dict[str, Any] | None:
    """What the template needs, every text of a stranger's made safe; None for a tower without adapters."""
    if not record.adapters:
        return None
    tower = _BYTES.get(record.dtype, 4) * sum(math.prod(tensor.shape) for tensor in record.tensors)
    full = max(min(tensor.shape) for tensor in record.tensors if is_matrix(tensor.name))
    together = tower + sum(each.size for each in record.adapters)
    return {
        "names": [each.name for each in record.adapters],
        "rows": [
            {
                "name": code(each.name),
                "number": number + 1,
                "rank": f"{each.rank}\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}{full}",
                "energy": f"{percent(each.energy)}%",
                "size": _size(each.size),
                "share": f"{percent(each.size / tower)}%",
            }
            for number, each in enumerate(record.adapters)
        ],
        "fallbacks": [(code(each.name), [*map(code, each.fallbacks)]) for each in record.adapters if each.fallbacks],
        "tower": _size(tower),
        "together": _size(together),
        "instead": _size(tower * len(record.adapters)),
        "all": record.recipe.get("adapters_carry", "all") == "all",
        "fused": record.recipe.get("qkv") == "fused",
        "flat": record.model_class == "CLIPVisionModel",
    }


def _size(count: float) -> str:
    """Bytes for people: 49.8 MB, or kB where it is less."""
    number, unit = (count / 1e6, "MB") if count >= 1e5 else (count / 1e3, "kB")
    return f"{number:,.1f}\N{NO-BREAK SPACE}{unit}"
