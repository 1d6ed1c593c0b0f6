"""The one HTTP client under everything that talks to the Hub: huggingface_hub, datasets, and hfcart's own requests.

Every request has its timeouts, and is tried again here and nowhere below or above: a request that has failed for
good raises GaveUp, which none of the libraries' own retries knows. See hfcart.system.patience for the bounds.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, cast

from huggingface_hub import constants, set_client_factory
from huggingface_hub import errors as client
from huggingface_hub.utils import httpx, parse_ratelimit_headers  # type: ignore[attr-defined]
from huggingface_hub.utils._http import default_client_factory

from hfcart.system.addresses import clean_logs, without_queries
from hfcart.system.patience import MAX_WAIT, READ_TIMEOUT, RETRY_BASE, TRIES, WRITE_TIMEOUT, silence

# Not to be sent a second time before a look whether the first was carried out (_Commit.made in _publish.py looks).
_ONCE = re.compile(r"/api/(?:repos/create$|[^/]+/[^/]+/[^/]+/commit/)")


def _nobody(_text: str) -> None:
    pass


_notify: Callable[[str], None] = _nobody
_before: tuple[list[logging.Handler], bool] | None = None  # the client's log, while it comes to us


class GaveUp(Exception):
    """A request has failed for good, for the reason `error`, after so many tries."""

    def __init__(self, error: Exception, tries: int) -> None:
        super().__init__()
        self.error, self.tries = error, tries


class _ThisThread(threading.local):
    """What this thread is doing: its name, whether to stop, bodies that broke off by address, and what it has sent."""

    what = "Transferring files"  # in threads that are not ours
    stop: threading.Event | None = None
    sent = False  # a request that is to happen once

    def __init__(self) -> None:
        self.broken: dict[str, int] = {}


work = _ThisThread()


@contextmanager
def working(what: str, stop: threading.Event | None) -> Iterator[None]:
    """Requests of this thread, in this block, are for `what`, and are not tried again once `stop` is set.

    Without a `stop`, once that is set which `end_with` named.
    """
    before = work.what, work.stop
    work.what, work.stop, work.broken = what, stop or work.stop, {}
    try:
        yield
    finally:
        work.what, work.stop = before


def end_with(stop: threading.Event) -> None:
    """Requests of this thread end early, and are not tried again, once `stop` is set. For a thread of a pool."""
    work.stop = stop


class _ClientLog(logging.Handler):
    """The client's own warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        _notify("The Hub client: " + without_queries(record.getMessage()).replace("\n", " "))


def set_notifier(notify: Callable[[str], None]) -> None:
    """Send every message about waiting and trying again to `notify`, from any thread; the client's warnings too."""
    global _notify, _before
    _notify = notify
    logger = logging.getLogger("huggingface_hub")
    _before = _before or (logger.handlers, logger.propagate)
    logger.handlers, logger.propagate = [_ClientLog()], logger.isEnabledFor(logging.DEBUG)


def reset_notifier() -> None:
    """Tell nobody from now on; the client's warnings go where they went before: the process may be others', too."""
    global _notify, _before
    _notify = _nobody
    if _before is not None:
        logger = logging.getLogger("huggingface_hub")
        logger.handlers, logger.propagate = _before
        _before = None


def notify(text: str) -> None:
    """Tell what else happened on the way, where `set_notifier` says."""
    _notify(text)


def pause(error: BaseException, wait: float, attempt: int) -> None:
    """Say that a try has failed, and wait for the next."""
    _notify(f"{work.what}: {detail(error)}; trying again in {wait:g} s (try {attempt + 1} of {TRIES})")
    if work.stop is None:
        time.sleep(wait)
    else:
        work.stop.wait(wait)


def stopped() -> bool:
    """Whether this thread's work is to end."""
    return work.stop is not None and work.stop.is_set()


class Client(httpx.Client):
    """What `get_session()` gives to everybody."""

    def build_request(self, method: str, url: httpx.URL | str, **options: Any) -> httpx.Request:  # noqa: ANN401
        """A request; of a body that is a file, where it begins is kept."""
        if hasattr(body := options.get("data"), "seek") and body is not None:
            options["extensions"] = {**(options.get("extensions") or {}), "hfcart_body": (body, body.tell())}
        return super().build_request(method, url, **options)

    def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> httpx.Response:  # noqa: ANN401
        """Send a request, up to TRIES times while it fails in a way that may pass.

        Raises:
            GaveUp: it has failed for good.
            httpx.TransportError: it has failed, and is one that is to happen once.
        """
        once = request.method == "POST" and _ONCE.search(request.url.path) is not None
        work.sent |= once
        attempt = 1
        while True:
            error: Exception | None
            try:
                _bound(request)
                response = super().send(request, stream=stream, **options)
                error = _refusal(response, stream and not once)
                if error is None or once:
                    return _watched(response, stream)
            except httpx.TransportError as failure:
                _count_silence(failure, request)
                error = failure
                if once:
                    raise
            wait = pause_after(error, attempt)
            if wait is None or attempt == TRIES or silence.timeout is not None or stopped():
                raise GaveUp(error, attempt) from error
            pause(error, wait, attempt)
            if stopped():
                raise GaveUp(error, attempt) from error
            attempt += 1


