"""The embedded Hub's store: users, repos, and their files on disk by sha256.

A path inside a repo is only ever a key of a dict. The names on disk are digests and random tickets made
here, so nothing a client sends can lead out of the folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from hfcart.demo.embedded_hub._repo import (
    KINDS,
    LFS_PATTERNS,
    Commit,
    Entry,
    Gated,
    Refusal,
    Repo,
    User,
    check_path,
    is_lfs,
)

CHUNK = 1 << 20
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()

SDKS = ("gradio", "docker", "static")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_REF = re.compile(r"[A-Za-z0-9][\w.+-]*(/[A-Za-z0-9][\w.+-]*)*", re.ASCII)
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

Changes = Iterable[tuple[str, Entry | None]]


class Readable(Protocol):
    """Anything that is read in pieces."""

    def read(self, size: int = ..., /) -> bytes:
        """Up to `size` bytes; empty at the end."""


class Store:
    """Everything the Hub holds. Files live under `root`; the rest is as long-lived as this object."""

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs"
        self.incoming = root / "incoming"
        for folder in (self.blobs, self.incoming):
            folder.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self.users: dict[str, User] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.moved: dict[tuple[str, str], str] = {}
        self.tickets: dict[str, tuple[Repo, str, int]] = {}

    def find(self, kind: str, repo_id: str) -> Repo | None:
        """The repo of this name, also under a name that it once had."""
        return self.repos.get((kind, repo_id)) or self.repos.get((kind, self.moved.get((kind, repo_id), "")))

    def delete(self, repo: Repo) -> None:
        """Forget a repo; the content of its files stays on disk until the Hub's own end."""
        with self.lock:
            self.repos.pop((repo.type, repo.id), None)

    def move(self, repo: Repo, repo_id: str) -> None:
        """Give a repo another name; the old one leads there, as long as nobody takes it.

        Raises:
            Refusal: the name is not allowed, or taken.
        """
        with self.lock:
            self._check_name(repo.type, repo_id)
            self.moved = {key: repo_id if name == repo.id else name for key, name in self.moved.items()}
            self.moved[repo.type, repo.id] = repo_id
            self.repos[repo.type, repo_id] = self.repos.pop((repo.type, repo.id))
            repo.id = repo_id

    def blob(self, entry: Entry) -> Path:
        """Where the content of a file lies."""
        return self.blobs / entry.sha256

    def add_blob(self, source: Readable, size: int, sha256: str | None = None) -> Entry:
        """Stream `size` bytes to disk.

        Raises:
            Refusal: the bytes end early, or do not have the digest promised.
        """
        temporary = self.incoming / secrets.token_hex(8)
        whole, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        left = size
        try:
            with temporary.open("wb") as file:
                while left and (chunk := source.read(min(left, CHUNK))):
                    left -= file.write(chunk)
                    whole.update(chunk)
                    git.update(chunk)
            if left or (sha256 is not None and whole.hexdigest() != sha256):
                raise Refusal(400, "The upload does not have the size and sha256 it was announced with.")
            entry = Entry(whole.hexdigest(), git.hexdigest(), size)
            temporary.replace(self.blob(entry))
        finally:
            temporary.unlink(missing_ok=True)
        return entry

    def open(self, entry: Entry) -> BinaryIO:
        """The content of a file, to be read in pieces."""
        return self.blob(entry).open("rb")

    def create(
        self, repo_id: str, kind: str, author: str, *, private: bool = False, gated: Gated = False, sdk: str = ""
    ) -> Repo:
        """A new repo, with the first commit that the Hub makes itself; a Space's has a card that says its SDK.

        Raises:
            Refusal: the name is not allowed, or taken; or a Space without an SDK.
        """
        known = next((each for each in KINDS.values() if each == kind), None)
        if known is None:
            raise Refusal(400, f"This Hub has no repos of type {kind!r}")
        first = {".gitattributes": self.add_bytes(GITATTRIBUTES)}
        if known == "space":
            if sdk not in SDKS:
                raise Refusal(400, f'"sdk" must be one of [{", ".join(SDKS)}]')
            card = f"---\ntitle: {repo_id.partition('/')[2]}\nsdk: {sdk}\npinned: false\n---\n"
            first["README.md"] = self.add_bytes(card.encode())
        with self.lock:
            self._check_name(kind, repo_id)
            self.moved.pop((kind, repo_id), None)
            repo = Repo(repo_id, known, private, gated)
            self.repos[kind, repo_id] = repo
            self._append(repo, "refs/heads/main", None, first, "initial commit", author)
        return repo

    def _check_name(self, kind: str, repo_id: str) -> None:
        if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id or repo_id.endswith((".git", ".")):
            raise Refusal(400, f"Invalid repo name: {repo_id!r}")
        if (kind, repo_id) in self.repos:
            raise Refusal(409, f"You already created this {kind} repo: {repo_id}")

    def add_bytes(self, content: bytes) -> Entry:
        """Keep a small file."""
        return self.add_blob(BytesIO(content), len(content))

    def commit(
        self, repo: Repo, revision: str, changes: Changes, message: str, author: str, *, parent: str | None = None
    ) -> Commit:
        """One commit on a branch or pull request.

        Args:
            repo: where.
            revision: name of the branch, or refs/pr/n.
            changes: in order, (path, file) to write and (path, None) to delete; a path that ends in "/" is a folder.
            message: title, and after an empty line the rest.
            author: who did it.
            parent: commit id (or its first digits) that the branch must still be at.

        Raises:
            Refusal: no such branch, it has moved on, or a file to delete is not there.
        """
        with self.lock:
            head, files = self._changed(repo, revision, changes, parent)
            return self._append(repo, repo.ref(revision) or "", head.id, files, message, author)

    def open_pull_request(
        self, repo: Repo, revision: str, changes: Changes, message: str, author: str, *, parent: str | None = None
    ) -> tuple[Commit, int]:
        """A pull request to a branch with one commit, as `commit` makes it; also its number n, for refs/pr/n."""
        with self.lock:
            head, files = self._changed(repo, revision, changes, parent)
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
            repo.authors[f"refs/pr/{number}"] = author
            return self._append(repo, f"refs/pr/{number}", head.id, files, message, author), number

    def _changed(
        self, repo: Repo, revision: str, changes: Changes, parent: str | None
    ) -> tuple[Commit, dict[str, Entry]]:
        """The head of a branch, and its files with the changes made to them."""
        ref, head = repo.ref(revision), repo.at(revision)
        if ref is None or ref.startswith("refs/tags/"):
            raise Refusal(400, f"{revision} is not a branch")
        if parent is not None and not head.id.startswith(parent):
            raise Refusal(412, f"A commit has happened since {parent}: {revision} is at {head.id}.")
        files = dict(head.files)
        for path, entry in changes:
            _apply(files, path, entry, head.id)
        return head, files

    def _append(
        self, repo: Repo, ref: str, parent: str | None, files: dict[str, Entry], message: str, author: str
    ) -> Commit:
        # Ids depend on nothing but the content and the commits before it: the same history, the same ids.
        listing = [[path, entry.sha256] for path, entry in sorted(files.items())]
        seed = json.dumps([repo.type, repo.id, parent, message, author, listing])
        commit_id = hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest()
        date = (_EPOCH + timedelta(minutes=len(repo.history))).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        commit = Commit(commit_id, parent, message, author, date, dict(sorted(files.items())))
        repo.history[commit_id] = commit
        repo.refs[ref] = commit_id
        return commit

    def add_ref(self, repo: Repo, kind: Literal["heads", "tags"], name: str, revision: str) -> None:
        """A new branch ("heads") or tag at `revision`.

        Raises:
            Refusal: the name is not allowed or taken, or there is no such revision.
        """
        if not _REF.fullmatch(name):
            raise Refusal(400, f"Invalid reference name: {name!r}")
        with self.lock:
            if f"refs/{kind}/{name}" in repo.refs:
                raise Refusal(409, f"Reference already exists: {name}")
            repo.refs[f"refs/{kind}/{name}"] = repo.at(revision).id

    def remove_ref(self, repo: Repo, kind: Literal["heads", "tags"], name: str) -> None:
        """Forget a branch or tag; its commits stay."""
        with self.lock:
            if name == "main" or repo.refs.pop(f"refs/{kind}/{name}", None) is None:
                raise Refusal(404, f"No such reference, or one that cannot be deleted: {name}", "RevisionNotFound")

    def announce(self, repo: Repo, sha256: str, size: int) -> str | None:
        """A ticket to upload an LFS file with, or None if the repo has it already."""
        with self.lock:
            if sha256 in repo.uploaded:
                return None
            ticket = secrets.token_urlsafe(16)
            self.tickets[ticket] = (repo, sha256, size)
            return ticket

    def receive(self, ticket: str, source: Readable) -> None:
        """Take in the LFS file that a ticket was given for; again, if the client tries again."""
        if ticket not in self.tickets:
            raise Refusal(403, "This upload address is not valid.")
        repo, sha256, size = self.tickets[ticket]
        entry = replace(self.add_blob(source, size, sha256), lfs=True)
        with self.lock:
            repo.uploaded[sha256] = entry

    def keep(self, repo: Repo, path: str, entry: Entry) -> Entry:
        """A file on disk as `repo` is to hold it at `path`: through LFS or not."""
        if not is_lfs(path, entry.size):
            return entry
        return repo.uploaded.setdefault(entry.sha256, replace(entry, lfs=True))


def _apply(files: dict[str, Entry], path: str, entry: Entry | None, head: str) -> None:
    if entry is not None:
        files[check_path(path)] = entry
        return
    gone = [name for name in files if name == path or (path.endswith("/") and name.startswith(path))]
    if not gone:
        raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound", commit=head)
    for name in gone:
        del files[name]
