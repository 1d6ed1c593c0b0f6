"""What a Hub repo, a revision and a place in it may be called: one rule for what users type, cards claim, we write."""

from __future__ import annotations

import re

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPO = re.compile(rf"(?!.*(?:--|\.\.))(?:(?!_){_PART}/)?{_PART}(?<!\.git)")
_PLACE = re.compile(r"(?!(?:.*/)?\.{0,2}(?:/|$))[^\x00-\x1f\x7f\\:]{1,500}")
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.+/-]{0,254}")


def is_repo_id(text: str, *, namespace: bool = False) -> bool:
    """Whether `text` has the form `user/name`, or `name` alone unless `namespace` is demanded."""
    return len(text) <= 193 and _REPO.fullmatch(text) is not None and ("/" in text or not namespace)


def is_revision(text: str) -> bool:
    """Whether `text` may be a branch, a tag, a commit or refs/pr/N."""
    return _REVISION.fullmatch(text) is not None


def is_place(text: str) -> bool:
    """Whether `text` may be a folder or a file inside a repo: a path that cannot lead out of it."""
    return _PLACE.fullmatch(text) is not None


def split_place(text: str) -> tuple[str, str | None]:
    """Cut `user/name@revision:path` into what stands before the colon and the path, None if there is no colon."""
    before, colon, place = text.partition(":")
    return before, place if colon else None
