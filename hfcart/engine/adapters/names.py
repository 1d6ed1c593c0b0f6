"""What each source's adapter is called: the task that it was fine-tuned on, else the shortest name that is its own."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

from hfcart.errors import HfcartError
from hfcart.formats.shard_layout import WEIGHTS
from hfcart.recipes.finished_finetuning import is_finetune_record, read_finetune_record
from hfcart.records.adapters import is_adapter_name
from hfcart.records.file_names import MAX_RECORD, RECORD
from hfcart.sources.towers import Tower, content_of

_LONGEST = 60  # characters; peft's own names come behind it in a tensor's name, and the file system has its limits


def adapter_names(towers: Sequence[Tower]) -> tuple[str, ...]:
    """One name for each tower, all different; the order of the towers changes none of them.

    Args:
        towers: pinned. Of those that the same name would fit, what their folders hold decides.
    """
    depth = [0] * len(towers)
    names = [_name(tower, 0) for tower in towers]
    while True:
        counts = Counter(names)
        open_ = [i for i, name in enumerate(names) if counts[name] > 1 and depth[i] < _levels(towers[i])]
        if not open_:
            break
        for i in open_:
            depth[i] += 1
            names[i] = _name(towers[i], depth[i])
    # What still has one name is one source, given several times.
    met: Counter[str] = Counter()
    for i, name in enumerate(names):
        met[name] += 1
        names[i] = name if met[name] == 1 else f"{name}-{met[name]}"
    return tuple(names)


def _parts(tower: Tower) -> list[str]:
    return [part for part in re.split(r"[/:]", tower.label) if part]


def _levels(tower: Tower) -> int:
    return len(_parts(tower)) + 1


def _name(tower: Tower, depth: int) -> str:
    """The name at a depth: the task, then more and more of the label from its end, and last what it holds."""
    if depth == 0 and (task := _task(tower)):
        return _safe(task)
    parts = _parts(tower)
    tail = parts[-max(1, min(depth, len(parts))) :]
    for suffix in WEIGHTS:
        tail[-1] = tail[-1].removesuffix(suffix)
    own = f"{tower.label}@{tower.store.commit or content_of(tower)}"
    return _safe("-".join(tail), hashlib.sha256(own.encode()).hexdigest()[:8] if depth > len(parts) else "")


def _task(tower: Tower) -> str | None:
    """The one task that hfcart's own record of a fine-tuning beside the weights names; else None."""
    try:
        data = tower.store.small(RECORD, MAX_RECORD) if tower.store.chosen is None else None
        if data is None or not is_finetune_record(data):
            return None
        tasks = read_finetune_record(data, tower.label).tasks
    except HfcartError:  # a stranger's file that is no such record: it names nothing
        return None
    return tasks[0].task if len(tasks) == 1 else None


def _safe(text: str, digest: str = "") -> str:
    """A folder's name of any text, which peft takes as the name of an adapter too; the digest is never cut off."""
    room = _LONGEST - len(digest)
    name = re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-_")[:room].rstrip("-_") or "tower"
    name = "-".join(filter(None, (name, digest)))
    return name if is_adapter_name(name) else f"{name}-tower"
