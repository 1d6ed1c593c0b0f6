"""No query of an address is shown, whoever logs it and wherever an error quotes it."""

from __future__ import annotations

import io
import logging
import traceback

import pytest

from hfcart.system.addresses import Formatter, clean_errors, clean_logs, without_queries

SIGNED = "https://cdn.example/a/b.safetensors?X-Amz-Date=1&X-Amz-Signature=0123abc"


PLAIN = "https://cdn.example/a/b.safetensors"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"Error while downloading from {SIGNED} timed out", f"Error while downloading from {PLAIN} timed out"),
        (f"for url '{SIGNED}'\nFor more", f"for url '{PLAIN}'\nFor more"),
        ('"GET /a?sig=1 HTTP/1.1" 200', '"GET /a HTTP/1.1" 200'),
        (f"[(b'Location', b'{SIGNED}'), (b'x', b'y')]", f"[(b'Location', b'{PLAIN}'), (b'x', b'y')]"),
        ("Is that so? Yes.", "Is that so? Yes."),
        ("What is there?", "What is there?"),
    ],
)
def test_queries_go_and_all_else_stays(text: str, expected: str) -> None:
    assert without_queries(text) == expected


def test_every_logger_that_sees_addresses_is_clean_before_any_handler() -> None:
    clean_logs()
    clean_logs()
    stream, root = io.StringIO(), logging.getLogger()
    theirs, ours = logging.StreamHandler(stream), logging.StreamHandler(stream)
    ours.setFormatter(Formatter("%(message)s"))
    root.addHandler(theirs)
    root.addHandler(ours)
    try:
        for name in ("huggingface_hub.utils._http", "httpx2", "httpcore2.http11", "datasets.load", "fsspec", "urllib3"):
            logger, level = logging.getLogger(name), logging.getLogger(name).level
            logger.setLevel(logging.DEBUG)
            logger.warning("%s thrown while requesting PUT %s", "503", SIGNED)
            logger.debug("Send: %s", [SIGNED])
            logger.setLevel(level)
        root.removeHandler(theirs)
        try:
            raise ValueError(SIGNED)
        except ValueError:
            root.exception("at %s", SIGNED)
    finally:
        root.removeHandler(ours)
        root.removeHandler(theirs)
    assert "0123abc" not in stream.getvalue() and stream.getvalue().count("cdn.example/a/b.safetensors") >= 6


def test_a_traceback_of_errors_of_all_kinds_is_clean() -> None:
    # What the client says of a short download is the end of its address, without the question mark.
    cut = "Consistency check failed: file should be of size 5 but has size 3 ((…)ature=0123abc)."
    try:
        try:
            raise OSError(cut)
        except OSError as error:
            error.add_note(f"from {SIGNED}")
            raise RuntimeError(SIGNED) from error
    except RuntimeError as error:
        error.__cause__.__cause__ = error  # chains can be circular
        clean_errors(error)
        assert "0123abc" not in "".join(traceback.format_exception(error))
