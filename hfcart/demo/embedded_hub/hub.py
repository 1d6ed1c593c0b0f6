"""A Hub of one's own on 127.0.0.1, for the demo and the tests.

The real clients work against it unchanged when HF_ENDPOINT names it (they read that at import, so in a
process of their own): repos of models, datasets and Spaces, branches, tags and pull requests, ranged downloads,
LFS uploads, commits, tokens, private and gated repos, and the check of model cards. It can be told to fail.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from hfcart.demo.embedded_hub._repo import Entry, Gated, Repo, User
from hfcart.demo.embedded_hub._server import Server
from hfcart.demo.embedded_hub._store import Store


@dataclass(frozen=True)
class Request:
    """A request that came in: its method, its path with the query, and its Range header."""

    method: str
    path: str
    range: str | None


@dataclass
class Failure:
    """What to do wrong, and when; see `EmbeddedHub.fail`."""

    path: re.Pattern[str]
    status: int | None
    drop_after: int | None
    drop_request: bool
    alter: int | None
    delay: float
    headers: Mapping[str, str]
    body: bytes | None
    after: bool
    redirect: str | None
    promise: int | None
    stall_after: int | None
    drip: float
    first: int
    times: int | None
    seen: int = field(default=0)

    def strikes(self, line: str) -> bool:
        """Count a request, and say whether it is one to fail."""
        if not self.path.search(line):
            return False
        self.seen += 1
        return self.seen >= self.first and (self.times is None or self.seen < self.first + self.times)


class EmbeddedHub:
    """A Hub, served from a thread of its own while the `with` block lasts.

    Args:
        root: folder for its files; made if missing.
        page_size: entries on one page of a listing.

    Attributes:
        url: its address, to be given to clients as HF_ENDPOINT.
        requests: every request since the start or the last `clear`, in the order of their arrival.
    """

    def __init__(self, root: Path, *, page_size: int = 1000) -> None:
        """Take a free port; nothing is answered before the `with` block."""
        self.store = Store(root)
        self.page_size = page_size
        self.requests: list[Request] = []
        self._failures: list[Failure] = []
        self._server = Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        """Start to serve."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop, and break off whatever is still going on."""
        self._server.stop()
        self._thread.join()

    def add_user(
        self, name: str, *, token: str, orgs: Iterable[str] = (), role: Literal["read", "write"] = "write"
    ) -> None:
        """An account whose token may write to `name`/* and to the organizations' repos, unless `role` is read."""
        self.store.users[token] = User(name, tuple(orgs), role)

    def create(
        self, repo_id: str, repo_type: str = "model", *, private: bool = False, gated: bool | Gated = False
    ) -> None:
        """A new repo with the Hub's own first commit, which holds .gitattributes. `gated=True` means "manual".

        A Space is one of Gradio, and its first commit has a README.md, too.
        """
        gate: Gated = "manual" if gated is True else gated
        self.store.create(repo_id, repo_type, repo_id.partition("/")[0], private=private, gated=gate, sdk="gradio")

    def grant(self, repo_id: str, user: str, repo_type: str = "model") -> None:
        """Let a user read a private or gated repo."""
        self._repo(repo_id, repo_type).granted.add(user)

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path],
        *,
        message: str = "Update files",
        branch: str = "main",
        repo_type: str = "model",
        delete: Iterable[str] = (),
    ) -> str:
        """Write and delete files (a folder's name ends in "/") in one commit; a missing branch starts at main.

        Returns:
            The commit, 40 hex digits.
        """
        repo = self._repo(repo_id, repo_type)
        if repo.ref(branch) is None:
            self.store.add_ref(repo, "heads", branch, "main")
        changes = [*((path, None) for path in delete), *self._stored(repo, files)]
        return self.store.commit(repo, branch, changes, message, repo.namespace).id

    def tag(self, repo_id: str, name: str, revision: str = "main", *, repo_type: str = "model") -> None:
        """Tag a revision."""
        self.store.add_ref(self._repo(repo_id, repo_type), "tags", name, revision)

    def pull_request(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path],
        *,
        message: str = "Update files",
        branch: str = "main",
        repo_type: str = "model",
        delete: Iterable[str] = (),
    ) -> int:
        """Open a pull request with one commit; n, for refs/pr/n."""
        repo = self._repo(repo_id, repo_type)
        changes = [*((path, None) for path in delete), *self._stored(repo, files)]
        return self.store.open_pull_request(repo, branch, changes, message, repo.namespace)[1]

    def files(self, repo_id: str, revision: str = "main", *, repo_type: str = "model") -> dict[str, bytes]:
        """Every file at a revision, read whole; .gitattributes is one of them."""
        entries = self._repo(repo_id, repo_type).at(revision).files
        return {path: self.store.blob(entry).read_bytes() for path, entry in entries.items()}

    def head(self, repo_id: str, revision: str = "main", *, repo_type: str = "model") -> str:
        """The commit a branch, tag or pull request is at."""
        return self._repo(repo_id, repo_type).at(revision).id

    def commits(self, repo_id: str, revision: str = "main", *, repo_type: str = "model") -> list[tuple[str, str]]:
        """(commit, message) of a branch, last first; the Hub's own "initial commit" ends the list."""
        return [(commit.id, commit.message) for commit in self._repo(repo_id, repo_type).log(revision)]

    def exists(self, repo_id: str, *, repo_type: str = "model") -> bool:
        """Whether there is such a repo."""
        return (repo_type, repo_id) in self.store.repos

    def fail(
        self,
        path: str,
        *,
        status: int | None = None,
        drop_after: int | None = None,
        drop_request: bool = False,
        alter: int | None = None,
        delay: float = 0.0,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        after: bool = False,
        redirect: str | None = None,
        promise: int | None = None,
        stall_after: int | None = None,
        drip: float = 0.0,
        first: int = 1,
        times: int | None = 1,
    ) -> None:
        """Fail some of the requests to come.

        Args:
            path: regular expression, searched for in "METHOD /path?query" as sent.
            status: answer with this status in place of doing anything.
            drop_after: close the connection after so many bytes of the reply's body, of which the header has promised
                all; what was asked for has been done. A HEAD gets no reply at all. Of a PUT, so many bytes of its own
                body are read, nothing is kept, and there is no reply.
            drop_request: close the connection without a reply, and without doing what was asked for.
            alter: change this byte of the reply's body (its remainder by the body's length), in the last bit.
            delay: wait so many seconds first.
            headers: of the reply with `status`, such as Retry-After.
            body: what the reply holds in place of its own content; what was asked for is done.
            after: do what was asked for before answering with `status`.
            redirect: send the client to this address; `{path}` in it is the path of the request.
            promise: the Content-Length, whatever the body has.
            stall_after: say nothing any more after so many bytes of the reply's body.
            drip: seconds between two tenths of the reply's body.
            first: the first matching request to fail, from 1.
            times: how many from there on; None for all.
        """
        failure = Failure(
            path=re.compile(path),
            status=status,
            drop_after=drop_after,
            drop_request=drop_request,
            alter=alter,
            delay=delay,
            headers=dict(headers or {}),
            body=body,
            after=after,
            redirect=redirect,
            promise=promise,
            stall_after=stall_after,
            drip=drip,
            first=first,
            times=times,
        )
        with self.store.lock:
            self._failures.append(failure)

    def clear(self) -> None:
        """Forget the log of requests and every failure asked for."""
        with self.store.lock:
            self.requests.clear()
            self._failures.clear()

    def note(self, method: str, path: str, asked_range: str | None) -> Failure | None:
        """Log a request, and say how it is to fail; called by the server."""
        with self.store.lock:
            self.requests.append(Request(method, path, asked_range))
            striking = [failure for failure in self._failures if failure.strikes(f"{method} {path}")]
        return striking[0] if striking else None

    def _repo(self, repo_id: str, repo_type: str) -> Repo:
        return self.store.repos[repo_type, repo_id]

    def _stored(self, repo: Repo, files: Mapping[str, bytes | Path]) -> list[tuple[str, Entry]]:
        entries = []
        for path, content in files.items():
            if isinstance(content, Path):
                with content.open("rb") as file:
                    entry = self.store.add_blob(file, content.stat().st_size)
            else:
                entry = self.store.add_bytes(content)
            entries.append((path, self.store.keep(repo, path, entry)))
        return entries
