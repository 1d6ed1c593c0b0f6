"""Zero-shot scoring: images -> features -> the class whose prompts point the same way -> counts.

Numbers do not depend on batch size, workers or processes. Floating-point sums do, in their last bits, and now and
then two classes are that close: such an image is decided again with more digits (see `Scorer`).
"""

from __future__ import annotations

import contextlib
import copy
import json
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int, UInt8

from hfcart.clip.forward import pooled
from hfcart.clip.images import UndecodableImage, decode
from hfcart.clip.pixels import normalised, to_pixels
from hfcart.errors import NonFiniteError, SourceError
from hfcart.progress import Progress
from hfcart.quoting import plural
from hfcart.system.allocator import keep_freed_blocks
from hfcart.system.device import Machine, batch_of, full_float32, one_blas_thread
from hfcart.tasks.data import Example, Split
from hfcart.zero_shot.outcomes import Outcomes

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

Confusion = Int[torch.Tensor, "true predicted"]
Result = TypeVar("Result")

BY_DIGITS = ("bfloat16", "float32", "float64")
# Two cosines closer than this may trade places when they are computed again in another batch: with these digits, the
# image is decided by the next precision. A gap can change by twice what a cosine does: 0.0013 in bfloat16 and 2e-7 in
# float32 are the largest changes seen (tests/bench/evaluate.py prints them).
TOO_CLOSE = {"bfloat16": 2.5e-3, "float32": 1e-5}


class Scorer:
    """A vision tower with its base's projection, on a device: images -> class.

    An image is first scored in `precision`. Where its two best classes are too close to be told apart with so few
    digits, it is scored again in float32, and if need be alone in float64.
    """

    def __init__(
        self,
        model: CLIPVisionModel,
        projection: Float[torch.Tensor, "dim width"],
        preprocessor: dict[str, Any],
        machine: Machine,
        label: str = "the tower",
    ) -> None:
        """Bring the tower to the device; it stays there as long as the scorer lives.

        Args:
            model: float32, in eval mode.
            projection: the base's visual projection, float32.
            preprocessor: in the canonical form of `hfcart.sources.preprocessor`.
            machine: where the forward pass runs, and the precision of the first: bfloat16 (autocast) or float32.
            label: its name in messages.
        """
        self.preprocessor, self.device, self.label = preprocessor, machine.device, label
        self._first = BY_DIGITS.index(machine.precision)
        torch.nn.Module.to(model, self.device)
        self._model, self._projection = model, projection.to(self.device)
        self._exact: tuple[CLIPVisionModel, torch.Tensor] | None = None
        self._lock = threading.Lock()

    def features(self, pixels: Float[torch.Tensor, "b 3 s s"], precision: str) -> Float[torch.Tensor, "b dim"]:
        """Unit vectors in CLIP's joint space: pooled output, projection, L2."""
        if precision == "float64":
            model, projection = self._in_float64()
            found = pooled(model, pixels.cpu().double()) @ projection.T
        else:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                found = pooled(self._model, pixels) @ self._projection.T
            found = found.float()
        return torch.nn.functional.normalize(found, dim=-1)

    @torch.inference_mode()
    def predict(
        self, images: UInt8[torch.Tensor, "b 3 s s"], head: Float[torch.Tensor, "classes dim"]
    ) -> Int[torch.Tensor, " b"]:
        """The class of each image, on the CPU.

        Raises:
            NonFiniteError: the tower gives NaN or Inf.
        """
        pixels = normalised(images.to(self.device), self.preprocessor)
        out = torch.empty(len(images), dtype=torch.int64)
        todo = torch.arange(len(images))
        for precision in BY_DIGITS[self._first :]:
            if precision == "float64":
                for i in todo.tolist():
                    out[i] = self._cosines(pixels[i : i + 1], head, precision).argmax()
                break
            best = self._cosines(pixels[todo.to(pixels.device)], head, precision).topk(2)
            out[todo] = best.indices[:, 0]
            todo = todo[best.values[:, 0] - best.values[:, 1] < TOO_CLOSE[precision]]
            if not len(todo):
                break
        return out

    def _cosines(
        self, pixels: Float[torch.Tensor, "b 3 s s"], head: Float[torch.Tensor, "classes dim"], precision: str
    ) -> Float[torch.Tensor, "b classes"]:
        features = self.features(pixels, precision)
        cosines = (features @ head.to(features).T).cpu()
        if not bool(torch.isfinite(cosines).all()):
            raise NonFiniteError(
                f"{self.label} gives NaN or Inf for an image.", hint="Its weights are broken: merge or train it again."
            )
        return cosines

    def _in_float64(self) -> tuple[CLIPVisionModel, torch.Tensor]:
        # On the CPU: few images need it, and not every device has float64.
        with self._lock:
            if self._exact is None:
                self._exact = copy.deepcopy(self._model).cpu().double(), self._projection.cpu().double()
            return self._exact


class _Batch(NamedTuple):
    """What became of a batch: of the images that could be decoded, their places, labels and each tower's classes."""

    places: list[int]
    undecodable: int
    labels: Int[torch.Tensor, " b"]
    predicted: list[Int[torch.Tensor, " b"]]


