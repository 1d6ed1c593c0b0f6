"""What the embedded Hub keeps of users and repos: plain data, and what can be read off it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Literal

from hfcart.errors import HfcartError

Gated = Literal["auto", "manual", False]
Kind = Literal["model", "dataset", "space"]
KINDS: dict[str, Kind] = {"models": "model", "datasets": "dataset", "spaces": "space"}  # as addresses spell them

LFS_SIZE = 10_000_000
LFS_PATTERNS = (
    *("*.7z", "*.arrow", "*.bin", "*.bz2", "*.ckpt", "*.ftz", "*.gif", "*.gz", "*.h5", "*.joblib", "*.jpeg", "*.jpg"),
    *("*.model", "*.msgpack", "*.npy", "*.npz", "*.onnx", "*.parquet", "*.pb", "*.pickle", "*.pkl", "*.png", "*.pt"),
    *("*.pth", "*.rar", "*.safetensors", "*.tar", "*.tflite", "*.tgz", "*.webp", "*.xz", "*.zip", "*.zst"),
)


class Refusal(HfcartError):
    """A request the Hub turns down.

    Args:
        status: HTTP status.
        message: the sentence in the reply.
        code: X-Error-Code, from which the client chooses its exception.
        commit: X-Repo-Commit, where the revision was found but the file was not.
    """

    def __init__(self, status: int, message: str, code: str | None = None, *, commit: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.commit = commit


@dataclass(frozen=True)
class User:
    """An account: its name, the organizations it may also write to, and what its token allows."""

    name: str
    orgs: tuple[str, ...] = ()
    role: Literal["read", "write"] = "write"

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Every namespace this user may create and write repos in."""
        return (self.name, *self.orgs)


@dataclass(frozen=True)
class Entry:
    """A file of a commit: sha256 and git digest (40 hex digits) of its content, bytes, and whether LFS holds it."""

    sha256: str
    sha1: str
    size: int
    lfs: bool = False

    @property
    def pointer(self) -> bytes:
        """The small text that git holds in place of an LFS file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @property
    def oid(self) -> str:
        """Git's digest of what git holds: the file, or the pointer to it."""
        return git_digest(self.pointer) if self.lfs else self.sha1

    @property
    def etag(self) -> str:
        """What the Hub names the content by: sha256 for LFS files, git's digest for the others."""
        return self.sha256 if self.lfs else self.sha1


@dataclass(frozen=True)
class Commit:
    """One commit: everything it holds, by path."""

    id: str
    parent: str | None
    message: str
    author: str
    date: str
    files: Mapping[str, Entry]


@dataclass
class Repo:
    """A repo.

    Attributes:
        id: namespace/name.
        type: what it holds.
        private: whether only its namespace and the granted know of it.
        gated: whether only they can read its files.
        granted: users who may read although they are not of the namespace.
        refs: commit by full name: refs/heads/main, refs/tags/v1, refs/pr/1.
        history: every commit ever made, by its id.
        uploaded: LFS files it has, by sha256, committed or not.
        authors: who opened a pull request, by its full name.
    """

    id: str
    type: Kind
    private: bool = False
    gated: Gated = False
    granted: set[str] = field(default_factory=set)
    refs: dict[str, str] = field(default_factory=dict)
    history: dict[str, Commit] = field(default_factory=dict)
    uploaded: dict[str, Entry] = field(default_factory=dict)
    authors: dict[str, str] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        """The user or organization that owns it."""
        return self.id.partition("/")[0]

    @property
    def url_path(self) -> str:
        """Its place in addresses outside /api."""
        return self.id if self.type == "model" else f"{self.type}s/{self.id}"

    def ref(self, revision: str) -> str | None:
        """Full name of the branch, tag or pull request meant by `revision`, None if there is none; HEAD is main."""
        revision = "main" if revision == "HEAD" else revision
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def at(self, revision: str) -> Commit:
        """The commit meant by a branch, tag, refs/… or commit id (whole, or its first seven digits or more)."""
        name = self.ref(revision)
        if name is not None:
            return self.history[self.refs[name]]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            found = [commit for commit in list(self.history.values()) if commit.id.startswith(revision)]
            if len(found) == 1:
                return found[0]
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def log(self, revision: str) -> Iterator[Commit]:
        """Commits from `revision` back to the first."""
        commit: Commit | None = self.at(revision)
        while commit is not None:
            yield commit
            commit = self.history[commit.parent] if commit.parent else None


def git_digest(content: bytes) -> str:
    """Git's digest of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def is_lfs(path: str, size: int) -> bool:
    """Whether a file goes to LFS: by its suffix or above 10 MB; never when empty."""
    return size > 0 and (size > LFS_SIZE or any(fnmatch(path.lower(), pattern) for pattern in LFS_PATTERNS))


def check_path(path: str) -> str:
    """`path` if it is a plain relative path inside a repo.

    Raises:
        Refusal: it is absolute, climbs, is empty, or reaches into .git.
    """
    parts = path.split("/")
    bad = {"", ".", "..", ".git"}
    if bad.intersection(parts) or "\\" in path or not path.isprintable() or len(path) > 1000:
        raise Refusal(400, f"Invalid path in repo: {path!r}")
    return path
