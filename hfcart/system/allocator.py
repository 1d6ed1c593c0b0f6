"""glibc's allocator, told what will become of large blocks that are freed. Under another C library nothing happens.

Left alone, glibc raises the size above which a freed block goes back to the system to the largest block it has seen
freed: early work pays for fresh pages all the time, later work keeps what no tensor uses.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt


def keep_freed_blocks() -> None:
    """Keep freed blocks of up to 32 MiB for the next that is asked for, as glibc does by itself once it has seen one.

    For images run through a tower: every batch wants the blocks of the one before again.
    """
    _tell((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20))


@contextlib.contextmanager
def freed_blocks_go_back() -> Iterator[None]:
    """Hand freed blocks of a mebibyte and more back to the system at once, for as long as this lasts.

    For matrices of all sizes in several threads: each thread's heap would keep its own, and resident memory creep up.
    """
    _tell((_MMAP_THRESHOLD, 1 << 20))
    try:
        yield
    finally:
        keep_freed_blocks()


def _tell(*settings: tuple[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for setting in settings:
            libc.mallopt(*setting)
