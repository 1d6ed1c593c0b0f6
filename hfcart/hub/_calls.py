"""Every call of the client goes through here: tried a bounded number of times, and its errors made hfcart's own.

The client retries some requests and lets others fail at once (a 503 on model_info, a dropped connection on a
commit). What it says is never quoted, as it may hold signed addresses: only statuses, methods, hosts and paths.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_session, get_token
from huggingface_hub import errors as client
from huggingface_hub.utils import httpx, parse_ratelimit_headers  # type: ignore[attr-defined]

from hfcart.errors import (
    AccessError,
    HfcartError,
    HubError,
    OutputError,
    RepoNotFoundError,
    RevisionNotFoundError,
    SourceError,
)

T = TypeVar("T")


def _seconds(text: str | None, default: float) -> float:
    try:
        return max(0.0, float(text or default))
    except ValueError:
        return default


TRIES = 4
RETRY_BASE = _seconds(os.environ.get("HFCART_RETRY_BASE"), 1.0)  # seconds before the second try; doubles with each
MAX_WAIT = 60.0  # seconds, however long a Retry-After asks for
READ_TIMEOUT = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)  # seconds of silence
WRITE_TIMEOUT = 12 * READ_TIMEOUT  # a commit of many files may take its time

CLIENT_ERRORS = (
    *(httpx.HTTPError, httpx.InvalidURL, client.OIDCError, client.DeviceCodeError),
    *(OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError),
)
API = HfApi(library_name="hfcart")

_LOGIN = "run `hf auth login`, or set HF_TOKEN."
_notify: Callable[[str], None] = lambda text: None  # noqa: E731


class _ClientLog(logging.Handler):
    """The client's own warnings (its retries), without the queries of signed addresses."""

    def emit(self, record: logging.LogRecord) -> None:
        _notify("The Hub client: " + re.sub(r"\?\S*", "", record.getMessage()).replace("\n", " "))


def set_notifier(notify: Callable[[str], None]) -> None:
    """Send every message about waiting and trying again to `notify`, from any thread; the client's warnings too."""
    global _notify
    _notify = notify
    logging.getLogger("huggingface_hub").handlers = [_ClientLog()]


def call(what: str, fn: Callable[[], T], *, repo: str = "", stop: threading.Event | None = None) -> T:
    """fn(), tried up to TRIES times while it fails in a way that may pass.

    Args:
        what: the work, as in "Resolving user/name"; begins every message.
        fn: a call of the client. HfcartErrors that it raises go straight through.
        repo: `user/name`, or `datasets/user/name`; for messages.
        stop: set it to end a wait early and not try again.

    Raises:
        HfcartError: what the last try's error means.
    """
    attempt = 1
    while True:
        session = get_session()
        if session.timeout.read is None:  # the client's default: wait for ever
            session.timeout = httpx.Timeout(WRITE_TIMEOUT, connect=READ_TIMEOUT)
        try:
            return fn()
        except CLIENT_ERRORS as error:
            wait = pause_after(error, attempt)
            if attempt == TRIES or wait is None or (stop is not None and stop.is_set()):
                # The text of a LocalProtocolError may quote a header, hence the token: cut the chain.
                cause = None if isinstance(root(error), httpx.LocalProtocolError) else error
                raise meaning(what, error, repo, attempt) from cause
            _notify(f"{what}: {detail(error)}; trying again in {wait:g} s (try {attempt + 1} of {TRIES})")
        if stop is None:
            time.sleep(wait)
        else:
            stop.wait(wait)
        attempt += 1


def root(error: BaseException) -> BaseException:
    """What really happened, below "neither on the Hub nor in the cache" and "error while uploading"."""
    while isinstance(error, client.LocalEntryNotFoundError | RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def status_of(error: BaseException) -> int | None:
    """The HTTP status the Hub answered with, None if it did not."""
    return error.response.status_code if isinstance(error, client.HfHubHTTPError) else None


def request_of(error: BaseException) -> tuple[str, str, str]:
    """Method, host and path (never the query, which may be signed) of the request that failed, or empty texts."""
    try:
        # HfHubHTTPError forgets its own `request` while it is made.
        request = error.response.request if isinstance(error, client.HfHubHTTPError) else error.request  # type: ignore[attr-defined]
        return request.method, request.url.host, request.url.path
    except (AttributeError, RuntimeError):
        return "", "", ""


def pause_after(error: BaseException, attempt: int) -> float | None:
    """Seconds to wait after the failure of try number `attempt`, None if trying again cannot help."""
    if isinstance(error, client.LocalEntryNotFoundError):
        return None  # the client has tried this request six times by itself
    error = root(error)
    pause: float = RETRY_BASE * 2 ** (attempt - 1)
    if isinstance(error, client.HfHubHTTPError):
        status, headers = error.response.status_code, error.response.headers
        if status < 500 and status not in (408, 429):
            return None
        limits = parse_ratelimit_headers(headers)
        if (asked := headers.get("Retry-After", "").strip()).isdecimal():
            pause = float(asked)
        elif status == 429 and limits is not None and limits.remaining == 0:
            pause = float(limits.reset_in_seconds)
    elif not (_dropped(error) or _short(error) or isinstance(error, json.JSONDecodeError)):
        return None
    return min(pause, MAX_WAIT)


def _dropped(error: BaseException) -> bool:
    if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol | client.OfflineModeIsEnabled):
        return False
    # When one thread cannot connect, the client closes the session that all threads share.
    closed = isinstance(error, RuntimeError) and "has been closed" in str(error)
    return closed or isinstance(error, httpx.TransportError | ConnectionError)


def _short(error: BaseException) -> bool:
    # The client's bare OSError for a download that ended before its size.
    return isinstance(error, OSError) and error.errno is None and "Consistency check failed" in str(error)


def detail(error: BaseException) -> str:
    """What happened, in words of ours."""
    error = root(error)
    method, host, path = request_of(error)
    where = f"{method} {path if host == httpx.URL(constants.ENDPOINT).host else host}" if method else "a request"
    if (status := status_of(error)) is not None:
        return f"the Hub answered {status} to {where}"
    if isinstance(error, httpx.TimeoutException):
        return f"no answer in time to {where}"
    if isinstance(error, httpx.ConnectError | httpx.ProxyError):
        return f"cannot connect to {host or 'the Hub'}"
    if _dropped(error):
        return f"the connection dropped during {where}"
    if _short(error):
        return "the file came in cut short"
    return f"the answer made no sense ({type(error).__name__})"


def meaning(what: str, error: BaseException, repo: str, tries: int = 1) -> HfcartError:
    """The HfcartError that a failure of the client means after so many tries."""
    error = root(error)
    status, page, name = status_of(error), f"{constants.ENDPOINT}/{repo}", repo.removeprefix("datasets/")
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
        named = f"dataset {name}" if name != repo else f"model repo {name}"
        return RepoNotFoundError(
            f"{what}: there is no {named}, or it is private and this account may not see it.",
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
    again = f"Check the network and {constants.ENDPOINT}, then run the same command again."
    return HubError(f"{what}: {detail(error)}{tried}.", hint=again)
