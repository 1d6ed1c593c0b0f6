"""glibc's allocator, told what will become of blocks that are freed. Under another C library nothing happens.

A page that is fresh from the system costs a fault and is cleared first, 4 KiB at a time: a fifth of a merge's time, if
every temporary has new ones. Left alone, glibc raises the size above which a freed block goes back to the system to the
largest block it has seen freed: early work pays for fresh pages all the time, later work keeps what no tensor uses.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt
_LARGEST = 32 << 20  # that may be kept: glibc refuses more
_NEVER = (1 << 31) - 1  # mallopt takes no larger number


def keep_freed_blocks(up_to: int = _LARGEST) -> None:
    """Keep freed blocks for the next that is asked for; only those as large as that go back to the system at once.

    For images run through a tower: every batch wants the blocks of the one before again.

    Args:
        up_to: bytes, which blocks that are kept are smaller than, as far as glibc allows.
    """
    _tell((_MMAP_THRESHOLD, min(up_to, _LARGEST)), (_TRIM_THRESHOLD, 2 * _LARGEST))


@contextlib.contextmanager
def freed_blocks_kept(up_to: int) -> Iterator[None]:
    """Keep freed blocks for as long as this lasts; afterwards all that is free goes back to the system.

    For matrices in several threads: each thread's heap keeps its own, so blocks larger than need be must not stay.

    Args:
        up_to: as for `keep_freed_blocks`.
    """
    keep_freed_blocks(up_to)
    try:
        yield
    finally:
        _give_back()


@contextlib.contextmanager
def heap_kept() -> Iterator[None]:
    """Keep freed blocks, however much that is in all, for as long as this lasts; afterwards it all goes back.

    For steps that each take the same memory again, as a backward pass does: left alone, glibc returns what is free at
    the heap's end once that is 64 MB, and asks for it again in the next step.
    """
    keep_freed_blocks()
    _tell((_TRIM_THRESHOLD, _NEVER))
    try:
        yield
    finally:
        _give_back()


def _give_back() -> None:
    keep_freed_blocks()
    with _glibc() as libc:
        libc.malloc_trim(0)


def _tell(*settings: tuple[int, int]) -> None:
    with _glibc() as libc:
        for setting in settings:
            libc.mallopt(*setting)


@contextlib.contextmanager
def _glibc() -> Iterator[ctypes.CDLL]:
    with contextlib.suppress(OSError, AttributeError):
        yield ctypes.CDLL("libc.so.6")
