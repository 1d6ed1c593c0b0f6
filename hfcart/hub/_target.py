"""A repo to publish to: asked for leave before the work, and created once it is needed."""

from __future__ import annotations

import json
from dataclasses import dataclass

from huggingface_hub import constants, get_token

from hfcart.errors import CorruptFileError, HfcartError, HubError, PublishError, RepoNotFoundError, UsageError
from hfcart.hub._calls import API, call, publishing
from hfcart.hub._fetch import read_small
from hfcart.hub._read import Snapshot, info, snapshot_of, split_ref
from hfcart.hub._tree import Kind, name_of
from hfcart.quoting import plural
from hfcart.records.file_names import MAX_RECORD, RECORD, SPACE_RECORD

# What a new repo holds.
THE_HUBS_OWN: dict[Kind, set[str]] = {"model": {".gitattributes"}, "space": {".gitattributes", "README.md"}}
# By which file, with which fields, hfcart knows what it published.
_OURS: dict[Kind, tuple[str, set[str]]] = {
    "model": (RECORD, {"recipe", "method", "sources", "tensors"}),
    "space": (SPACE_RECORD, {"towers", "base", "prompts"}),
}
_MAKE_PRIVATE = f"Make it private at {constants.ENDPOINT}/{{}}/settings, or choose another name."


@dataclass(frozen=True)
class Target:
    """A repo to publish to, as it was before the work.

    Attributes:
        repo: `user/name`.
        exists: False if publishing will create it.
        head: commit of main, the one to build on; None if it does not exist.
        files: paths on main, sorted.
        record: main's hfcart.json (a Space's space.json), if it is in hfcart's format: a stranger's text beyond that.
        name: what the Hub calls the repo, which may have been renamed since.
        kind: a repo of a model, or a Space.
    """

    repo: str
    exists: bool
    head: str | None
    files: tuple[str, ...]
    record: bytes | None = None
    name: str = ""
    kind: Kind = "model"

    @property
    def made_by_hfcart(self) -> bool:
        """Whether main holds a merge, a fine-tuning or a Space of hfcart's."""
        return self.record is not None


def check_target(repo: str, *, private: bool, overwrite: bool, create_pr: bool = False, kind: Kind = "model") -> Target:
    """Find out, before the work, whether publishing to `repo` will be allowed.

    Args:
        repo: `user/name`.
        private: whether a public repo will not do.
        overwrite: whether content that hfcart did not make may be replaced.
        create_pr: whether it will be a pull request: anybody may open one, and it replaces nothing by itself.
        kind: model, or space.

    Raises:
        UsageError: `repo` has another form.
        PublishError: no token, one that is not valid, no write access, a public repo where a private one is
            wanted, content that hfcart did not make; or the Hub does not answer.
    """
    if split_ref(repo)[1] is not None:
        raise UsageError(f"{repo} names a revision; a push goes to main.", hint=f"Write {repo.partition('@')[0]}.")
    with publishing():
        if call("Looking for a token", get_token) is None:
            raise PublishError(
                f"Publishing to {repo} needs a token, and there is none.",
                hint="Run `hf auth login`, or set HF_TOKEN to a token that may write.",
            )
        namespaces = call("Checking the token", _namespaces, repo=repo)
        try:
            found = info(repo, kind)
        except RepoNotFoundError:
            _check_namespace(repo, namespaces)
            return Target(repo, False, None, (), kind=kind)
        if not create_pr:
            call(
                f"Checking write access to {repo}",
                lambda: API.auth_check(repo, repo_type=kind, write=True),
                repo=name_of(kind, repo),
            )
        if private and not found.private:
            raise PublishError(
                f"{repo} exists and is public; --private only makes a new repo private.",
                hint=_MAKE_PRIVATE.format(name_of(kind, repo)),
            )
        there = snapshot_of(repo, found, kind)
        record = _record_of(there)
        if not (record or overwrite or create_pr) and there.files.keys() - THE_HUBS_OWN[kind]:
            raise PublishError(
                f"{repo} exists, and hfcart did not make what it holds ({plural(len(there.files), 'file')}).",
                hint=f"Choose another name, or replace its {kind} with --overwrite.",
            )
        return Target(repo, True, there.commit, tuple(sorted(there.files)), record, there.name, kind)


def _namespaces() -> list[str]:
    """The user and organizations under which the token may create repos, [] if it may only read."""
    account = API.whoami()
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        return []
    orgs = [str(org["name"]) for org in account.get("orgs", []) if org.get("roleInOrg") not in ("read", "no_access")]
    return [str(account["name"]), *orgs]


def _check_namespace(repo: str, namespaces: list[str]) -> None:
    if repo.partition("/")[0].lower() not in [name.lower() for name in namespaces]:
        allowed = f"only under {', '.join(namespaces)}" if namespaces else "nowhere: its token is read-only"
        raise PublishError(
            f"There is no repo {repo} that this account can see, and it may create one {allowed}.",
            hint="Choose a name there, or run `hf auth login` with a token that may write.",
        )


def _record_of(there: Snapshot) -> bytes | None:
    """The hfcart.json of a repo, or a Space's space.json, if it is what hfcart writes as far as its keys tell."""
    name, fields = _OURS[there.kind]
    try:
        data = read_small(there, name, MAX_RECORD)
        record = json.loads(data or b"null")
    except (ValueError, RecursionError, CorruptFileError):
        return None
    ours = isinstance(record, dict) and type(record.get("format")) is int and fields <= record.keys()
    return data if ours else None


def create(repo: str, kind: Kind, private: bool) -> str:
    """Create the repo, in case it is not there. Returns the commit of its main."""
    sdk = "gradio" if kind == "space" else None

    def create() -> None:
        # Without a wish of the user's, an organization's own default decides.
        API.create_repo(repo, repo_type=kind, space_sdk=sdk, private=private or None, exist_ok=True)

    try:
        call(f"Creating {repo}", create, repo=name_of(kind, repo))
    except HubError as error:  # which may be about the answer alone
        try:
            found = info(repo, kind)
        except HfcartError:
            raise error from error.__cause__
        if private and not found.private:
            raise PublishError(
                f"{repo} was created, and is public.", hint=_MAKE_PRIVATE.format(name_of(kind, repo))
            ) from error
    there = snapshot_of(repo, info(repo, kind), kind)
    if there.files.keys() - THE_HUBS_OWN[kind]:
        raise PublishError(f"{repo} did not exist when it was checked, and now holds somebody's files.")
    return there.commit
