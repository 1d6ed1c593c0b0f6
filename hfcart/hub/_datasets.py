"""Datasets on the Hub: pinned to a commit; a small file read; what the failures of the datasets client mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub import errors as client
from huggingface_hub.utils import build_hf_headers, httpx  # type: ignore[attr-defined]

from hfcart.addresses import clean_errors
from hfcart.errors import CorruptFileError, HfcartError
from hfcart.hub._calls import API, call, meaning
from hfcart.hub._http import GaveUp, tries_of
from hfcart.hub._read import _COMMIT, split_ref
from hfcart.patience import READ_TIMEOUT

T = TypeVar("T")


@dataclass(frozen=True)
class PinnedDataset:
    """A dataset repo at one commit: `user/name`, what was asked for (None: main), and 40 hex digits."""

    repo: str
    revision: str | None
    commit: str

    @property
    def page(self) -> str:
        """Where people look at it."""
        return f"{constants.ENDPOINT}/datasets/{self.repo}"


def cache_folder() -> Path:
    """Where the client keeps what it has downloaded."""
    return Path(constants.HF_HUB_CACHE)


def pin_dataset(ref: str) -> PinnedDataset:
    """Resolve `user/name` or `user/name@revision` to a commit, by one request.

    Raises:
        UsageError: `ref` has another form.
        RepoNotFoundError, RevisionNotFoundError, AccessError: it cannot be seen.
        HubError: the Hub is down, slow or limiting, try after try.
    """
    repo, revision = split_ref(ref)

    def ask() -> str:
        found = API.dataset_info(repo, revision=revision, timeout=READ_TIMEOUT).sha
        if not isinstance(found, str) or not _COMMIT.fullmatch(found):
            raise ValueError("no commit")
        return found

    return PinnedDataset(repo, revision, call(f"Resolving the dataset {ref}", ask, repo=f"datasets/{repo}"))


def read_dataset_file(dataset: PinnedDataset, path: str, limit: int = 1 << 20) -> bytes | None:
    """A whole small file of the pinned commit; None if the commit has none.

    Raises:
        CorruptFileError: it has more than `limit` bytes.
        SourceError, HubError: as for `pin_dataset`.
    """
    what = f"Reading {path} of the dataset {dataset.repo}"
    url = hf_hub_url(dataset.repo, path, repo_type="dataset", revision=dataset.commit)

    def ask() -> bytes | None:
        body = bytearray()
        headers = build_hf_headers(library_name="hfcart")
        with get_session().stream("GET", url, headers=headers, timeout=READ_TIMEOUT, follow_redirects=True) as response:
            try:
                hf_raise_for_status(response)
            except client.EntryNotFoundError:
                return None
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > limit:
                    raise CorruptFileError(f"{what}: it has more than {limit:,} bytes.")
        return bytes(body)

    return call(what, ask, repo=f"datasets/{dataset.repo}")


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
