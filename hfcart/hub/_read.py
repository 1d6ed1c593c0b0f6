"""Sources on the Hub: resolved once to a commit, then read at that commit, in parts or whole files."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    ModelInfo,
    constants,
    get_session,
    hf_hub_download,
    hf_hub_url,
    hf_raise_for_status,
    try_to_load_from_cache,
)
from huggingface_hub.utils import build_hf_headers, httpx, silent_tqdm, validate_repo_id  # type: ignore[attr-defined]

from hfcart.errors import CorruptFileError, HubError, UsageError
from hfcart.hub._calls import API, call
from hfcart.patience import READ_TIMEOUT
from hfcart.quoting import quoted

_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.+/-]{0,254}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class RepoFile:
    """One file of a pinned tree: path, bytes, and sha256 (64 hex digits) where LFS knows it."""

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Snapshot:
    """A Hub repo at one commit.

    Attributes:
        repo: `user/name`.
        revision: what was asked for, None if nothing was.
        commit: 40 hex digits; everything read later is read at this commit.
        files: every file of that commit, by path.
        name: what the Hub calls the repo: another name than `repo` if it was renamed, or in another case.
    """

    repo: str
    revision: str | None
    commit: str
    files: dict[str, RepoFile]
    name: str = ""


def split_ref(ref: str) -> tuple[str, str | None]:
    """Split `user/name@revision` into the repo id and the revision (branch, tag, commit, refs/pr/N) or None.

    Raises:
        UsageError: it has another form.
    """
    repo, at, revision = ref.partition("@")
    hint = "Write user/name, or user/name@revision with a branch, a tag, a commit or refs/pr/N."
    try:
        validate_repo_id(repo)
        named = repo.count("/") == 1 and repo.isascii()
    except ValueError:
        named = False
    if not named:
        raise UsageError(f"{quoted(repo, 120)} is not the name of a Hub repo.", hint=hint)
    if at and not _REVISION.fullmatch(revision):
        raise UsageError(f"{quoted(revision, 120)} cannot be a revision of {repo}.", hint=hint)
    return repo, revision if at else None


def resolve(ref: str) -> Snapshot:
    """Pin a Hub repo: one request resolves it to a commit, the list of files is that commit's.

    Args:
        ref: `user/name` or `user/name@revision`.

    Raises:
        UsageError: `ref` has another form.
        RepoNotFoundError, RevisionNotFoundError, AccessError: it cannot be seen.
        CorruptFileError: it lists a file name that leads out of it.
        HubError: the Hub is down, slow or limiting, try after try.
    """
    return snapshot_of(ref, info(ref))


def info(ref: str) -> ModelInfo:
    """What the Hub says of a repo; its `sha` is the commit that the revision means now. Raises as `resolve` does."""
    repo, revision = split_ref(ref)

    def ask() -> ModelInfo:
        found = API.model_info(repo, revision=revision, timeout=READ_TIMEOUT)
        if not isinstance(found.sha, str) or not _COMMIT.fullmatch(found.sha):
            raise ValueError("no commit")
        return found

    return call(f"Resolving {ref}", ask, repo=repo)


def snapshot_of(ref: str, found: ModelInfo) -> Snapshot:
    """The snapshot at the commit of `found`. Raises as `resolve` does."""
    repo, revision = split_ref(ref)
    files: dict[str, RepoFile] = {}
    for entry in tree(repo, str(found.sha)):
        path = _check_path(entry["path"], repo)
        lfs = entry.get("lfs")
        files[path] = RepoFile(path, lfs["size"] if lfs else entry["size"], lfs["oid"] if lfs else None)
    return Snapshot(repo, revision, str(found.sha), files, str(found.id or repo)[:200])


def tree(repo: str, commit: str) -> list[dict[str, Any]]:
    """The Hub's entries for every file of a commit: `path`, `size`, `oid` (git's digest), and `lfs` for LFS files.

    The client's own listing waits for ever for a silent server, hence the plain requests.
    """

    def page() -> tuple[list[dict[str, Any]], str | None]:
        response = get_session().get(url or "", headers=_headers(), timeout=READ_TIMEOUT)
        hf_raise_for_status(response)
        if not isinstance(listing := response.json(), list):
            raise ValueError("no list")
        found = [dict(entry) for entry in listing if entry["type"] == "file"]
        for entry in found:
            stored = entry.get("lfs") or entry
            if type(stored["size"]) is not int or stored["size"] < 0 or not _DIGEST.fullmatch(stored["oid"]):
                raise ValueError("a file without a size or a digest")
        follow = response.links.get("next", {}).get("url")
        # The token goes along: to the Hub alone. And a list that leads back to itself has no end.
        if follow is not None and (follow in seen or not follow.startswith(f"{constants.ENDPOINT}/")):
            raise ValueError("a next page that cannot be")
        seen.add(follow)
        return found, follow

    seen: set[str | None] = set()
    entries: list[dict[str, Any]] = []
    url: str | None = f"{constants.ENDPOINT}/api/models/{repo}/tree/{commit}?recursive=true"
    while url is not None:
        found, url = call(f"Listing {repo}", page, repo=repo)
        entries += found
    return entries


def _check_path(path: object, repo: str) -> str:
    if (
        isinstance(path, str)
        and not {"", ".", ".."}.intersection(path.split("/"))
        and not re.search(r"[\\\x00-\x1f\x7f]", path)
    ):
        return path
    raise CorruptFileError(
        f"{repo} lists a file named {quoted(str(path), 120)}, which is no plain path inside a repo.",
        hint="Do without this repo, or name a revision without that file: user/name@revision.",
    )


def _headers() -> dict[str, str]:
    return build_hf_headers(library_name="hfcart")


def read_bytes(snapshot: Snapshot, path: str, start: int, end: int) -> bytes:
    """The bytes [start, end) of a file at the pinned commit. Safe to call from several threads.

    One ranged request; if the connection drops, the rest is asked for.

    Raises:
        CorruptFileError: the commit has no such file, or it is shorter.
        SourceError, HubError: as for `resolve`; HubError also if the server ignores ranges.
    """
    what = f"Reading {path} of {snapshot.repo}"
    file = snapshot.files.get(path)
    if file is None or not 0 <= start <= end <= file.size:
        found = "there is no such file" if file is None else f"it has {file.size:,} bytes"
        raise CorruptFileError(f"{what}: bytes {start:,} to {end:,} are not there ({found}).")
    url = hf_hub_url(snapshot.repo, path, revision=snapshot.commit)
    body = bytearray()

    def read_rest() -> None:
        wanted = f"{start + len(body)}-{end - 1}"
        # Offsets count the file's own bytes: no compression on the way.
        headers = {**_headers(), "Range": f"bytes={wanted}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", url, headers=headers, timeout=READ_TIMEOUT) as response:
            hf_raise_for_status(response)
            got = response.headers.get("Content-Range", "")
            if response.status_code != 206 or not got.startswith(f"bytes {wanted}/"):
                raise HubError(
                    f"{what}: the server does not give parts of files (status {response.status_code}).",
                    hint=f"Fetch it whole and give that folder: hf download {snapshot.repo} --local-dir FOLDER",
                )
            for chunk in response.iter_raw():
                body.extend(chunk)
                if len(body) > end - start:
                    raise HubError(f"{what}: the server sent more than the {end - start:,} bytes asked for.")
        if len(body) < end - start:
            raise ConnectionError("the body ended early")

    def read() -> None:
        try:
            read_rest()
        except httpx.TransportError:
            if len(body) < end - start:  # else only the end of the answer was wrong
                raise

    if start < end:
        call(what, read, repo=snapshot.repo)
    return bytes(body)


def read_small(snapshot: Snapshot, path: str, limit: int = 1 << 20) -> bytes | None:
    """A whole small file at the pinned commit, kept in the Hugging Face cache; None if the commit has none.

    Raises:
        CorruptFileError: it has more than `limit` bytes.
        SourceError, HubError, OutputError: as for `fetch`.
    """
    file = snapshot.files.get(path)
    if file is None:
        return None
    if file.size > limit:
        raise CorruptFileError(
            f"{path} of {snapshot.repo} has {file.size:,} bytes, expected at most {limit:,}.",
            hint="Name a revision where it is smaller: user/name@revision.",
        )
    return fetch(snapshot, path).read_bytes()


def cached(snapshot: Snapshot, path: str) -> Path | None:
    """Where the Hugging Face cache holds this file of the pinned commit, whole; None if it does not."""
    found = try_to_load_from_cache(snapshot.repo, path, revision=snapshot.commit)
    if isinstance(found, str) and Path(found).stat().st_size == snapshot.files[path].size:
        return Path(found)
    return None


class _Silent(silent_tqdm):
    """Draws nothing. Having `update_transfer` tells the client to count a Xet download once, not twice."""

    total = 0

    def update_transfer(self, n: float) -> None:
        pass

    def set_postfix_str(self, *args: object, **kwargs: object) -> None:
        pass

    set_transfer_postfix_str = set_postfix_str


def fetch(
    snapshot: Snapshot,
    path: str,
    on_bytes: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> Path:
    """Download one file of the pinned commit into the Hugging Face cache. Safe to call from several threads.

    Args:
        snapshot: the pinned repo.
        path: one of its files.
        on_bytes: told of every step, in bytes; negative when a try starts over. The steps add up to the size.
        stop: set it to give up at the next step.

    Returns:
        The file in the cache, of the size that the pinned tree says.

    Raises:
        concurrent.futures.CancelledError: `stop` was set.
        SourceError, HubError: as for `resolve`.
        OutputError: the cache is full or not writable.
    """
    size, seen = snapshot.files[path].size, 0

    def step(count: int) -> None:
        nonlocal seen
        if stop is not None and stop.is_set():
            raise CancelledError
        seen += count
        if on_bytes is not None and count:
            on_bytes(count)

    class Steps(_Silent):
        def update(self, n: float | None = 1) -> None:
            step(int(n or 0))

    def download() -> Path:
        step(-seen)
        # The client would hand out a file cut short in its cache, again and again.
        broken = isinstance(try_to_load_from_cache(snapshot.repo, path, revision=snapshot.commit), str)
        found = hf_hub_download(
            snapshot.repo,
            path,
            revision=snapshot.commit,
            library_name="hfcart",
            tqdm_class=Steps,
            force_download=broken,
        )
        if Path(found).stat().st_size != size:
            raise ConnectionError("not the size that the tree says")
        return Path(found)

    what = f"Fetching {path} of {snapshot.repo}"
    here = cached(snapshot, path) or call(what, download, repo=snapshot.repo, stop=stop)
    step(size - seen)
    return here
