"""What a long piece of work tells its caller while it runs.

The base class is silent. The command line passes one that draws; to Python, who passes none, warnings alone are told.
"""

from __future__ import annotations

import warnings
from types import FrameType

from hfcart.errors import HfcartWarning
from hfcart.quoting import printable


class Progress:
    """A silent listener. Subclass it to show what is being done."""

    def step(self, text: str) -> None:
        """A new stage of the work begins, e.g. "Reading headers"."""

    def note(self, text: str) -> None:
        """A plain fact worth a line, e.g. that a pickle was converted."""

    def warn(self, text: str) -> None:
        """Something the user should know, and that does not stop the work."""

    def start(self, label: str, total: int, unit: str) -> None:
        """A counted stage begins. Args: its label, the total in `unit` ("bytes", "images", "steps", ...)."""

    def advance(self, amount: int) -> None:
        """`amount` more units of the counted stage are done. May be called from any thread."""

    def finish(self) -> None:
        """The counted stage is over, complete or not."""


class AsWarnings(Progress):
    """Silent but for warnings, which are Python's: HfcartWarning, at the line that called hfcart."""

    def __init__(self, caller: FrameType) -> None:
        """Note the place: work goes on in threads, from whose stack the caller cannot be seen."""
        names = caller.f_globals
        self._file, self._line = caller.f_code.co_filename, caller.f_lineno
        self._module = str(names.get("__name__", "<unknown>"))
        self._shown = names.setdefault("__warningregistry__", {})  # so that filters can say "once a place"

    def warn(self, text: str) -> None:
        """One warning. Raises HfcartWarning where a filter makes errors of them."""
        warnings.warn_explicit(printable(text), HfcartWarning, self._file, self._line, self._module, self._shown)


class Within(Progress):
    """Part of a larger stage: passes on everything but stages of its own."""

    def __init__(self, outer: Progress) -> None:
        """Take the listener of the larger stage."""
        self._outer = outer

    def note(self, text: str) -> None:
        """Pass it on."""
        self._outer.note(text)

    def warn(self, text: str) -> None:
        """Pass it on."""
        self._outer.warn(text)

    def start(self, label: str, total: int, unit: str) -> None:
        """Pass it on."""
        self._outer.start(label, total, unit)

    def advance(self, amount: int) -> None:
        """Pass it on."""
        self._outer.advance(amount)

    def finish(self) -> None:
        """Pass it on."""
        self._outer.finish()
