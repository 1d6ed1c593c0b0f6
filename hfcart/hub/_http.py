"""The one HTTP client under everything that talks to the Hub: huggingface_hub, datasets, and hfcart's own requests.

Every request has its timeouts, and is tried again here and nowhere below or above: a request that has failed for
good raises GaveUp, which none of the libraries' own retries knows. See hfcart.system.patience for the bounds.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from huggingface_hub import constants, set_client_factory
from huggingface_hub import errors as client
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]
from huggingface_hub.utils._http import default_client_factory

from hfcart.hub._failures import GaveUp, detail, may_pass, pause_after
from hfcart.system.addresses import clean_logs, without_queries
from hfcart.system.patience import READ_TIMEOUT, TRIES, WRITE_TIMEOUT, silence

# Not to be sent a second time before a look whether the first was carried out (_Commit.made in _commit.py looks).
_ONCE = re.compile(r"/api/(?:repos/create$|[^/]+/[^/]+/[^/]+/commit/)")


def _nobody(_text: str) -> None:
    pass


_notify: Callable[[str], None] = _nobody
_before: tuple[list[logging.Handler], bool] | None = None  # the client's log, while it comes to us


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
    if not may_pass(response.status_code):
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


def _make_client() -> Client:
    plain = default_client_factory()  # for the client's own hooks: offline mode, request ids
    plain.close()
    return Client(event_hooks=plain.event_hooks, follow_redirects=True, timeout=httpx.Timeout(WRITE_TIMEOUT))


clean_logs()
set_client_factory(_make_client)