def _bound(request: httpx.Request) -> None:
    """Set the timeouts of a request, no longer than its own, and its body at the beginning."""
    limit = silence.timeout
    if limit == 0:
        raise httpx.ReadTimeout("too much silence before", request=request)
    own = READ_TIMEOUT if request.method in ("GET", "HEAD") else WRITE_TIMEOUT
    bounds = {"connect": READ_TIMEOUT, "read": own, "write": WRITE_TIMEOUT}
    given = request.extensions.get("timeout", {})
    for phase, bound in bounds.items():
        each = (bound, given.get(phase), limit)
        bounds[phase] = min(seconds for seconds in each if seconds is not None)
    body, begin = request.extensions.get("hfcart_body", (None, 0))
    if body is not None:
        body.seek(begin)
    request.extensions = {**request.extensions, "timeout": {**given, **bounds}}


def _count_silence(error: Exception, request: httpx.Request) -> None:
    phases: dict[type, str] = {httpx.ConnectTimeout: "connect", httpx.ReadTimeout: "read", httpx.WriteTimeout: "write"}
    if (phase := phases.get(type(error))) and silence.timeout != 0:
        silence.add(request.extensions["timeout"][phase])


def _refusal(response: httpx.Response, stream: bool) -> client.HfHubHTTPError | None:
    """The error that an answer means which may be another one next time."""
    if response.status_code < 500 and response.status_code not in (408, 429):
        return None
    if stream:
        response.close()
    _forget_query(response)
    return client.HfHubHTTPError(f"status {response.status_code}", response=response)


def _watched(response: httpx.Response, stream: bool) -> httpx.Response:
    """The answer, whose body does not stay silent or break off again and again."""
    if response.status_code >= 400:
        _forget_query(response)
    if stream:
        response.stream = _Watched(cast(httpx.SyncByteStream, response.stream), response.request)
    return response


def _forget_query(response: httpx.Response) -> None:
    """Errors quote the address."""
    request = response.request
    response.request = httpx.Request(request.method, request.url.copy_with(query=None), headers=request.headers)


class _Watched(httpx.SyncByteStream):
    """The body of an answer, as it comes in. Those who read it ask for the rest if it breaks off, TRIES times."""

    def __init__(self, inner: httpx.SyncByteStream, request: httpx.Request) -> None:
        self._inner, self._request = inner, request

    def __iter__(self) -> Iterator[bytes]:
        address, came = str(self._request.url), 0
        try:
            for chunk in self._inner:
                came += len(chunk)
                yield chunk
        except httpx.TransportError as error:
            error.request = self._request
            _count_silence(error, self._request)
            # Less than this, and the client has nothing of it.
            work.broken[address] = 1 + work.broken.get(address, 0) * (came < constants.DOWNLOAD_CHUNK_SIZE)
            if work.broken[address] >= TRIES or silence.timeout is not None or stopped():
                raise GaveUp(error, work.broken[address]) from error
            raise

    def close(self) -> None:
        self._inner.close()


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


def pause_after(error: BaseException, attempt: int) -> float | None:
    """Seconds to wait after the failure of try number `attempt`, None if trying again cannot help."""
    if isinstance(error, client.LocalEntryNotFoundError) or _gave_up(error) is not None:
        return None  # tried often enough already
    error = root(error)
    if isinstance(error, httpx.TimeoutException) and silence.timeout is not None:
        return None
    if isinstance(error, client.HfHubHTTPError):
        if error.response.status_code < 500 and error.response.status_code not in (408, 429):
            return None
        asked = asked_wait(error)
        if asked is not None:
            return asked if asked <= MAX_WAIT else None
    elif not (dropped(error) or short(error) or isinstance(error, json.JSONDecodeError)):
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


def dropped(error: BaseException) -> bool:
    """Whether the connection failed, not the request."""
    if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol | client.OfflineModeIsEnabled):
        return False
    # When one thread cannot connect, the client closes the session that all threads share.
    closed = isinstance(error, RuntimeError) and "has been closed" in str(error)
    return closed or isinstance(error, httpx.TransportError | ConnectionError)


def short(error: BaseException) -> bool:
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
    if dropped(error):
        return f"the connection dropped during {where}"
    if short(error):
        return "the file came in cut short"
    return f"the answer made no sense ({type(error).__name__})"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds:,.0f} s (about {seconds / length:,.0f} {unit})"
    return f"{seconds:.0f} s"


def _make_client() -> Client:
    plain = default_client_factory()  # for the client's own hooks: offline mode, request ids
    plain.close()
    return Client(event_hooks=plain.event_hooks, follow_redirects=True, timeout=httpx.Timeout(WRITE_TIMEOUT))


clean_logs()
set_client_factory(_make_client)
