"""Where and how numbers are computed: one rule each for device, precision, batch and BLAS threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_limits

from hfcart.errors import UsageError
from hfcart.system.processes import on_this_machine
from hfcart.system.threads import default_workers


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA if there is one, then mps, then the CPU. Raises UsageError for a device that is not there.

    Of several CUDA devices each process of a launch takes its own, and `accelerate launch --cpu` means what it says.
    """
    if name == "auto" and os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on"):
        name = "cpu"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    place, processes = on_this_machine()
    if name == "cuda" and processes > 1 and torch.cuda.device_count():
        name = f"cuda:{place % torch.cuda.device_count()}"
    device = torch.device(name)
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[device.type]:
        raise UsageError(f"There is no device {name} here.", hint="Give --device auto, or --device cpu.")
    return device


def batch_for(device: torch.device) -> int:
    """Images a forward pass, if nobody says: few where a thread is a batch's worker, many on a GPU."""
    return 16 if device.type == "cpu" else 256


def batch_of(images: int, most: int) -> int:
    """Images a forward pass, where there are so many in all: so few that each of eight workers has some to decode.

    It must not depend on the workers that there are: processes that share images cut them alike.

    Args:
        images: that a process has.
        most: images a pass, at least 1; 16 or fewer stay.
    """
    return min(most, max(16, -(-images // 8)))


def precision_for(name: str, device: torch.device) -> str:
    """float32 or bfloat16; auto is bfloat16 where the device has instructions of its own for it."""
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return "bfloat16" if fast else "float32"


@dataclass(frozen=True)
class Machine:
    """Where and how images run through towers, decided: nothing of it is auto any more.

    Attributes:
        device: where the forward pass runs.
        precision: of its first pass, float32 or bfloat16.
        workers: threads that decode and run it; changes no number.
        batch_size: images a pass, at most; changes no number.
    """

    device: torch.device
    precision: str
    workers: int
    batch_size: int

    @classmethod
    def on(
        cls,
        device: torch.device,
        precision: str = "auto",
        workers: int | None = None,
        batch_size: int | None = None,
    ) -> Machine:
        """What was asked for, and the rules above for the rest."""
        return cls(
            device,
            precision_for(precision, device),
            workers or default_workers(),
            batch_size or batch_for(device),
        )


class _Settings:
    """How many blocks hold torch's settings of float32, and what these were before the first of them."""

    lock = threading.Lock()
    holders = 0
    before: tuple[str, bool] = ("highest", True)


@contextmanager
def full_float32() -> Iterator[None]:
    """Have products and convolutions of float32 computed in float32: TF32, and bfloat16 inside, keep fewer digits.

    They are settings for the whole process; what they were is put back by whoever leaves last, as threads may come and
    go in any order. cuDNN's convolutions take TF32 unless told.
    """
    with _Settings.lock:
        if _Settings.holders == 0:
            _Settings.before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        _Settings.holders += 1
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        with _Settings.lock:
            _Settings.holders -= 1
            if _Settings.holders == 0:
                precision, torch.backends.cudnn.allow_tf32 = _Settings.before
                torch.set_float32_matmul_precision(precision)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold the process's OpenBLAS and the calling thread's torch at one thread each.

    torch counts threads per calling thread: each worker started inside must call torch.set_num_threads(1) itself.
    """
    before = torch.get_num_threads()
    with threadpool_limits(limits=1, user_api="blas"):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
