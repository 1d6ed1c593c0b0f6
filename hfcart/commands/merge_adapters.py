"""The adapters of a merge at its end: each gets its config, is recorded, and published."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hfcart.records import FinetuneRecord, MergeRecord
from hfcart.records.adapters import CONFIG, WEIGHTS, AdapterRecord, adapter_file, with_base
from hfcart.system.journal import Line
from hfcart.system.work_folder import WorkFolder

if TYPE_CHECKING:
    from hfcart.engine.plan import Plan


def finish_adapters(
    folder: WorkFolder, plan: Plan, lines: Sequence[Line], files: Mapping[str, str]
) -> tuple[tuple[AdapterRecord, ...], dict[str, str]]:
    """Write what goes beside every adapter's weights.

    Args:
        folder: whose tensors are all in place, and proven.
        plan: with its towers in canonical order.
        lines: of the journal, one for each group, in the plan's order.
        files: sha256 of every weight file, by its path.

    Returns:
        The adapters in the order of the towers, and sha256 of their configs by path; nothing without adapters.
    """
    adapters = plan.adapters
    if adapters is None:
        return (), {}
    found = [(group, line["adapters"]) for group, line in zip(plan.groups, lines, strict=True) if line.get("adapters")]
    config = adapters.config()
    records: list[AdapterRecord] = []
    own: dict[str, str] = {}
    for place, (name, tower) in enumerate(zip(plan.sources.canonical(adapters.names), plan.towers, strict=True)):
        folder.add(adapter_file(name, CONFIG), config)
        own[adapter_file(name, CONFIG)] = hashlib.sha256(config).hexdigest()
        kept, total = (sum(norms[place][i] for _, norms in found) for i in (0, 1))
        records.append(
            AdapterRecord(
                name=name,
                source=tower.label,
                rank=adapters.rank,
                parameters=adapters.parameters,
                size=adapters.file_bytes,
                sha256=files[adapter_file(name, WEIGHTS)],
                energy=round(min(1.0, kept / total), 6) if total else 1.0,
                fallbacks=tuple(tensor for group, norms in found if norms[place][2] for tensor in group.names),
            )
        )
    return tuple(records), own


def any_fallback(line: Line) -> bool:
    """Whether the solver gave up on a group, in the merge or in one of its adapters."""
    return bool(line["fallback"]) or any(gave_up for _, _, gave_up in line.get("adapters") or ())


def adapter_configs(folder: Path, record: MergeRecord | FinetuneRecord, repo: str) -> dict[str, bytes]:
    """The configs of a folder's adapters as they are published: they name the repo, which has the tower too.

    Args:
        folder: with the adapters, checked.
        record: of the folder.
        repo: `user/name`.
    """
    if not isinstance(record, MergeRecord):
        return {}
    paths = [adapter_file(each.name, CONFIG) for each in record.adapters]
    return {path: with_base((folder / path).read_bytes(), repo) for path in paths}