def towers_at_once(parameters: int) -> int:
    """How many towers of that many parameters are measured side by side: 2 GiB of float32 weights, and at least one."""
    return max(1, (1 << 31) // (4 * parameters))


def score(
    split: Split,
    scorers: Sequence[Scorer],
    head: Float[torch.Tensor, "classes dim"],
    machine: Machine,
    *,
    shard: int = 0,
    shards: int = 1,
    outcomes: Outcomes | None = None,
    look: Callable[[], object] = lambda: None,
    progress: Progress,
) -> tuple[list[Confusion], int]:
    """Score one shard of a split with several towers at once: each image is read and decoded one time.

    Worker threads decode, resize and run the forward pass, a batch each, with one BLAS thread each: on a CPU that is
    faster than one batch over all cores, and on a GPU the decoding of one batch hides behind the forward of another.

    Args:
        split: opened.
        scorers: the towers.
        head: zero-shot head of the split's task, unit rows.
        machine: whose batch size and worker threads are used.
        shard: which part of the examples is ours, of `shards`.
        shards: number of parts: one a process.
        outcomes: takes which images each tower recognises, for a split of this size and these scorers.
        look: called between batches, in the caller's thread; what it raises ends the work.
        progress: told the images done; the caller starts and finishes the stage.

    Returns:
        One confusion matrix a scorer (counts, int64, on the CPU), and the number of images that could not be decoded.

    Raises:
        NonFiniteError: a tower gives NaN or Inf.
        SourceError, HubError: reading the split failed.
    """
    classes = len(head)
    confusions = [torch.zeros(classes, classes, dtype=torch.int64) for _ in scorers]
    heads = {scorer.device: head.to(scorer.device) for scorer in scorers}
    undecodable = 0

    keys = [json.dumps(scorer.preprocessor, sort_keys=True) for scorer in scorers]
    preprocessors = {key: scorer.preprocessor for key, scorer in zip(keys, scorers, strict=True)}

    def work(batch: list[Example]) -> _Batch:
        places: list[int] = []
        labels: list[int] = []
        pixels: dict[str, list[torch.Tensor]] = {key: [] for key in preprocessors}
        for example in batch:
            try:
                image = decode(example.image)
            except UndecodableImage:
                split.broken.add(example.index)
                continue
            places.append(example.index)
            labels.append(example.label)
            # Into pixels one by one: a batch of large images would take 60 GB as they are.
            for key, fields in preprocessors.items():
                pixels[key].append(to_pixels(image, fields))
        stacked = {key: torch.stack(some) for key, some in pixels.items() if some}
        predicted = [
            scorer.predict(stacked[key], heads[scorer.device])
            for key, scorer in zip(keys, scorers, strict=True)
            if key in stacked
        ]
        progress.advance(len(batch))
        return _Batch(places, len(batch) - len(places), torch.tensor(labels, dtype=torch.int64), predicted)

    size = batch_of(-(-len(split) // shards), machine.batch_size)
    batches = _batches(split, size, shard, shards)
    with contextlib.closing(_in_threads(work, batches, machine.workers)) as results:
        for done in results:
            undecodable += done.undecodable
            for confusion, own in zip(confusions, done.predicted, strict=False):  # a batch without one image has none
                confusion += torch.bincount(done.labels * classes + own, minlength=classes**2).view(classes, classes)
            if outcomes and done.places:
                outcomes.note(done.places, [own == done.labels for own in done.predicted])
            look()
    return confusions, undecodable


def nothing_decoded(split: Split, count: int, *, first: Example | None = None, hint: str | None = None) -> SourceError:
    """The error where not one of `count` images could be decoded: nothing measured or learned is no result.

    Args:
        split: where they are from.
        count: how many were tried.
        first: the first of them, whose fault is told; None for the first of the split, which is read again.
        hint: what to do; None to look at the dataset and the task card.
    """
    reason = "it can be decoded now"
    first = first or next(split.examples(chunk=1))
    try:
        decode(first.image)
    except UndecodableImage as error:
        reason = str(error)
    task, dataset = split.task, split.dataset
    return SourceError(
        f"Of {plural(count, 'image')} of {task.title} none could be decoded (the {dataset.split} split "
        f"of {dataset.label}). Of the first, {split.where(first.index)}: {reason}.",
        hint=hint or f"Look at the images of {dataset.label}, and at the image column of the task card.",
    )


def _batches(split: Split, size: int, shard: int, shards: int) -> Iterator[list[Example]]:
    batch: list[Example] = []
    for example in split.examples(shard, shards, chunk=size):
        batch.append(example)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _in_threads(
    work: Callable[[list[Example]], Result], batches: Iterator[list[Example]], workers: int
) -> Generator[Result, None, None]:
    """Results of `work` on each batch, in whatever order; at most two batches a worker are in memory.

    Each worker has one BLAS thread. A failure, or Ctrl-C, starts nothing more.
    """
    keep_freed_blocks()
    pool = ThreadPoolExecutor(workers, "score", initializer=torch.set_num_threads, initargs=(1,))
    waiting: set[Future[Result]] = set()
    try:
        with one_blas_thread(), full_float32():
            for batch in batches:
                waiting.add(pool.submit(work, batch))
                if len(waiting) >= 2 * workers:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (job.result() for job in done)
            yield from (job.result() for job in as_completed(waiting))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
