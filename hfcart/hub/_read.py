"""Sources on the Hub: resolved once to a commit, then read at that commit, in parts or whole files."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass

from huggingface_hub import ModelInfo, SpaceInfo, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.utils import build_hf_headers, httpx, validate_repo_id  # type: ignore[attr-defined]

from hfcart.errors import CorruptFileError, HubError, UsageError
from hfcart.hub._calls import API, call, unreachable
from hfcart.hub._http import stopped
from hfcart.hub._tree import Kind, RepoFile, kept, kept_commits, listing, name_of
from hfcart.quoting import quoted
from hfcart.records.check import is_commit
from hfcart.records.repo_id import is_revision
from hfcart.system.patience import READ_TIMEOUT


@dataclass(frozen=True)
class Snapshot:
    """A Hub repo of models (or of a dataset, or a Space) at one commit.

    Attributes:
        repo: `user/name`.
        revision: what was asked for, None if nothing was.
        commit: 40 hex digits; everything read later is read at this commit.
        files: every file of that commit, by path.
        kind: model, dataset or space.
        name: what the Hub calls the repo: another name than `repo` if it was renamed, or in another case.
    """

    repo: str
    revision: str | None
    commit: str
    files: dict[str, RepoFile]
    kind: Kind = "model"
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
    if at and not is_revision(revision):
        raise UsageError(f"{quoted(revision, 120)} cannot be a revision of {repo}.", hint=hint)
    return repo, revision if at else None


def resolve(ref: str) -> Snapshot:
    """Pin a Hub repo: one request resolves it to a commit, the list of files is that commit's.

    A commit whose list of files is kept here needs no request, hence no network.

    Args:
        ref: `user/name` or `user/name@revision`.

    Raises:
        UsageError: `ref` has another form.
        RepoNotFoundError, RevisionNotFoundError, AccessError: it cannot be seen.
        CorruptFileError: it lists a file name that leads out of it.
        HubError: the Hub is down, slow or limiting, try after try.
    """
    repo, revision = split_ref(ref)
    if revision and is_commit(revision) and (found := kept("model", repo, revision)) is not None:
        return Snapshot(repo, revision, revision, found.files, name=found.name or repo)
    return snapshot_of(ref, info(ref))


def info(ref: str, kind: Kind = "model") -> ModelInfo | SpaceInfo:
    """What the Hub says of a model's repo or a Space; its `sha` is the commit that the revision means now.

    Raises as `resolve` does.
    """
    repo, revision = split_ref(ref)

    def ask() -> ModelInfo | SpaceInfo:
        found = (API.space_info if kind == "space" else API.model_info)(repo, revision=revision, timeout=READ_TIMEOUT)
        if not isinstance(found.sha, str) or not is_commit(found.sha):
            raise ValueError("no commit")
        return found

    with naming_what_is_kept(kind, ref):
        return call(f"Resolving {ref}", ask, repo=name_of(kind, repo))


def is_open(ref: str) -> bool:
    """Whether anybody may read a model's repo without a token. Raises as `resolve` does."""
    found = info(ref)
    return not (found.private or getattr(found, "gated", False))


@contextmanager
def naming_what_is_kept(kind: Kind, ref: str) -> Iterator[None]:
    """Let the error of a Hub that cannot be reached say what can be read without it, and how to get the rest."""
    try:
        yield
    except HubError as error:
        repo, revision = split_ref(ref)
        if revision and is_commit(revision):
            told = f"That commit is not in the cache; with a network, this gets it: {_download(kind, repo, revision)}"
        elif commits := kept_commits(kind, repo):
            names = ", ".join(f"{repo}@{commit}" for commit in commits[:5])
            told = f"What is in the cache is read without a request where the commit is named: {names}."
        else:
            told = f"No commit of it is in the cache; with a network, this gets one: {_download(kind, repo)}"
        error.hint = " ".join(filter(None, (error.hint, told)))
        raise


@contextmanager
def naming_how_to_fetch(snapshot: Snapshot, path: str) -> Iterator[None]:
    """Let that error name the command that fetches one file of a pinned commit."""
    try:
        yield
    except HubError as error:
        if unreachable(error):
            told = f"It is not in the cache; with a network, this gets it: {download_command(snapshot, path)}"
            error.hint = " ".join(filter(None, (error.hint, told)))
        raise


def download_command(snapshot: Snapshot, path: str) -> str:
    """The command, to be typed, that brings a file of a pinned commit into the cache."""
    return _download(snapshot.kind, f"{snapshot.repo} {shlex.quote(path)}", snapshot.commit)


def _download(kind: Kind, what: str, commit: str | None = None) -> str:
    return f"hf download {what}" + f" --repo-type {kind}" * (kind != "model") + f" --revision {commit}" * bool(commit)


def snapshot_of(ref: str, found: ModelInfo | SpaceInfo, kind: Kind = "model") -> Snapshot:
    """The snapshot at the commit of `found`. Raises as `resolve` does."""
    repo, revision = split_ref(ref)
    name = str(found.id or repo)[:200]
    return Snapshot(repo, revision, str(found.sha), listing(kind, repo, str(found.sha), name), kind, name)


def read_into(snapshot: Snapshot, path: str, start: int, buffer: memoryview) -> None:
    """Fill `buffer` with the bytes from `start` on of a file at the pinned commit. Several threads may.

    One ranged request; if the connection drops, the rest is asked for.

    Raises:
        CorruptFileError: the commit has no such file, or it is shorter.
        SourceError, HubError: as for `resolve`; HubError also if the server ignores ranges.
        concurrent.futures.CancelledError: what `end_with` named in this thread was set.
    """
    what = f"Reading {path} of {snapshot.repo}"
    file, end, done = snapshot.files.get(path), start + len(buffer), 0
    if file is None or not 0 <= start <= end <= file.size:
        found = "there is no such file" if file is None else f"it has {file.size:,} bytes"
        raise CorruptFileError(f"{what}: bytes {start:,} to {end:,} are not there ({found}).")
    url = hf_hub_url(snapshot.repo, path, revision=snapshot.commit)

    def read_rest() -> None:
        nonlocal done
        wanted = f"{start + done}-{end - 1}"
        # Offsets count the file's own bytes: no compression on the way.
        headers = {**build_hf_headers(library_name="hfcart"), "Range": f"bytes={wanted}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", url, headers=headers, timeout=READ_TIMEOUT) as response:
            hf_raise_for_status(response)
            got = response.headers.get("Content-Range", "")
            if response.status_code != 206 or not got.startswith(f"bytes {wanted}/"):
                raise HubError(
                    f"{what}: the server does not give parts of files (status {response.status_code}).",
                    hint=f"Fetch it whole and give that folder: hf download {snapshot.repo} --local-dir FOLDER",
                )
            for chunk in response.iter_raw():
                if done + len(chunk) > len(buffer):
                    raise HubError(f"{what}: the server sent more than the {len(buffer):,} bytes asked for.")
                buffer[done : done + len(chunk)] = chunk
                done += len(chunk)
                if stopped():
                    raise CancelledError
        if done < len(buffer):
            raise ConnectionError("the body ended early")

    def read() -> None:
        try:
            read_rest()
        except httpx.TransportError:
            if done < len(buffer):  # else only the end of the answer was wrong
                raise

    if buffer:
        with naming_how_to_fetch(snapshot, path):
            call(what, read, repo=snapshot.repo)
