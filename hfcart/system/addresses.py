"""Signed addresses (`…?X-Amz-Signature=…`) let anybody in who reads them: no query of an address is ever shown."""

from __future__ import annotations

import logging
import re

# Also a query whose address was cut off in front of it, as in "GET /path?key=value".
_QUERY = re.compile(r"(?<=\S)\?[^\s\"'<>`]+")
_TALKERS = ("huggingface_hub", "httpx", "httpcore", "datasets", "fsspec", "urllib3", "filelock", "transformers")


def without_queries(text: str) -> str:
    """The text without the query of any address in it."""
    return _QUERY.sub("", text)


class Formatter(logging.Formatter):
    """For handlers of ours: the whole of a record, its traceback too, without queries."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as text."""
        return without_queries(super().format(record))


def clean_logs() -> None:
    """Take the queries out of every message of the libraries that make requests, whoever handles it."""
    make = logging.getLogRecordFactory()
    if getattr(make, "without_queries", False):
        return

    def made(*args: object, **kwargs: object) -> logging.LogRecord:
        record: logging.LogRecord = make(*args, **kwargs)
        if record.name.startswith(_TALKERS):
            record.msg, record.args = without_queries(record.getMessage()), ()
        return record

    made.without_queries = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(made)


def clean_errors(error: BaseException | None) -> None:
    """Take the queries out of the texts of an error and of all that led to it, in place: a traceback prints them."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        # The text for a short download may quote the last 40 characters of an address, without its "?".
        one.args = tuple(_clean(each) if isinstance(each, str) else each for each in one.args)
        if hasattr(one, "__notes__"):
            one.__notes__ = [without_queries(note) for note in one.__notes__]
        waiting += [one.__cause__, one.__context__]


def _clean(text: str) -> str:
    return "Consistency check failed" if text.startswith("Consistency check failed") else without_queries(text)
