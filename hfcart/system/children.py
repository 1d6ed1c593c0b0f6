"""Processes that this one starts, and that end when it does, however it ends: nobody waits for them any more.

A child holds one end of a pipe whose other end is its parent's alone. Nothing is ever written to it: what the child
reads is the end of its parent, which not even SIGKILL keeps from closing what it had open.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def python_child(code: str, *args: str, flags: Sequence[str] = (), first: str = "") -> Iterator[tuple[list[str], int]]:
    """The command of a Python child, and the descriptor that it is to inherit (`pass_fds`); until it has ended.

    Args:
        code: what it runs.
        args: its `sys.argv[1:]`.
        flags: of the interpreter.
        first: code that runs before hfcart is imported.
    """
    reading, writing = os.pipe()  # which no other child inherits
    watch = f"from hfcart.system.children import end_with; end_with({reading})"
    try:
        yield [sys.executable, *flags, "-c", f"{first}\n{watch}\n{code}", *args], reading
    finally:
        os.close(reading)
        os.close(writing)


def end_with(pipe: int) -> None:
    """End this process when whoever holds the other end of a pipe has ended. What it leaves undone, a kill would."""

    def watch() -> None:
        os.read(pipe, 1)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
