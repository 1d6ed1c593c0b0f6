"""The loop: for each group of tensors, read T slices, merge them, cast once, write them in place.

Memory is O(workers × T × the largest group). All arithmetic runs in worker threads with one BLAS thread
each, `--workers 1` included: a matrix decomposed with two threads differs in its last bits from one
decomposed with one, and two threads fighting over two cores are slower than one.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from math import prod
from typing import Any

import torch

from hfcart.clip.tensor_names import PROJECTION, Group
from hfcart.engine.plan import TORCH_NAME, Plan
from hfcart.errors import NonFiniteError
from hfcart.formats.safetensors_file import DTYPE_BYTES, TensorSpec
from hfcart.maths.moments import spread_of
from hfcart.methods import Measure, Merged, function, keywords_of
from hfcart.methods.lines import alpha_of, factor, norms, scaled
from hfcart.progress import Progress
from hfcart.sources.towers import Tower
from hfcart.system.allocator import freed_blocks_go_back
from hfcart.system.device import one_blas_thread
from hfcart.system.work_folder import PartialFolder

_DTYPES = {name: getattr(torch, torch_name) for name, torch_name in TORCH_NAME.items()}


def run(
    plan: Plan,
    partial: PartialFolder,
    device: torch.device,
    workers: int,
    progress: Progress,
    worker: Callable[[Plan, PartialFolder, torch.device], Worker] | None = None,
    label: str = "Merging",
) -> None:
    """Merge every group that the journal does not have yet, and add it to the journal.

    Args:
        plan: with its towers fetched and in canonical order.
        partial: opened; `partial.done` holds every group's journal line afterwards.
        device: where the algebra is done.
        workers: number of worker threads, >= 1.
        progress: told the bytes of sources merged.
        worker: what is done with each group; the merge by default.
        label: name of the stage.

    Raises:
        NonFiniteError: NaN or Inf in a source, or a result that the output dtype cannot hold.
        KeyboardInterrupt: passed on once the groups at work are written; the partial folder can be resumed.
    """
    hand = (worker or Worker)(plan, partial, device)
    bytes_of = {group.key: hand.bytes_read(group) for group in plan.groups}
    todo = [group for group in plan.groups if group.key not in partial.done]

    def one(group: Group) -> None:
        hand.merge(group)
        progress.advance(bytes_of[group.key])

    pool = ThreadPoolExecutor(workers, "merge", initializer=torch.set_num_threads, initargs=(1,))
    try:
        with freed_blocks_go_back(), one_blas_thread():
            if plan.method.fit or plan.recipe.lines is not None:
                hand.known = _learn(plan, partial, hand, pool, 2 * workers, progress)
            progress.start(label, sum(bytes_of.values()), "bytes")
            progress.advance(sum(bytes_of[key] for key in partial.done))
            _finish_all([pool.submit(one, group) for group in todo], pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        progress.finish()


def _learn(
    plan: Plan, partial: PartialFolder, worker: Worker, pool: ThreadPoolExecutor, ahead: int, progress: Progress
) -> dict[str, Any]:
    """What must be known of all groups before the first is merged: from the journal, or by reading them all first."""
    if partial.fit is not None:
        return partial.fit
    groups = [group for group in plan.groups if not group.copied]
    bytes_of = {group.key: worker.bytes_read(group) for group in groups}

    def total(measure: Callable[[Group], torch.Tensor]) -> torch.Tensor:
        progress.start("Measuring", sum(bytes_of.values()), "bytes")
        waiting: deque[tuple[Group, Future[torch.Tensor]]] = deque()
        parts: list[torch.Tensor] = []

        def take() -> None:
            group, job = waiting.popleft()
            # In output order, whoever was faster: sums of floats then have the same bits for any number of workers.
            parts[:] = [sum(parts, job.result())]
            progress.advance(bytes_of[group.key])

        for group in groups:
            waiting.append((group, pool.submit(measure, group)))
            if len(waiting) > ahead:  # results wait for their turn: few of them, they may be histograms
                take()
        while waiting:
            take()
        progress.finish()
        return parts[0]

    if plan.method.fit:
        fit = function(plan.method.fit)
        passes = fit(**keywords_of(fit, plan.settings))
        try:
            measure = next(passes)
            while True:
                measure = passes.send(total(functools.partial(worker.measure, measure)))
        except StopIteration as end:
            worker.known = end.value
    if plan.recipe.lines is not None:
        alpha = alpha_of(total(worker.norms), len(plan.towers))
        worker.known = {**worker.known, "alpha": alpha}
    partial.record({"fit": worker.known})
    return worker.known


def other_projections(plan: Plan) -> list[str]:
    """Labels of the sources that carry another visual projection than the base's, which a whole CLIPModel gets."""
    if plan.parts is None or plan.base is None:
        return []
    own = _stored(plan.base, plan.parts.tensors[PROJECTION])

    def same(tower: Tower, spec: TensorSpec) -> bool:
        if spec.shape != tuple(own.shape) or spec.dtype not in _DTYPES:
            return False
        theirs = _stored(tower, spec)
        # Either may have been rounded to the other's dtype.
        return any(torch.equal(own.to(dtype), theirs.to(dtype)) for dtype in (own.dtype, theirs.dtype))

    found = [(tower, spec) for tower in plan.towers for spec in tower.stored if spec.name == PROJECTION]
    return [tower.label for tower, spec in found if not same(tower, spec)]


