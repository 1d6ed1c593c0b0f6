"""Where a source is: from what was typed to a folder or a file here, or a place in a repo pinned to a commit."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hfcart.errors import SourceError
from hfcart.progress import Progress
from hfcart.records.repo_id import is_place, is_repo_id, split_place
from hfcart.sources.stores import LocalStore, Store


def open_store(text: str, progress: Progress, *, local: bool = False) -> Store:
    """The folder or file of that path if there is one (or must be), else what the Hub has of that name, pinned.

    Args:
        text: a path here, `folder:path`, `user/name`, `user/name@revision`, either of these with `:path` behind it, or
            the address of such a place on the Hub.
        progress: told where a name means two things.
        local: never the Hub.

    Raises:
        SourceError: no such folder, no such repo, or one that cannot be seen.
    """
    from_here = _local(text)
    if from_here is not None:
        if is_repo_id(text, namespace=True):
            progress.note(f"{text} is a folder here: that is what is read, not the Hub repo of that name.")
        return from_here
    ref = _without_address(text)
    if local or not is_repo_id(split_place(ref)[0].partition("@")[0], namespace=True):
        raise SourceError(
            f"There is no folder {text[:200]}, and a Hub repo is written user/name, user/name@revision or "
            "user/name:path.",
            hint="Run the command in the folder that holds it, or give its path.",
        )
    from hfcart import hub  # the Hub's client takes time and memory that a merge of local folders need not spend

    hub.set_notifier(progress.note)
    return hub.open_repo(ref)


def _local(text: str) -> LocalStore | None:
    """The folder, or the file in its folder, that a text means here; `folder:path` is a place inside a folder."""
    path = _path(text)
    before, place = split_place(text)
    if path is not None and not path.exists() and place and is_place(place.strip("/")):
        folder = _path(before)
        path = folder / place if folder is not None and folder.is_dir() else None
        if path is not None and not path.exists():
            raise SourceError(f"There is no {place[:200]} in the folder {before[:200]}.")
    if path is None or not path.exists():
        return None
    return LocalStore(path) if path.is_dir() else LocalStore(path.parent, path.name)


def _without_address(text: str) -> str:
    """`user/name@revision:path` of an address of the Hub, as pages and links have it; else the text itself."""
    try:
        address = urlsplit(text)
    except ValueError:
        return text
    if address.scheme not in ("https", "http", "hf"):
        return text
    where = unquote(address.path).strip("/") if address.scheme != "hf" else unquote(address.netloc + address.path)
    hosts = {"huggingface.co", "hf.co", urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc}
    parts = where.removeprefix("models/").split("/")
    if (address.scheme != "hf" and address.netloc not in hosts) or len(parts) < 2:
        raise SourceError(f"{text[:200]} is no address of a Hub repo.", hint="Write user/name, or user/name@revision.")
    repo, rest = "/".join(parts[:2]), parts[2:]
    if rest[:1] in (["tree"], ["blob"], ["resolve"]):
        cut = 4 if rest[1:3] == ["refs", "pr"] else 2
        revision, place = "/".join(rest[1:cut]), "/".join(rest[cut:])
        repo += f"@{revision}" if revision else ""
    else:
        place = "/".join(rest)
    return repo + (f":{place}" if place else "")


def _path(text: str) -> Path | None:
    """The path that a source may be; None for a text no path can be (too long, no such home folder, a NUL in it)."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError):
        return None
    return path
