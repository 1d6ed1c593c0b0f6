"""Publishing a finished folder: asked for leave before the work, done in one commit, safe to repeat."""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import os
import shlex
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    constants,
    get_session,
    get_token,
    hf_raise_for_status,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
)

from hfcart.errors import (
    CorruptFileError,
    HfcartError,
    HubError,
    PublishError,
    RepoNotFoundError,
    UsageError,
    next_step,
)
from hfcart.hub._calls import API, CLIENT_ERRORS, call
from hfcart.hub._fetch import read_small
from hfcart.hub._http import detail, request_of, root, status_of, work
from hfcart.hub._read import Snapshot, info, snapshot_of, split_ref
from hfcart.hub._tree import Kind, name_of, tree
from hfcart.quoting import plural
from hfcart.records.check import is_commit
from hfcart.records.file_names import AVERAGE, MAX_RECORD, RECORD, SPACE_RECORD
from hfcart.system.addresses import without_queries

# What a new repo holds.
THE_HUBS_OWN: dict[Kind, set[str]] = {"model": {".gitattributes"}, "space": {".gitattributes", "README.md"}}
# By which file, with which fields, hfcart knows what it published.
_OURS: dict[Kind, tuple[str, set[str]]] = {
    "model": (RECORD, {"recipe", "method", "sources", "tensors"}),
    "space": (SPACE_RECORD, {"towers", "base", "prompts"}),
}
DOTTED = (".gitattributes", ".eval_results")  # the only names with a leading dot that are published
# What from_pretrained, of any framework, may load in place of the new weights.
WEIGHTS = (
    *("*.safetensors", "pytorch_model*.bin", "model*.bin", "adapter_model.bin", "*.pt", "*.pth", "*.ckpt"),
    *("tf_model*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.gguf", "*.index.json", "adapter_config.json"),
    # A tokenizer belongs to the text tower beside which it lay.
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "processor_config.json"),
    # What describes weights of one library's form: a merge is published in one of two.
    *("config.json", "preprocessor_config.json", "open_clip_config.json", "open_clip_pytorch_model.bin"),
)
# What hfcart writes of an evaluation: it is of one set of weights.
RESULT_FILES = ("results.json", "results/confusion-*.csv", ".eval_results/hfcart-*.yaml", "figures/accuracy.png")
_MAKE_PRIVATE = f"Make it private at {constants.ENDPOINT}/{{}}/settings, or choose another name."
REFUSED = range(400, 500)  # statuses that say the commit was not made, but for these:
DOUBTFUL = (408, 409, 412, 429)
# What hfcart writes of one merge or fine-tuning beside its weights; in a repo of somebody else's it may be theirs.
OURS = (
    *("recipe.yaml", "results/adaptation.csv", "results/training.csv"),
    *("figures/energy.png", "figures/similarity.png", "figures/coefficients.png", "figures/directions.png"),
    *("figures/entropy.png", "figures/agreement.png", "figures/training.png", "tasks/*.yaml"),
)


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


@contextmanager
def _publishing(again: str | None = None) -> Iterator[None]:
    """Make every HfcartError but a UsageError a PublishError; `again` ends its hint."""
    try:
        yield
    except UsageError:
        raise
    except HfcartError as error:
        raise PublishError(
            error.message, hint=next_step(error.hint, again) if again else error.hint
        ) from error.__cause__


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
    with _publishing():
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


def publish(
    folder: Path,
    target: Target,
    *,
    private: bool,
    create_pr: bool,
    message: str,
    overwrite: bool = False,
    leave: Collection[str] = (),
    instead: Mapping[str, bytes] | None = None,
) -> Published:
    """Publish a folder in one commit on top of `target.head`; create the repo if need be. Safe to repeat.

    The same commit deletes weight files and indexes of the target that the folder lacks (an old
    model.safetensors beside new shards is what from_pretrained would load), hfcart's results of an older
    evaluation, which the Hub would show for the new weights, and whatever else hfcart wrote of what was there.

    Args:
        folder: its regular files are published; no links, and nothing with a leading dot but DOTTED.
        target: from `check_target`.
        private: for a repo that has to be created.
        create_pr: open a pull request, and leave main alone.
        message: of the commit; its first line is the title.
        overwrite: only for the command that a failure suggests.
        leave: files of the folder that are not published.
        instead: path -> content, in place of the folder's file of that name or beside its files.

    Raises:
        PublishError: refused, failed, or the target has changed since it was checked. The folder is untouched.
    """
    again = push_command(folder, target.repo, private, create_pr, overwrite)
    again = f"The folder is intact; to try again, run: {again}"
    folder = folder.resolve()
    with _publishing(again), _quiet_client():
        files: dict[str, bytes | Path] = {path: folder / path for path in publishable(folder) if path not in leave}
        files |= instead or {}
        if not files:
            raise PublishError(f"{folder.name} holds no files to publish.")
        head, there, kind = target.head, set(target.files), target.kind
        if head is None:
            head, there = _create(target.repo, kind, private), THE_HUBS_OWN[kind]
        local = call(f"Reading {folder.name}", lambda: {path: digests(content) for path, content in files.items()})
        url = f"{constants.ENDPOINT}/{name_of(kind, target.repo)}"
        gone = sorted(path for path in there - local.keys() if _is_stale(path, target))
        if not gone and _holds(target.repo, head, local, kind=kind):
            return Published(url, head, None, changed=False)
        added = call(f"Reading {folder.name}", lambda: [CommitOperationAdd(*item) for item in files.items()])
        operations: list[CommitOperationAdd | CommitOperationDelete] = [*added, *map(CommitOperationDelete, gone)]
        commit = _Commit(target.repo, head, operations, local, message, create_pr, kind)
        made, pull_request = call(commit.what, commit.send, repo=name_of(kind, target.repo))
        return Published(url, made, pull_request)