def _stored(tower: Tower, spec: TensorSpec) -> torch.Tensor:
    """A tensor as a file stores it."""
    out = torch.empty(spec.shape, dtype=_DTYPES[spec.dtype])
    tower.read_stored(spec, _bytes_of(out))
    return out


def _finish_all(jobs: list[Future[None]], pool: ThreadPoolExecutor) -> None:
    wait(jobs, return_when=FIRST_EXCEPTION)
    if any(job.done() and not job.cancelled() and job.exception() for job in jobs):
        pool.shutdown(wait=True, cancel_futures=True)
    for job in jobs:  # in output order: the same input fails with the same message, whoever was faster
        if not job.cancelled():
            job.result()


class Worker:
    """What the worker threads share: nothing that changes but the output, and one read buffer a thread."""

    def __init__(self, plan: Plan, partial: PartialFolder, device: torch.device) -> None:
        """Take what `run` was given, and load the method's rules."""
        self._plan = plan
        self._partial = partial
        self._device = device
        self._matrix_rule, self._other_rule = plan.method.load()
        self._largest = max(plan.group_elements(group) for group in plan.groups if not group.copied)
        self._local = threading.local()
        self._journal_lock = threading.Lock()
        self._blocks = plan.architecture.num_hidden_layers
        self.known: dict[str, Any] = {}  # what was gathered of all groups before the first is merged

    def bytes_read(self, group: Group) -> int:
        """Bytes that a group takes: of every source, or of the base where it is copied."""
        return sum(
            DTYPE_BYTES[tower.tensors[name].dtype] * prod(self._plan.shapes[name])
            for tower in self._taken_from(group)
            for name in group.names
        )

    def merge(self, group: Group) -> None:
        """Read, merge (or copy), check, write and journal one group."""
        if group.copied:
            merged, spread = self._copy(group), None
        else:
            merged, spread = self._merge(group)
        low_rank = merged.rank is not None
        line = {
            "group": group.key,
            "sha256": self.write(group, merged.tensor),
            "rank": merged.rank,
            "full_rank": min(self._stacked_shape(group)) if low_rank else None,
            "energy": merged.energy,
            "fallback": merged.fallback,
            "spread": spread,
        }
        self.journal(line)

    def journal(self, line: dict[str, Any]) -> None:
        """Note a group as done: `line` names it under "group", and what was written for it under "sha256"."""
        with self._journal_lock:
            self._partial.record(line)
            self._partial.done[line["group"]] = line

    def _merge(self, group: Group) -> tuple[Merged, list[list[float]]]:
        thetas, base = self.stack(group)
        merged = self._rule(group)(thetas, **self._keywords(group, base))
        beta = self._plan.recipe.lines
        if beta is not None and base is not None:
            by = factor(group.key, self._blocks, self.known["alpha"], beta)
            merged = merged._replace(tensor=scaled(merged.tensor, base, by))
        return merged, spread_of(thetas, base).tolist()

    def measure(self, measure: Measure, group: Group) -> torch.Tensor:
        """A group's part of a statistic of the whole towers."""
        thetas, base = self.stack(group)
        return measure(thetas, base)  # type: ignore[no-any-return]

    def norms(self, group: Group) -> torch.Tensor:
        """A group's part of the norms that LiNeS compares: of the summed task vectors, and of the merged one."""
        thetas, base = self.stack(group)
        assert base is not None  # a method of task vectors has one
        return norms(thetas, base, self._rule(group)(thetas, **self._keywords(group, base)).tensor)

    def stack(self, group: Group) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The group of every tower (task × shape, float32, on the device), and of the base if there is one.

        The towers' tensor is this thread's buffer: the next call overwrites it.
        """
        plan, shape = self._plan, self._stacked_shape(group)
        thetas = self._read(group, plan.towers, self._buffer(len(plan.towers) * prod(shape))).view(-1, *shape)
        if plan.base is None:
            return thetas, None
        return thetas, self._read(group, [plan.base], torch.empty(prod(shape))).view(shape)

    def _copy(self, group: Group) -> Merged:
        (tower,), (name,) = self._taken_from(group), group.names
        stored = _stored(tower, tower.tensors[name])
        _refuse_non_finite(stored, f"{tower.label}: tensor {name}")
        return Merged(stored)

    def _taken_from(self, group: Group) -> list[Tower]:
        base = self._plan.base
        return [base] if group.copied and base else self._plan.towers

    def _rule(self, group: Group) -> Callable[..., Merged]:
        return self._matrix_rule if group.matrix else self._other_rule

    def _keywords(self, group: Group, base: torch.Tensor | None) -> dict[str, Any]:
        """What the group's rule names of the recipe's parameters and of all else that is known."""
        # Where LiNeS scales each block, nothing else does: a recipe with `lines` has no scale.
        whole = {"scale": 1.0} if self._plan.recipe.lines is not None else {}
        offered = {**whole, **self._plan.settings, **self.known, "base": base, "key": group.key}
        # OpenCLIP, which the papers' towers are of, stores visual.proj as width × dim, the transpose of ours.
        offered["transposed"] = group.key == PROJECTION
        offered["coefficients"] = self._plan.coefficients_of(group)
        if gathered := self._plan.gathered:
            offered |= {**gathered.known, **gathered.of(group, self._device)}
        return keywords_of(self._rule(group), offered)

    def _stacked_shape(self, group: Group) -> tuple[int, ...]:
        shapes = [self._plan.shapes[name] for name in group.names]
        return shapes[0] if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def _buffer(self, elements: int) -> torch.Tensor:
        """This thread's float32 buffer: allocated once, at the largest group's size, and reused."""
        if not hasattr(self._local, "buffer"):
            self._local.buffer = torch.empty(len(self._plan.towers) * self._largest)
        buffer: torch.Tensor = self._local.buffer
        return buffer[:elements]

    def _read(self, group: Group, towers: list[Tower], into: torch.Tensor) -> torch.Tensor:
        """Fill a flat float32 tensor with the group of each tower in turn; check it; bring it to the device."""
        position = 0
        for tower in towers:
            for name in group.names:
                count = prod(self._plan.shapes[name])
                part = into[position : position + count]
                dtype = _DTYPES[tower.tensors[name].dtype]
                stored = part if dtype == torch.float32 else torch.empty(count, dtype=dtype)
                tower.read_into(name, _bytes_of(stored))
                if stored is not part:
                    part.copy_(stored)
                _refuse_non_finite(part, f"{tower.label}: tensor {tower.tensors[name].name}")
                position += count
        return into.to(self._device)

    def write(self, group: Group, tensor: torch.Tensor, prefix: str = "") -> dict[str, str]:
        """Write what was made of a group, cast once, into its tensors' slots, `prefix` + name. Returns their sha256."""
        result = tensor.to("cpu", _DTYPES[self._plan.dtype])
        names = group.names
        if len(names) == 1:  # of any shape, the logit scale has none
            parts = [result]
        else:
            parts = list(torch.split(result, [self._plan.shapes[name][0] for name in names]))
        digests = {}
        for name, part in zip(names, map(torch.Tensor.contiguous, parts), strict=True):
            if not _all_finite(part):
                what = f"{name} of the base" if group.copied else f"The merged {name}"
                raise NonFiniteError(
                    f"{what} has values beyond what {TORCH_NAME[self._plan.dtype]} holds.",
                    hint="Give --dtype float32" + ("." if group.copied else ", or a smaller --scale."),
                )
            digests[prefix + name] = self._partial.write(prefix + name, _bytes_of(part))
        return digests

    def write_whole(self, name: str, tensor: torch.Tensor) -> dict[str, str]:
        """Write a float32 tensor into the slot of that name. Returns its sha256, by name."""
        return {name: self._partial.write(name, _bytes_of(tensor.cpu().contiguous()))}


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """A contiguous CPU tensor's own memory, writable."""
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _all_finite(values: torch.Tensor) -> bool:
    # A finite sum proves finite terms, and is several times cheaper than looking at each.
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def _refuse_non_finite(values: torch.Tensor, where: str) -> None:
    if _all_finite(values):
        return
    bad = int((~torch.isfinite(values)).sum())
    raise NonFiniteError(
        f"{where} holds NaN or Inf ({bad:,} of {values.numel():,} values).",
        hint="Leave that source out, or name an earlier revision of it: user/name@revision.",
    )
