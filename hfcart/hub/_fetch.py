"""Whole files of a pinned commit in the Hugging Face cache, each proven against the digest that its tree lists.

The client checks nothing but sizes, and its cache hands out what it once took in again and again.
"""

from __future__ import annotations

import errno
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import cache
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import silent_tqdm  # type: ignore[attr-defined]

from hfcart.errors import CorruptFileError
from hfcart.hub._calls import call, is_offline
from hfcart.hub._http import notify
from hfcart.hub._read import Snapshot, download_command, naming_how_to_fetch
from hfcart.hub._tree import RepoFile, name_of

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
# (path, digest) -> what the file's status was when it was proven: it is not read again while that stays.
_PROVEN: dict[tuple[Path, str], tuple[int, ...]] = {}


def read_small(snapshot: Snapshot, path: str, limit: int = 1 << 20) -> bytes | None:
    """A whole small file at the pinned commit, kept in the Hugging Face cache; None if the commit has none.

    Raises:
        CorruptFileError: it has more than `limit` bytes; or as for `fetch`.
        SourceError, HubError, OutputError: as for `fetch`.
    """
    file = snapshot.files.get(path)
    if file is None:
        return None
    if file.size > limit:
        raise CorruptFileError(
            f"{path} of {_named(snapshot)} has {file.size:,} bytes, expected at most {limit:,}.",
            hint="Name a revision where it is smaller: user/name@revision.",
        )
    return fetch(snapshot, path).read_bytes()


def cached(snapshot: Snapshot, path: str) -> Path | None:
    """Where this file of the pinned commit is on this machine, proven; None if it is not."""
    file = snapshot.files[path]
    return next((found for found in _copies(snapshot, path) if wrong_with(found, file) is None), None)


def wrong_with(path: Path, file: RepoFile) -> str | None:
    """What a copy of a file has in place of the size or the digest that its tree lists; None for a true copy."""
    try:
        status = path.stat()
        if status.st_size != file.size:
            return f"{status.st_size:,} bytes, expected {file.size:,}"
        seal = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if _PROVEN.get((path, file.digest)) == seal:
            return None
        found = file.digest_of(path)
    except OSError as error:
        return f"bytes that cannot be read ({error.strerror})"
    if found != file.digest:
        return f"the {'sha256' if file.sha256 else 'git digest'} {found[:12]}…, expected {file.digest[:12]}…"
    _PROVEN[path, file.digest] = seal
    return None


class _Silent(silent_tqdm):
    """Draws nothing. Having `update_transfer` tells the client to count a Xet download once, not twice."""

    total = 0

    def update_transfer(self, n: float) -> None:
        pass

    def set_postfix_str(self, *args: object, **kwargs: object) -> None:
        pass

    set_transfer_postfix_str = set_postfix_str


