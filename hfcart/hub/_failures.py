"""What a failed request was, below all that wraps it: in words of ours, and whether trying again can help."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from huggingface_hub import constants
from huggingface_hub import errors as client
from huggingface_hub.utils import httpx, parse_ratelimit_headers  # type: ignore[attr-defined]

from hfcart.system.patience import MAX_WAIT, RETRY_BASE, silence


class GaveUp(Exception):
    """A request has failed for good, for the reason `error`, after so many tries."""

    def __init__(self, error: Exception, tries: int) -> None:
        super().__init__()
        self.error, self.tries = error, tries


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, the last first; chains of causes can be circular."""
    seen: list[BaseException] = []
    below: BaseException | None = error
    while below is not None and below not in seen:
        seen.append(below)
        yield below
        below = below.error if isinstance(below, GaveUp) else below.__cause__


def root(error: BaseException) -> BaseException:
    """What really happened, below "given up", "neither on the Hub nor in the cache" and "error while uploading"."""
    for below in causes(error):
        error = below
        if not isinstance(below, GaveUp | client.LocalEntryNotFoundError | RuntimeError):
            break
    return error


def _gave_up(error: BaseException) -> GaveUp | None:
    """What ended all tries, if it was a request: the client wraps errors in others."""
    return next((below for below in causes(error) if isinstance(below, GaveUp)), None)


def tries_of(error: BaseException) -> int:
    """How often the request was sent."""
    found = _gave_up(error)
    return found.tries if found is not None else 1


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


def may_pass(status: int) -> bool:
    """Whether an answer with this status may be another one next time."""
    return status >= 500 or status in (408, 429)


def pause_after(error: BaseException, attempt: int) -> float | None:
    """Seconds to wait after the failure of try number `attempt`, None if trying again cannot help."""
    if isinstance(error, client.LocalEntryNotFoundError) or _gave_up(error) is not None:
        return None  # tried often enough already
    error = root(error)
    if isinstance(error, httpx.TimeoutException) and silence.timeout is not None:
        return None
    if isinstance(error, client.HfHubHTTPError):
        if not may_pass(error.response.status_code):
            return None
        asked = asked_wait(error)
        if asked is not None:
            return asked if asked <= MAX_WAIT else None
    elif not (_dropped(error) or _short(error) or isinstance(error, json.JSONDecodeError)):
        return None
    return min(RETRY_BASE * float(2 ** (attempt - 1)), MAX_WAIT)


def asked_wait(error: BaseException) -> float | None:
    """Seconds that the Hub asks to wait before the next try, if it does."""
    if not isinstance(error, client.HfHubHTTPError):
        return None
    headers = error.response.headers
    limits = parse_ratelimit_headers(headers)
    if error.response.status_code == 429 and limits is not None and limits.remaining == 0:
        return float(limits.reset_in_seconds)
    asked = headers.get("Retry-After", "").strip()
    if asked.isascii() and asked.isdecimal():
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _dropped(error: BaseException) -> bool:
    """Whether the connection failed, not the request."""
    if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol | client.OfflineModeIsEnabled):
        return False
    # When one thread cannot connect, the client closes the session that all threads share.
    closed = isinstance(error, RuntimeError) and "has been closed" in str(error)
    return closed or isinstance(error, httpx.TransportError | ConnectionError)


def _short(error: BaseException) -> bool:
    """Whether it is the client's bare OSError for a download that ended before its size."""
    return isinstance(error, OSError) and error.errno is None and "Consistency check failed" in str(error)


def detail(error: BaseException) -> str:
    """What happened, in words of ours."""
    error = root(error)
    method, host, path = request_of(error)
    where = f"{method} {path if host == httpx.URL(constants.ENDPOINT).host else host}" if method else "a request"
    if (status := status_of(error)) is not None:
        asked = asked_wait(error) or 0.0
        wait = f", and asks to wait {_duration(asked)}" if asked > MAX_WAIT else ""
        return f"the Hub answered {status} to {where}{wait}"
    if isinstance(error, httpx.TimeoutException):
        return f"no answer in time to {where}"
    if isinstance(error, httpx.ConnectError | httpx.ProxyError):
        return f"cannot connect to {host or 'the Hub'}"
    if _dropped(error):
        return f"the connection dropped during {where}"
    if _short(error):
        return "the file came in cut short"
    return f"the answer made no sense ({type(error).__name__})"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds:,.0f} s (about {seconds / length:,.0f} {unit})"
    return f"{seconds:.0f} s"
