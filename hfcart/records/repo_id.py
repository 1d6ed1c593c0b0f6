"""What the name of a Hub repo looks like. One rule for what users type, what cards claim and what we write."""

from __future__ import annotations

import re

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPO = re.compile(rf"(?!.*(?:--|\.\.))(?:(?!_){_PART}/)?{_PART}(?<!\.git)")


def is_repo_id(text: str, *, namespace: bool = False) -> bool:
    """Whether `text` has the form `user/name`, or `name` alone unless `namespace` is demanded."""
    return len(text) <= 193 and _REPO.fullmatch(text) is not None and ("/" in text or not namespace)
