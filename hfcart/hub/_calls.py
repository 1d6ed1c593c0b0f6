"""Every call of the client goes through here: tried a bounded number of times, and its errors made hfcart's own.

The client retries some requests and lets others fail at once (a 503 on model_info, a dropped connection on a
commit). What it says is never quoted, as it may hold signed addresses: only statuses, methods, hosts and paths.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub import errors as client
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    httpx,
)

from hfcart.errors import (
    AGAIN,
    AccessError,
    HfcartError,
    HubError,
    OutputError,
    PublishError,
    RepoNotFoundError,
    RevisionNotFoundError,
    SourceError,
    UsageError,
    next_step,
)
from hfcart.hub._failures import GaveUp, asked_wait, detail, pause_after, root, status_of, tries_of
from hfcart.hub._http import pause, stopped, working
from hfcart.system.addresses import clean_errors
from hfcart.system.patience import MAX_WAIT, TRIES

T = TypeVar("T")

CLIENT_ERRORS = (
    *(GaveUp, httpx.HTTPError, httpx.InvalidURL, client.OIDCError, client.DeviceCodeError),
    *(OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError),
)
API = HfApi(library_name="hfcart")

_LOGIN = "run `hf auth login`, or set HF_TOKEN."
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # RFC 6750


def call(what: str, fn: Callable[[], T], *, repo: str = "", stop: threading.Event | None = None) -> T:
    """fn(), tried up to TRIES times while it fails in a way that may pass.

    Args:
        what: the work, as in "Resolving user/name"; begins every message.
        fn: a call of the client. HfcartErrors that it raises go straight through.
        repo: `user/name`, `datasets/user/name` or `spaces/user/name`; for messages.
        stop: set it to end a wait early and not try again.

    Raises:
        HfcartError: what the last try's error means.
        concurrent.futures.CancelledError: it failed, and `stop` was set.
    """
    with working(what, stop):
        attempt = 1
        while True:
            try:
                _check_token()
                return fn()
            except CLIENT_ERRORS as error:
                if stopped():
                    raise CancelledError from None
                wait = pause_after(error, attempt)
                if attempt == TRIES or wait is None:
                    clean_errors(error)
                    # The text of a LocalProtocolError may quote a header, hence the token: cut the chain.
                    cause = None if isinstance(root(error), httpx.LocalProtocolError) else error
                    raise meaning(what, error, repo, max(attempt, tries_of(error))) from cause
                pause(error, wait, attempt)
            attempt += 1


@contextmanager
def publishing(again: str | None = None) -> Iterator[None]:
    """No bars or warnings of the client's own, and every HfcartError but a UsageError a PublishError.

    Args:
        again: ends the error's hint.
    """
    bars = not are_progress_bars_disabled()
    try:
        with warnings.catch_warnings(action="ignore"):
            if bars:
                disable_progress_bars()
            yield
    except UsageError:
        raise
    except HfcartError as error:
        raise PublishError(
            error.message, hint=next_step(error.hint, again) if again else error.hint
        ) from error.__cause__
    finally:
        if bars:
            enable_progress_bars()


def is_offline() -> bool:
    """Whether the user has forbidden every request (HF_HUB_OFFLINE)."""
    return bool(constants.is_offline_mode())


def unreachable(error: HfcartError) -> bool:
    """Whether an error that `call` raised means that there is no network, or that none may be used."""
    below = None if error.__cause__ is None else root(error.__cause__)
    return isinstance(below, client.OfflineModeIsEnabled | httpx.ConnectError | httpx.ConnectTimeout)


def _check_token() -> None:
    if (token := get_token()) is None or _TOKEN.fullmatch(token):
        return
    place = "HF_TOKEN" if os.environ.get("HF_TOKEN") else f"the file {constants.HF_TOKEN_PATH}"
    raise AccessError(
        f"The token in {place} holds characters that no token has (a space, a quotation mark, an accent or the like).",
        hint=f"Copy it once more: {_LOGIN}",
    )


def meaning(what: str, error: BaseException, repo: str, tries: int = 1) -> HfcartError:
    """The HfcartError that a failure of the client means after so many tries."""
    error = root(error)
    status, page = status_of(error), f"{constants.ENDPOINT}/{repo}"
    name = repo.removeprefix("datasets/").removeprefix("spaces/")
    if isinstance(error, client.GatedRepoError):  # a RepositoryNotFoundError as well: it goes first
        return AccessError(
            f"{what}: {name} is gated, and this account has not been let in.",
            hint=f"Log in and accept the conditions at {page}, then {_LOGIN}",
        )
    if isinstance(error, client.RevisionNotFoundError):
        listed = f"Its branches and tags are listed at {page}/tree/main."
        return RevisionNotFoundError(f"{what}: {name} has no such revision.", hint=listed)
    if isinstance(error, client.EntryNotFoundError):
        return SourceError(f"{what}: the file is not there any more.", hint=f"Look at {page}/tree/main.")
    if status == 401 and get_token() is not None:
        return AccessError(
            f"{what}: the Hub does not accept the token ({detail(error)}).",
            hint="Run `hf auth login` for a new one. HF_TOKEN, where it is set, goes before the stored one.",
        )
    if isinstance(error, client.RepositoryNotFoundError):
        kind = {"datasets": "dataset", "spaces": "Space"}[repo.partition("/")[0]] if name != repo else "model repo"
        return RepoNotFoundError(
            f"{what}: there is no {kind} {name}, or it is private and this account may not see it.",
            hint=f"Check the spelling at {page}. If it is private, {_LOGIN}",
        )
    if status in (401, 403) or isinstance(error, client.OIDCError | client.DeviceCodeError):
        return AccessError(
            f"{what}: this account or its token may not do that ({detail(error)}).",
            hint=f"For a token that may, {_LOGIN}",
        )
    if isinstance(error, client.OfflineModeIsEnabled):
        return HubError(f"{what}: HF_HUB_OFFLINE is set.", hint="Unset it, or use local folders.")
    if isinstance(error, httpx.LocalProtocolError):
        return HubError(f"{what}: the request cannot be sent.", hint="Is the token one line of plain text?")
    if isinstance(error, OSError) and error.errno is not None and status is None:
        where = f" ({error.filename})" if error.filename else ""
        room = "Make room, or see to the permissions. HF_HOME says where the Hugging Face cache is."
        return OutputError(f"{what}: {os.strerror(error.errno)}{where}.", hint=room)
    tried = f" ({tries} tries)" if tries > 1 else ""
    if (asked_wait(error) or 0) > MAX_WAIT:
        return HubError(f"{what}: {detail(error)}{tried}.", hint=f"Wait that long, {AGAIN}")
    return HubError(f"{what}: {detail(error)}{tried}.", hint=f"Check the network and {constants.ENDPOINT}, {AGAIN}")
