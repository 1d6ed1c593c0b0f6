"""Files put into a repo in one commit, which may be sent several times and happens once."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants

from hfcart.errors import HfcartError, PublishError
from hfcart.hub._calls import API, CLIENT_ERRORS, call, publishing
from hfcart.hub._card import plain
from hfcart.hub._failures import detail, request_of, root, status_of
from hfcart.hub._http import work
from hfcart.hub._read import info
from hfcart.hub._tree import Kind, name_of, tree
from hfcart.records.check import is_commit

REFUSED = range(400, 500)  # statuses that say the commit was not made, but for these:
DOUBTFUL = (408, 409, 412, 429)


@dataclass(frozen=True)
class Published:
    """What a push led to.

    Attributes:
        url: page of the repo.
        commit: the commit made, or the head that held exactly these files already.
        pull_request: page of the pull request, if one was opened.
        changed: False if there was nothing to change.
    """

    url: str
    commit: str
    pull_request: str | None
    changed: bool = True

    @property
    def revision(self) -> str | None:
        """Where it can be read until it is merged: `refs/pr/N` of a pull request, None for main."""
        return f"refs/pr/{self.pull_request.rstrip('/').rpartition('/')[2]}" if self.pull_request else None


def publish_files(
    repo: str,
    head: str,
    files: Mapping[str, bytes | Path],
    *,
    message: str,
    delete: Collection[str] = (),
    create_pr: bool = False,
    kind: Kind = "model",
    called: str = "the files",
    again: str | None = None,
) -> Published:
    """Write files in one commit on top of `head`, and delete those named; all the rest stays. Safe to repeat.

    Args:
        repo: `user/name`.
        head: commit of main that the files were made for.
        files: path -> content, or where it lies.
        message: of the commit; its first line is the title.
        delete: paths that go in the same commit; they must be there.
        create_pr: open a pull request, and leave main alone.
        kind: of the repo.
        called: what messages call the files.
        again: how to try again, for the hint of an error.

    Raises:
        PublishError: refused, failed, or main is not at `head` any more.
    """
    name = name_of(kind, repo)
    with publishing(again):
        local = call(f"Reading {called}", lambda: {path: digests(content) for path, content in files.items()})
        if not delete and _holds(repo, head, local, delete, kind):
            return Published(f"{constants.ENDPOINT}/{name}", head, None, changed=False)
        added = call(f"Reading {called}", lambda: [CommitOperationAdd(*item) for item in sorted(files.items())])
        commit = _Commit(repo, head, added, local, sorted(delete), message, create_pr, kind)
        made, pull_request = call(commit.what, commit.send, repo=name)
        return Published(f"{constants.ENDPOINT}/{name}", made, pull_request)


def digests(content: bytes | Path) -> tuple[str, str]:
    """What the Hub knows a file by: its sha256 if LFS holds it, git's digest if not."""
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    lfs, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
        while chunk := file.read(1 << 20):
            lfs.update(chunk)
            git.update(chunk)
    return lfs.hexdigest(), git.hexdigest()


def _holds(repo: str, commit: str, local: dict[str, tuple[str, str]], gone: Collection[str], kind: Kind) -> bool:
    """Whether a commit holds all the local files as they are, and nothing of what is to go."""
    there = {entry["path"]: entry for entry in tree(repo, commit, kind)}
    for path, (lfs, git) in local.items():
        entry = there.get(path, {"oid": None})
        if (entry["lfs"]["oid"] != lfs) if entry.get("lfs") else (entry["oid"] != git):
            return False
    return not there.keys() & set(gone)


@dataclass
class _Commit:
    """One commit that may be sent several times, and happens once."""

    repo: str
    parent: str
    added: list[CommitOperationAdd]  # what of them is uploaded already is marked in them
    local: dict[str, tuple[str, str]]
    gone: Collection[str]
    message: str
    create_pr: bool
    kind: Kind
    known: set[str] | None = None  # pull requests that were there before

    @property
    def what(self) -> str:
        return f"Publishing to {self.repo}"

    def send(self) -> tuple[str, str | None]:
        """The commit's id, and the page of the pull request if one was opened."""
        if self.create_pr and self.known is None:
            self.known = set(self.pull_requests())
        title, _, description = self.message.partition("\n")
        work.sent = False
        try:
            made = API.create_commit(
                self.repo,
                [*self.added, *map(CommitOperationDelete, self.gone)],
                commit_message=title,
                commit_description=description.strip(),
                parent_commit=self.parent,
                create_pr=self.create_pr,
                repo_type=self.kind,
            )
            if not is_commit(made.oid):
                raise ValueError("no commit")
            return made.oid, self.page(str(made.pr_num)) if self.create_pr else None
        except CLIENT_ERRORS as error:
            if str(error).startswith("Invalid metadata in README.md"):
                complaints = plain(str(error).partition("\n")[2])
                raise PublishError(f"{self.what}: the Hub refuses the card's front matter: {complaints}") from error
            if work.sent and (found := self.made(error)) is not None:
                return found
            raise

    def made(self, error: Exception) -> tuple[str, str | None] | None:
        """The commit or pull request that was made although its answer is an error; None if none was."""
        status, sent = status_of(root(error)), request_of(root(error))[0] == "POST"  # not where it was redirected to
        if sent and status in REFUSED and status not in DOUBTFUL:
            return None
        look = self.proposed if self.create_pr else self.landed
        try:
            if (found := look()) is not None:
                return found
        except PublishError:
            raise
        except HfcartError:  # the answer to the commit is what the user should hear of
            found = None
        # Unlike a second commit on main, a second pull request would be taken.
        if self.create_pr and status not in (412, 429, 503):
            raise PublishError(
                f"{self.what}: {detail(error)}; the pull request may have been opened.",
                hint=f"Look at {self.page('')} whether it is there.",
            ) from error
        return None

    def landed(self) -> tuple[str, None] | None:
        """The head of main if the commit led to it, None if main has not moved."""
        head = str(info(self.repo, self.kind).sha)
        if head == self.parent:
            return None
        if _holds(self.repo, head, self.local, self.gone, self.kind):
            return head, None
        moved = f"main was at {self.parent[:12]}, now it is at {head[:12]}"
        raise PublishError(f"{self.what}: it has changed since it was checked; {moved}.")

    def proposed(self) -> tuple[str, str] | None:
        """Commit and page of a new pull request with exactly these files, None if there is none."""
        for number, head in self.pull_requests().items():
            if number not in (self.known or ()) and _holds(self.repo, head, self.local, self.gone, self.kind):
                return head, self.page(number)
        return None

    def pull_requests(self) -> dict[str, str]:
        """Commit by number."""

        def ask() -> dict[str, str]:
            found = API.list_repo_refs(self.repo, repo_type=self.kind, include_pull_requests=True).pull_requests or []
            return {ref.ref.removeprefix("refs/pr/"): ref.target_commit for ref in found}

        return call(f"Listing the pull requests of {self.repo}", ask, repo=name_of(self.kind, self.repo))

    def page(self, number: str) -> str:
        return f"{constants.ENDPOINT}/{name_of(self.kind, self.repo)}/discussions/{number}".rstrip("/")
