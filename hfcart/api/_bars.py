"""Progress that draws itself, in a terminal or in a notebook. The only importer of tqdm."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from types import FrameType
from typing import Any

from hfcart.progress import AsWarnings
from hfcart.quoting import printable


class Bars(AsWarnings):
    """A line for each stage, a bar for each counted one, on stderr; warnings are Python's."""

    def __init__(self, caller: FrameType) -> None:
        """Note where warnings belong. Nothing is drawn yet."""
        super().__init__(caller)
        self._bar: Any = None
        self._lock = threading.Lock()

    def step(self, text: str) -> None:
        """One line."""
        _kind().write(f"› {printable(text)}", file=sys.stderr)

    def note(self, text: str) -> None:
        """One line."""
        _kind().write(f"  {printable(text)}", file=sys.stderr)

    def start(self, label: str, total: int, unit: str) -> None:
        """A bar with rate and remaining time."""
        self.finish()
        scaled = {"unit": "B", "unit_scale": True} if unit == "bytes" else {"unit": f" {unit}"}
        self._bar = _kind()(total=total, desc=printable(label, 60), file=sys.stderr, **scaled)

    def advance(self, amount: int) -> None:
        """Move the bar."""
        with self._lock:
            if self._bar is not None:
                self._bar.update(amount)

    def finish(self) -> None:
        """Leave the bar as it is, complete or not."""
        with self._lock:
            if self._bar is not None:
                self._bar.close()
            self._bar = None


def _kind() -> Any:  # noqa: ANN401 (tqdm has no types)
    """A bar of text, or a widget in a notebook that has some (without, tqdm.auto would warn)."""
    widgets = "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets")
    return importlib.import_module("tqdm.notebook" if widgets else "tqdm.std").tqdm
