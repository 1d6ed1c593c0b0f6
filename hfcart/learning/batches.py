"""Batches of several tasks' images for whatever learns from them, read ahead in threads.

Their order is a pure function of the seed and the step. Nothing of it has to be saved: resumed work asks for the
batch of its step.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from hfcart.clip.images import UndecodableImage, decode
from hfcart.clip.pixels import to_pixels
from hfcart.tasks.data import Split

AHEAD = 2  # batches that are decoded while one is learned from
CHUNK = 16  # images decoded by one thread at a time

Place = tuple[int, int]  # (number of the task, index of the image in its split)


class Order(Protocol):
    """Which images each step sees."""

    def batch(self, step: int, size: int) -> list[Place]:
        """The images of one step: where each of them is."""


class Mixture:
    """One shuffled list of all tasks' images, so a task is seen as often as it has images.

    Each epoch is a seeded shuffle of the list; the epochs, one after another, are cut into batches.

    Args:
        sizes: training images of each task, all above 0.
        seed: of the shuffles.
    """

    def __init__(self, sizes: Sequence[int], seed: int | str) -> None:
        """Take the sizes and the seed; nothing is drawn yet."""
        self._ends = torch.tensor(list(accumulate(sizes)))
        self._total = sum(sizes)
        self._sizes = torch.tensor(sizes)
        self._seed = seed
        self._shuffled = lru_cache(2)(self._shuffle)  # a batch touches two epochs at most, or the list is tiny

    def batch(self, step: int, size: int) -> list[Place]:
        """The images of one step: where each of them is."""
        first = step * size
        epochs = range(first // self._total, (first + size - 1) // self._total + 1)
        order = torch.cat([self._shuffled(epoch) for epoch in epochs])
        start = first - epochs[0] * self._total
        chosen = order[start : start + size]
        tasks = torch.searchsorted(self._ends, chosen, right=True)
        rows = chosen - (self._ends - self._sizes)[tasks]
        return list(zip(tasks.tolist(), rows.tolist(), strict=True))

    def _shuffle(self, epoch: int) -> Int[Tensor, " images"]:
        digest = hashlib.sha256(f"{self._seed}/{epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.randperm(self._total, generator=generator)


class EveryTask:
    """As many images of every task in each step, a task after the other; each task's in a shuffled order of its own.

    Args:
        sizes: images of each task, all above 0.
        seed: of the shuffles.
    """

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        """Take the sizes and the seed; nothing is drawn yet."""
        self._orders = [Mixture([size], f"{seed}/task {number}") for number, size in enumerate(sizes)]

    def batch(self, step: int, size: int) -> list[Place]:
        """The images of one step; `size` is a multiple of the number of tasks."""
        share = size // len(self._orders)
        return [(task, row) for task, order in enumerate(self._orders) for _, row in order.batch(step, share)]


@dataclass(frozen=True)
class Batch:
    """One process's share of a step's images.

    Attributes:
        pixels: resized and cropped images, not normalised yet; zeros for one that could not be decoded.
        labels: class of each.
        usable: False where the image could not be decoded.
        places: where the images of the whole batch are, those of the other processes too.
    """

    pixels: UInt8[Tensor, "b 3 s s"]
    labels: Int[Tensor, " b"]
    usable: Bool[Tensor, " b"]
    places: list[Place]


@dataclass(frozen=True)
class Loader:
    """Reads, decodes and preprocesses batches in threads, a little ahead of who learns from them.

    Attributes:
        order: which images each step sees.
        splits: where the images are, one a task, without streaming.
        preprocessor: in the canonical form of `hfcart.sources.preprocessor`.
        side: of the square it gives, in pixels.
        batch_size: images a step, over all processes; a multiple of `processes`.
        process: which share of a batch is read: number 0 .. processes − 1.
        processes: how many share a batch.
        workers: threads.
    """

    order: Order
    splits: Sequence[Split]
    preprocessor: dict[str, Any]
    side: int
    batch_size: int
    process: int
    processes: int
    workers: int

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """The batches of the steps [start, stop)."""
        pool = ThreadPoolExecutor(self.workers, "decode", initializer=torch.set_num_threads, initargs=(1,))
        waiting: deque[tuple[list[Place], list[Future[_Chunk]]]] = deque()
        try:
            for step in range(start, stop + AHEAD):
                if step < stop:
                    places = self.order.batch(step, self.batch_size)
                    share = self.batch_size // self.processes
                    own = places[self.process * share : (self.process + 1) * share]
                    chunks = [own[i : i + CHUNK] for i in range(0, len(own), CHUNK)]
                    waiting.append((places, [pool.submit(self._read, chunk) for chunk in chunks]))
                if step >= start + AHEAD and waiting:
                    places, jobs = waiting.popleft()
                    pixels, labels, usable = zip(*(job.result() for job in jobs), strict=True)
                    yield Batch(torch.cat(pixels), torch.cat(labels), torch.cat(usable), places)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, places: list[Place]) -> _Chunk:
        examples = [self.splits[task][index] for task, index in places]
        pixels = torch.zeros(len(examples), 3, self.side, self.side, dtype=torch.uint8)
        usable = torch.zeros(len(examples), dtype=torch.bool)
        for i, example in enumerate(examples):
            try:
                image = decode(example.image)
            except UndecodableImage:
                continue
            pixels[i], usable[i] = to_pixels(image, self.preprocessor), True
        return pixels, torch.tensor([example.label for example in examples]), usable


_Chunk = tuple[Tensor, Tensor, Tensor]  # pixels, labels, usable
