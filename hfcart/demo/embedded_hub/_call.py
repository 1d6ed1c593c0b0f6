"""A request as the embedded Hub's addresses see it, who may do what with it, and the reply."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from hfcart.demo.embedded_hub._repo import Refusal, Repo, User
from hfcart.demo.embedded_hub._store import Store

LINE_LIMIT = 64 << 20


class Body(Protocol):
    """The body of a request, read in pieces."""

    def read(self, size: int = ..., /) -> bytes:
        """Up to `size` bytes; empty at the end."""

    def readline(self, limit: int = ..., /) -> bytes:
        """One line of up to `limit` bytes; empty at the end."""


@dataclass(frozen=True)
class Reply:
    """What goes back: `content`, or `length` bytes of the file at `path` from byte `start`."""

    status: int = 200
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    path: Path | None = None
    start: int = 0
    length: int = 0

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return len(self.content) if self.path is None else self.length


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        store: what the Hub holds.
        url: the Hub's own address.
        method: GET, HEAD, POST, ...
        target: path and query as sent.
        headers: by lower-case name.
        body: the body, not read yet.
        page_size: entries on one page of a listing.
    """

    store: Store
    url: str
    method: str
    target: str
    headers: dict[str, str]
    body: Body
    page_size: int

    @property
    def segments(self) -> list[str]:
        """The path, split at its slashes and then decoded: a revision is one segment, slashes and all."""
        return [unquote(part) for part in urlsplit(self.target).path.strip("/").split("/")]

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's values by name."""
        return parse_qs(urlsplit(self.target).query)

    @property
    def expand(self) -> list[str]:
        """The fields that are asked for in place of all."""
        return [*self.query.get("expand", []), *self.query.get("expand[]", [])]

    def flag(self, name: str) -> bool:
        """Whether the query says yes to `name`."""
        return self.query.get(name, [""])[-1].lower() in ("1", "true")

    def json(self) -> dict[str, Any]:
        """The body as a JSON object."""
        try:
            value = json.loads(self.body.read(LINE_LIMIT) or b"{}")
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Refusal(400, "The body is not a JSON object.")
        return value

    def user(self) -> User | None:
        """Who asks; None for an anonymous request.

        Raises:
            Refusal: the token is nobody's.
        """
        token = self.headers.get("authorization", "")
        if not token:
            return None
        user = self.store.users.get(token.removeprefix("Bearer ").strip())
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def repo(self, kind: str, repo_id: str) -> Repo:
        """A repo this user may know of.

        Raises:
            Refusal: there is none; the Hub does not say whether it is missing or private.
        """
        user = self.user()
        repo = self.store.find(kind, repo_id)
        if repo is None or (repo.private and not may_read(user, repo)):
            status, message = (401, "Invalid username or password.") if user is None else (404, "Repository not found")
            raise Refusal(status, message, "RepoNotFound")
        return repo

    def writer(self, repo: Repo) -> User:
        """Who asks, if they may write to `repo`."""
        user = self.signed_in()
        if repo.namespace not in user.namespaces or user.role != "write":
            raise Refusal(403, f"Forbidden: this token has no write access to {repo.type} {repo.id}")
        return user

    def signed_in(self) -> User:
        """Who asks, if anybody."""
        user = self.user()
        if user is None:
            # The client takes a 401 for a missing repo whatever the code says, but over plain http only with the code.
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        return user

    def contributor(self, repo: Repo, revision: str, *, opens_pull_request: bool) -> User:
        """Who asks, if they may commit: anybody may open a pull request, and go on with their own."""
        user = self.signed_in()
        if opens_pull_request or repo.authors.get(revision) == user.name:
            return user
        return self.writer(repo)

    def _number(self, name: str, default: int) -> int:
        text = self.query.get(name, [str(default)])[0]
        if not re.fullmatch("[0-9]{1,9}", text):
            raise Refusal(400, f'"{name}" must be a number')
        return int(text)

    def page(self, items: list[Any]) -> Reply:
        """One page of a listing, of `limit` entries but never more than a page has; the next one's address in Link."""
        limit, start = min(self._number("limit", self.page_size), self.page_size), self._number("cursor", 0)
        headers = {}
        if start + limit < len(items):
            query = {**self.query, "cursor": [str(start + limit)]}
            address = f"{self.url}{urlsplit(self.target).path}?{urlencode(query, doseq=True)}"
            headers["Link"] = f'<{address}>; rel="next"'
        return reply_json(items[start : start + limit], headers=headers)


def reply_json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    """A JSON reply."""
    content = json.dumps(value).encode()
    return Reply(status, content, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def may_read(user: User | None, repo: Repo) -> bool:
    """Whether a private or gated repo is open to this user."""
    return user is not None and (repo.namespace in user.namespaces or user.name in repo.granted)


def check_gate(call: Call, repo: Repo) -> None:
    """Stop whoever has not been let through the gate of a gated repo."""
    user = call.user()
    if repo.gated and not may_read(user, repo):
        status = 401 if user is None else 403
        raise Refusal(status, f"Access to {repo.type} {repo.id} is restricted. Ask for access first.", "GatedRepo")