def fetch(
    snapshot: Snapshot,
    path: str,
    on_bytes: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> Path:
    """Have one file of the pinned commit in the Hugging Face cache, proven. Safe to call from several threads.

    What the cache holds of it, or what comes in, and is not what the pinned tree lists, is dropped, and fetched
    again once. Where the cache cannot be written, the file is kept for as long as this process lasts.

    Args:
        snapshot: the pinned repo.
        path: one of its files.
        on_bytes: told of every step, in bytes; negative when a try starts over. The steps add up to the size.
        stop: set it to give up at the next step.

    Returns:
        The file in the cache, of the size and the digest that the pinned tree says.

    Raises:
        concurrent.futures.CancelledError: `stop` was set.
        CorruptFileError: it came in with other bytes, twice.
        SourceError, HubError: as for `resolve`.
        OutputError: the cache is full.
    """
    file, seen = snapshot.files[path], 0
    if is_offline():
        # Nothing will be waited for: of several files that are not there, the first is always the one named.
        stop = None

    def step(count: int) -> None:
        nonlocal seen
        if stop is not None and stop.is_set():
            raise CancelledError
        seen += count
        if on_bytes is not None and count:
            on_bytes(count)

    class Steps(_Silent):
        def update(self, n: float | None = 1) -> None:
            step(int(n or 0))

    here = cached(snapshot, path) or _proven(snapshot, path, Steps, lambda: step(-seen), stop)
    step(file.size - seen)
    return here


def _proven(
    snapshot: Snapshot, path: str, bars: type[_Silent], restart: Callable[[], None], stop: threading.Event | None
) -> Path:
    file, name = snapshot.files[path], _named(snapshot)
    copies = _copies(snapshot, path)
    wrong = wrong_with(copies[0], file) if copies else None
    if wrong and is_offline():
        raise _corrupt(snapshot, path, f"the cache has {wrong}")

    def download() -> Path:
        restart()
        return _download(snapshot, path, bars, again=wrong is not None)

    for _ in range(1 if wrong else 2):
        if wrong:
            notify(f"{path} of {name} is not what its commit lists ({wrong}): it is dropped and fetched again.")
            _drop(snapshot, path)
        with naming_how_to_fetch(snapshot, path):
            found = call(f"Fetching {path} of {name}", download, repo=name_of(snapshot.kind, snapshot.repo), stop=stop)
        wrong = wrong_with(found, file)
        if wrong is None:
            return found
    _drop(snapshot, path)
    raise _corrupt(snapshot, path, f"it came with {wrong}, though it was fetched again")


def _named(snapshot: Snapshot) -> str:
    return {"model": "", "dataset": "the dataset ", "space": "the Space "}[snapshot.kind] + snapshot.repo


def _corrupt(snapshot: Snapshot, path: str, how: str) -> CorruptFileError:
    again = f"{download_command(snapshot, path)} --force-download"
    return CorruptFileError(
        f"{path} of {_named(snapshot)} is not what its commit lists: {how}.",
        hint=f"Something between here and {constants.ENDPOINT}, or a disk, changes it. To fetch it anew: {again}",
    )


def _copies(snapshot: Snapshot, path: str) -> list[Path]:
    """What this machine has of a file, whatever is in it: in the cache, and where a cache cannot be written."""
    places = [Path(constants.HF_HUB_CACHE), *([_elsewhere()] if _elsewhere.cache_info().currsize else [])]
    found = [
        try_to_load_from_cache(snapshot.repo, path, place, revision=snapshot.commit, repo_type=snapshot.kind)
        for place in places
    ]
    return [Path(one) for one in found if isinstance(one, str)]


@cache
def _elsewhere() -> Path:
    """A cache for this process alone."""
    _kept_open.append(folder := tempfile.TemporaryDirectory(prefix="hfcart-cache-"))
    return Path(folder.name)


_kept_open: list[tempfile.TemporaryDirectory[str]] = []  # they go when the process ends


def _download(snapshot: Snapshot, path: str, bars: type[_Silent], *, again: bool) -> Path:
    def into(place: str | Path) -> Path:
        found = hf_hub_download(
            snapshot.repo,
            path,
            revision=snapshot.commit,
            repo_type=snapshot.kind,
            library_name="hfcart",
            cache_dir=place,
            tqdm_class=bars,
            force_download=again,
        )
        return Path(found)

    try:
        return into(constants.HF_HUB_CACHE)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
    except ValueError as error:  # "force download failed", from what really happened
        raise error.__cause__ or error from None
    notify(f"{constants.HF_HUB_CACHE} cannot be written: {path} of {_named(snapshot)} is kept for this run only.")
    return into(_elsewhere())


def _drop(snapshot: Snapshot, path: str) -> None:
    """Take a broken file out of the cache: where a link to it lies, and the bytes that other commits may link to."""
    for copy in _copies(snapshot, path):
        with suppress(OSError):
            target = copy.resolve()
            copy.unlink()
            # <repo>/snapshots/<commit>/<path> is a link to <repo>/blobs/<digest>
            if target.parent == (copy.parents[path.count("/") + 2] / "blobs").resolve():
                target.unlink()
