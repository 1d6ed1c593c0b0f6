"""Datasets on the Hub: pinned to a commit; a small file read; what the failures of the datasets client mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from huggingface_hub import constants
from huggingface_hub import errors as client
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from hfcart.errors import HfcartError, HubError
from hfcart.hub._assets import assets, write_whole
from hfcart.hub._calls import API, call, meaning, unreachable
from hfcart.hub._failures import GaveUp, tries_of
from hfcart.hub._fetch import read_small
from hfcart.hub._read import Snapshot, naming_what_is_kept, split_ref
from hfcart.hub._tree import kept, listing
from hfcart.records.check import is_commit
from hfcart.system.addresses import clean_errors
from hfcart.system.patience import READ_TIMEOUT

T = TypeVar("T")


@dataclass(frozen=True)
class PinnedDataset:
    """A dataset repo at one commit.

    Attributes:
        repo: `user/name`.
        revision: what was asked for, None for main.
        commit: 40 hex digits.
        remembered: the Hub cannot be reached, and this is the commit that the revision meant when it last was.
    """

    repo: str
    revision: str | None
    commit: str
    remembered: bool = False

    @property
    def page(self) -> str:
        """Where people look at it."""
        return f"{constants.ENDPOINT}/datasets/{self.repo}"


def cache_folder() -> Path:
    """Where the client keeps what it has downloaded."""
    return Path(constants.HF_HUB_CACHE)


def pin_dataset(ref: str) -> PinnedDataset:
    """Resolve `user/name` or `user/name@revision` to a commit: by one request, or none as `resolve` for models.

    Raises:
        UsageError: `ref` has another form.
        RepoNotFoundError, RevisionNotFoundError, AccessError: it cannot be seen.
        HubError: the Hub is down, slow or limiting, try after try.
    """
    repo, revision = split_ref(ref)
    if revision and is_commit(revision) and kept("dataset", repo, revision) is not None:
        return PinnedDataset(repo, revision, revision)

    def ask() -> str:
        found = API.dataset_info(repo, revision=revision, timeout=READ_TIMEOUT).sha
        if not isinstance(found, str) or not is_commit(found):
            raise ValueError("no commit")
        return found

    place = assets("refs") / f"datasets--{repo.replace('/', '--')}" / quote(revision or "main", safe="")
    try:
        with naming_what_is_kept("dataset", ref):
            commit = call(f"Resolving the dataset {ref}", ask, repo=f"datasets/{repo}")
    except HubError as error:
        # A task card names a branch, and cannot be told the commit by an option.
        last = _last_meant(place) if unreachable(error) else None
        if last is None:
            raise
        return PinnedDataset(repo, revision, last, remembered=True)
    write_whole(place, commit.encode())
    return PinnedDataset(repo, revision, commit)


def _last_meant(place: Path) -> str | None:
    try:
        commit = place.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return commit if is_commit(commit) else None


def dataset_files(dataset: PinnedDataset) -> Snapshot:
    """The files of a dataset's commit, to be fetched and proven as a model's are. Raises as `resolve` does."""
    files = listing("dataset", dataset.repo, dataset.commit)
    return Snapshot(dataset.repo, dataset.revision, dataset.commit, files, "dataset")


def read_dataset_file(dataset: PinnedDataset, path: str, limit: int = 1 << 20) -> bytes | None:
    """A whole small file of the pinned commit; None if the commit has none.

    Raises:
        CorruptFileError: it has more than `limit` bytes, or others than its commit lists.
        SourceError, HubError: as for `pin_dataset`.
    """
    return read_small(dataset_files(dataset), path, limit)


def check_access(dataset: PinnedDataset) -> None:
    """Ask whether the dataset may be read: what the Hub then answers tells more than the datasets client does.

    Raises:
        SourceError, HubError: as for `pin_dataset`.
    """
    page = f"datasets/{dataset.repo}"
    call(f"Opening the dataset {dataset.repo}", lambda: API.auth_check(dataset.repo, repo_type="dataset"), repo=page)


def call_datasets(what: str, dataset: PinnedDataset, fn: Callable[[], T]) -> T:
    """fn(), a call of the datasets client, tried again as every other call of the Hub.

    Raises:
        HfcartError: what the Hub's answer, found below the client's error, means.
        Exception: the client's own error, where the Hub has no part in it.
    """

    def attempt() -> T:
        try:
            return fn()
        except HfcartError:
            raise
        except Exception as error:
            raise (_answer_below(error) or _NotTheHub(error)) from error

    try:
        return call(what, attempt, repo=f"datasets/{dataset.repo}")
    except _NotTheHub as other:
        error = other.error
    raise error  # outside the handler, or it would become a cause of itself


def dataset_failure(what: str, dataset: PinnedDataset, error: Exception) -> HfcartError | None:
    """What an error of the datasets client means if an answer of the Hub, or the disk, is below it; else None."""
    below = _answer_below(error)
    clean_errors(error)
    return None if below is None else meaning(what, below, f"datasets/{dataset.repo}", tries_of(below))


class _NotTheHub(Exception):
    """Carries an error past the retries that are for the Hub's own."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _answer_below(error: BaseException) -> Exception | None:
    """The error that is about the Hub or the disk: the datasets client wraps those several times over."""
    chain = list(_chain(error))
    for kind in (GaveUp, client.HfHubHTTPError, httpx.HTTPError, client.OfflineModeIsEnabled, ConnectionError):
        for one in chain:
            # That a file which may be missing is missing (a README, a script) is what the client was handling.
            if isinstance(one, kind) and not isinstance(one, client.EntryNotFoundError):
                return one
    return next((one for one in chain if isinstance(one, OSError) and one.errno is not None), None)


def _chain(error: BaseException | None) -> Iterator[Exception]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, Exception):
            yield error
        error = error.__cause__ or error.__context__
