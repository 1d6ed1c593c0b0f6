"""What every function does around its work: keywords checked, progress told, errors in Python's words."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hfcart.api.options import Names
from hfcart.errors import HfcartError, KeywordError, MismatchError
from hfcart.progress import AsWarnings, Progress


@contextmanager
def calling(
    command: str, options: Mapping[str, Any], known: Collection[str], progress: bool | Progress | None
) -> Iterator[Progress]:
    """Carry out a function's work; what is raised inside comes out with a message and a hint in Python's words.

    Args:
        command: the one that does the same.
        options: the keywords given.
        known: those that there are.
        progress: True to draw, False (or None) to be silent but for warnings, or a listener.

    Yields:
        What the work reports to.

    Raises:
        KeywordError: a keyword that there is not.
        HfcartError: what the work raised, reworded; the hint is a note of it, too, so that a traceback shows it.
    """
    caller = _caller()
    listener = _listener(progress, caller)
    try:
        _check(command, options, known)
        _begin_anew()
        yield _InPython(listener, command)
    except HfcartError as error:
        _reword(error, command)
        raise
    except KeyboardInterrupt as stop:
        stop.__notes__ = [_in_python(note, command) for note in getattr(stop, "__notes__", [])]
        raise
    finally:
        if listener is not progress:
            listener.finish()
        if hub := sys.modules.get("hfcart.hub"):
            hub.reset_notifier()


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say something, paths as text."""
    return {name: text_of(value) for name, value in options.items() if value is not None}


def text_of(value: Any) -> Any:  # noqa: ANN401 (an option's value)
    """A path as text; anything else as it is."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def texts(names: str | Sequence[Any], what: str) -> list[Any]:
    """Several things to name, each a text. Raises TypeError for one alone, which would be taken letter by letter."""
    if isinstance(names, str | os.PathLike):
        raise TypeError(f"{what} is one: give a list")
    return [text_of(name) for name in names]


def names_of(given: Names) -> list[str]:
    """Names of tasks or methods, or paths of cards and folders: a text may hold several, with commas."""
    return [os.fspath(given)] if isinstance(given, str | os.PathLike) else [os.fspath(name) for name in given]


def _caller() -> FrameType:
    """The line outside this package that called the function."""
    frame = sys._getframe(1)
    while frame.f_back and str(frame.f_globals.get("__name__")).split(".")[0] in ("hfcart", "contextlib"):
        frame = frame.f_back
    return frame


def _listener(progress: bool | Progress | None, caller: FrameType) -> Progress:
    if isinstance(progress, Progress):
        return progress
    if progress:
        from hfcart.api._bars import Bars

        return Bars(caller)
    return AsWarnings(caller)


def _begin_anew() -> None:
    from hfcart.system.patience import silence

    silence.restart()
    if "ipykernel" in sys.modules and "tqdm.autonotebook" not in sys.modules:
        with warnings.catch_warnings():  # the Hub's client would warn of missing widgets; its bars are not shown
            warnings.simplefilter("ignore")
            importlib.import_module("tqdm.autonotebook")


def _check(command: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    for name in options:
        if name not in known:
            from hfcart.cli._shared.as_python import FUNCTIONS
            from hfcart.names import near

            function = FUNCTIONS[command].name
            told = f"{function}() has no keyword {name}. {near(name, known)}".rstrip()
            raise KeywordError(told, hint=f"`help(hfcart.{function})` lists every keyword.")


def _reword(error: HfcartError, command: str) -> None:
    from hfcart.cli._shared.as_python import hint_in_python

    error.message = _in_python(error.message, command)
    error.args = (error.message, *error.args[1:])
    if isinstance(error, MismatchError):
        for row in error.rows:
            error.add_note("  ".join(filter(None, (row[0], row[1], *_both(row[2], row[3])))))
    if error.hint:
        error.hint = hint_in_python(error.hint, command)
        error.add_note("\n".join(f"→ {line}" for line in error.hint.split("\n")))


def _both(expected: str, found: str) -> tuple[str, str]:
    return (f"expected {expected}," if expected else "", f"found {found}" if found else "")


def _in_python(text: str, command: str) -> str:
    if "hfcart " not in text and "--" not in text and "same command" not in text:
        return text  # most of what is told; the command line's declarations need not be read for it
    from hfcart.cli._shared.as_python import in_python

    return in_python(text, command)


class _InPython(Progress):
    """Passes everything on, in Python's words."""

    def __init__(self, listener: Progress, command: str) -> None:
        self._listener, self._command = listener, command

    def step(self, text: str) -> None:
        self._listener.step(_in_python(text, self._command))

    def note(self, text: str) -> None:
        self._listener.note(_in_python(text, self._command))

    def warn(self, text: str) -> None:
        self._listener.warn(_in_python(text, self._command))

    def start(self, label: str, total: int, unit: str) -> None:
        self._listener.start(label, total, unit)

    def advance(self, amount: int) -> None:
        self._listener.advance(amount)

    def finish(self) -> None:
        self._listener.finish()
