"""What a Hub repo and a revision of it may be called: one rule for what users type, cards claim and we write."""

from __future__ import annotations

import re

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPO = re.compile(rf"(?!.*(?:--|\.\.))(?:(?!_){_PART}/)?{_PART}(?<!\.git)")
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.+/-]{0,254}")


def is_repo_id(text: str, *, namespace: bool = False) -> bool:
    """Whether `text` has the form `user/name`, or `name` alone unless `namespace` is demanded."""
    return len(text) <= 193 and _REPO.fullmatch(text) is not None and ("/" in text or not namespace)


def is_revision(text: str) -> bool:
    """Whether `text` may be a branch, a tag, a commit or refs/pr/N."""
    return _REVISION.fullmatch(text) is not None
