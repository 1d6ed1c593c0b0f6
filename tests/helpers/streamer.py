"""Merges over the network, one after another in one process; it prints how each ended, as JSON.

Each line of stdin is a case: {"sources", "out", "fault"}. Faults: "held", the algebra waits until there is a file
`go` in the working folder; "algebra", it fails at the third group; "disk", there is no room for the ninth tensor.
"ready" is printed too, once a fault is in place.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import hfcart
from hfcart.engine.merging import GroupRules
from hfcart.errors import HfcartError, NonFiniteError
from hfcart.progress import Progress


class Notes(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def put_in_place(fault: str | None, patch: pytest.MonkeyPatch) -> None:
    calls, merged, write = itertools.count(1), GroupRules.merged, os.pwrite

    def held(*arguments: Any) -> Any:
        while not Path("go").exists():
            time.sleep(0.01)
        return merged(*arguments)

    def failing(*arguments: Any) -> Any:
        if next(calls) == 3:
            raise NonFiniteError("The algebra has failed.", hint="Leave it.")
        return merged(*arguments)

    def full(descriptor: int, data: Any, at: int) -> int:
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".safetensors" and next(calls) > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, at)

    if fault == "held":
        patch.setattr(GroupRules, "merged", held)
    elif fault == "algebra":
        patch.setattr(GroupRules, "merged", failing)
    elif fault == "disk":
        patch.setattr(os, "pwrite", full)


def main() -> None:
    for line in sys.stdin:
        case, error, notes = json.loads(line), None, Notes()
        with pytest.MonkeyPatch.context() as patch:
            put_in_place(case["fault"], patch)
            print(json.dumps("ready"), flush=True)
            try:
                hfcart.merge(case["sources"], out=case["out"], stream=True, workers=2, progress=notes)
            except (HfcartError, KeyboardInterrupt) as found:
                error = [type(found).__name__, getattr(found, "message", ""), getattr(found, "hint", "") or ""]
        left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        print(json.dumps({"error": error, "threads": left, "notes": notes.notes}), flush=True)


main()