def push_command(folder: Path, repo: str, private: bool, create_pr: bool, overwrite: bool) -> str:
    """The command that publishes a folder, to be typed."""
    flags = " --private" * private + " --create-pr" * create_pr + " --overwrite" * overwrite
    return f"hfcart push {shlex.quote(str(folder))} --push-to {repo}{flags}"


def publishable(folder: Path) -> list[str]:
    """What of a folder is published, relative to it, sorted."""
    found = []
    for place, folders, names in os.walk(folder):
        here = Path(place).relative_to(folder)
        folders[:] = [name for name in folders if not name.startswith(".") or (here / name).as_posix() in DOTTED]
        for path in [here / name for name in names if not name.startswith(".") or (here / name).as_posix() in DOTTED]:
            if (folder / path).is_file() and not (folder / path).is_symlink():
                found.append(path.as_posix())
    return sorted(found)


def _is_stale(path: str, target: Target) -> bool:
    """Whether a file may not stay beside new weights that do not bring it: it is of the weights that were there."""
    name, ours = path.rsplit("/", 1)[-1], target.made_by_hfcart
    if target.kind == "space":  # whatever else somebody put there is no model of the app's
        return ours and path.startswith(f"{AVERAGE}/")
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in WEIGHTS) or any(
        fnmatch.fnmatchcase(path, pattern) for pattern in (*RESULT_FILES, *(OURS if ours else ()))
    )


def digests(content: bytes | Path) -> tuple[str, str]:
    """What the Hub knows a file by: its sha256 if LFS holds it, git's digest if not."""
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    lfs, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
        while chunk := file.read(1 << 20):
            lfs.update(chunk)
            git.update(chunk)
    return lfs.hexdigest(), git.hexdigest()


def _holds(
    repo: str, commit: str, local: dict[str, tuple[str, str]], gone: Collection[str] = (), kind: Kind = "model"
) -> bool:
    """Whether a commit holds all the local files as they are, and nothing of what is to go."""
    there = {entry["path"]: entry for entry in tree(repo, commit, kind)}
    for path, (lfs, git) in local.items():
        entry = there.get(path, {"oid": None})
        if (entry["lfs"]["oid"] != lfs) if entry.get("lfs") else (entry["oid"] != git):
            return False
    return not there.keys() & set(gone)


def _create(repo: str, kind: Kind, private: bool) -> str:
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


@dataclass
class _Commit:
    """One commit that may be sent several times, and happens once."""

    repo: str
    parent: str
    operations: list[CommitOperationAdd | CommitOperationDelete]
    local: dict[str, tuple[str, str]]
    message: str
    create_pr: bool
    kind: Kind = "model"
    known: set[str] | None = None  # pull requests that were there before

    @property
    def what(self) -> str:
        return f"Publishing to {self.repo}"

    @property
    def gone(self) -> list[str]:
        return [each.path_in_repo for each in self.operations if isinstance(each, CommitOperationDelete)]

    def send(self) -> tuple[str, str | None]:
        """The commit's id, and the page of the pull request if one was opened."""
        if self.create_pr and self.known is None:
            self.known = set(self.pull_requests())
        title, _, description = self.message.partition("\n")
        work.sent = False
        try:
            made = API.create_commit(
                self.repo,
                self.operations,
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
                complaints = _plain(str(error).partition("\n")[2])
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


@contextmanager
def _quiet_client() -> Iterator[None]:
    """No progress bars or warnings of the client's own."""
    bars = not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if bars:
            disable_progress_bars()
        try:
            yield
        finally:
            if bars:
                enable_progress_bars()


def validate_card(text: str) -> list[str]:
    """Ask the Hub whether it accepts a model card, as it stands (the client's own check writes the YAML anew).

    Returns:
        What it finds wrong; nothing for a good card.

    Raises:
        HubError: the Hub cannot be asked.
    """

    def ask() -> list[str]:
        body = {"content": text, "repoType": "model"}
        url = f"{constants.ENDPOINT}/api/validate-yaml"
        response = get_session().post(url, json=body, headers=build_hf_headers(library_name="hfcart"))
        if response.status_code == 400:
            return _complaints(response.text)
        hf_raise_for_status(response)
        return []

    return call("Checking the model card", ask)


def _complaints(answer: str) -> list[str]:
    try:
        return [_plain(str(entry["message"])) for entry in json.loads(answer)["errors"]]
    except (ValueError, KeyError, TypeError):
        return [_plain(answer)]


def _plain(text: str) -> str:
    return without_queries("".join(c if c.isprintable() else " " for c in text[:500])).strip()
