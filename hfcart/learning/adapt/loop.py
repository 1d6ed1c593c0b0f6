"""The loop of adaptation: merged weights in, every task's loss out, one update of the coefficients a step.

The forward pass runs with the merged weights as leaves, so dL/dc_t^l = ⟨dL/dW_l, component_t^l⟩: one task's graph is
held at a time (on a device a few tasks'), and what one inner product needs after it. Through accelerate: each process
takes some of a step's batches, and the gradients of the coefficients (a few hundred numbers) are added up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hfcart.clip.learned import pooled_to_learn, room_for_images
from hfcart.clip.models import vision_model
from hfcart.clip.pixels import normalised
from hfcart.clip.tensor_names import PROJECTION, canonical
from hfcart.engine.plan import Plan
from hfcart.engine.writing import GroupWriter
from hfcart.errors import HfcartError
from hfcart.formats.shard_layout import SINGLE
from hfcart.learning.adapt.learned import Learned, learned, report, warn_of_collapse
from hfcart.learning.adapt.masks import masks_of
from hfcart.learning.adapt.objective import MeanPredictions, cross_entropy, entropy, infomax, log_predictions
from hfcart.learning.adapt.own_predictions import OwnPredictions, own_predictions
from hfcart.learning.adapt.parts import PartsFile, budget_of, lay_out_parts, take_apart
from hfcart.learning.adapt.seen import Seen
from hfcart.learning.adapt.stacked_parts import StackedParts
from hfcart.learning.adapt.state import Coefficients
from hfcart.learning.adapt.work import Work, prepare
from hfcart.learning.batches import Batch, Loader, Place
from hfcart.progress import Progress
from hfcart.quoting import plural, some
from hfcart.system.allocator import heap_kept
from hfcart.system.checkpoints import FOLDER, Checkpoints
from hfcart.system.device import full_float32
from hfcart.system.environment import current_environment, fingerprint
from hfcart.system.tensor_files import TENSOR_FILES, TensorFiles
from hfcart.system.threads import default_workers
from hfcart.system.work_folder import WorkFolder, work_path
from hfcart.zero_shot.scoring import nothing_decoded

_SAVE_EVERY = 10
_AVERAGED = 50  # steps that the first and the last entropy are means of; a tenth of them where that is less
_OWN = "own-towers"  # folder of what they predict


def adapt(plan: Plan, folder: Path, preprocessor: dict[str, Any] | None, progress: Progress) -> Learned:
    """Learn the coefficients of a merge on unlabelled images.

    Every process that `accelerate launch` started calls it and gets the same; the first alone writes. The same call
    again goes on where a killed one stopped, and ends with the same numbers (same number of processes and threads).

    Args:
        plan: its towers fetched and in canonical order (in the first process; the others read what it wrote).
        folder: the work is kept in `folder`.partial, until the merge is done.
        preprocessor: of the merged tower; None for the base's.
        progress: told of each stage.

    Raises:
        UsageError: an unknown task, or a number of processes that the batches cannot be shared by.
        HfcartError: the base or a dataset is not what it should be; the entropy is not finite.
    """
    accelerator = Accelerator(mixed_precision="no", device_placement=False)
    with contextlib.ExitStack() as stack:
        work_folder = None
        if accelerator.is_main_process:
            work_folder = stack.enter_context(
                WorkFolder(folder, (), overwrite=plan.recipe.overwrite, redone=(TENSOR_FILES,), inner=True)
            )
        else:
            progress = Progress()
        with accelerator.main_process_first():  # it downloads, the others find everything there
            work = prepare(plan, accelerator, preprocessor, progress)
        if work_folder is not None:
            environment = current_environment(work.device)
            work_folder.begin(fingerprint(environment, *work.decides(accelerator.num_processes)))
            workers, exact = plan.recipe.workers or default_workers(), work.float32_plan()
            with TensorFiles(work_folder.path, lay_out_parts(plan)) as tensors:
                take_apart(exact, GroupWriter(exact, work_folder, tensors), work.device, workers, progress)
        accelerator.wait_for_everyone()
        own = None
        if work.objective == "distill":
            own = own_predictions(work, work_path(folder) / _OWN, accelerator, progress)
        kind = PartsFile if work.device.type == "cpu" else StackedParts
        made = kind(plan, work_path(folder) / SINGLE, work.device, budget=budget_of(work.device))
        parts = stack.enter_context(made)
        learning = _Learning(work, parts, own, accelerator, progress)
        learning.resume()
        learning.run()
        return learning.learned()


class _Learning:
    """Coefficients in, one step after another."""

    def __init__(
        self,
        work: Work,
        parts: PartsFile,
        own: OwnPredictions | None,
        accelerator: Accelerator,
        progress: Progress,
    ) -> None:
        self._work, self._parts, self._own, self._progress = work, parts, own, progress
        self._accelerator = accelerator
        self._checkpoints = Checkpoints(parts.folder / FOLDER)
        self._heads = [head.to(work.device) for head in work.heads]
        anchors = parts.anchors()
        # A projection that is kept is merged as well, and is what the tower's features will go through.
        self._projection = anchors.pop(PROJECTION, work.base.projection).to(work.device)
        model: Any = vision_model(work.plan.architecture, anchors)
        self._model = model.requires_grad_(False).to(work.device)
        named = {canonical(name) or name: parameter for name, parameter in self._model.named_parameters()}
        named[PROJECTION] = self._projection
        self._leaves = [[named[name] for name in adapted.group.names] for adapted in parts.adapted]
        for leaf in (leaf for leaves in self._leaves for leaf in leaves):
            leaf.requires_grad_(True)
        self._state = Coefficients(
            len(work.plan.towers),
            len(parts.adapted),
            start=work.start,
            per_task=work.recipe.adapt_per == "task",
            clamped=work.adaptive.clamped,
            lr=work.setting("lr"),
        )
        self._masks = masks_of(work, parts.adapted)
        # On a device several batches go through the tower together, as far as an eighth of its memory goes.
        self._at_once = max(1, room_for_images(work.plan.architecture, work.device) // work.recipe.batch_size)
        averaged = max(1, min(_AVERAGED, work.setting("steps") // 10))
        self._predictions = MeanPredictions([len(head) for head in work.heads], averaged)

    def resume(self) -> None:
        """Go back to the newest checkpoint, if there is one. Every process reads it: it is small."""
        self._accelerator.wait_for_everyone()
        if found := self._checkpoints.newest():
            self._state.restore(*found)
            if self._masks:
                self._masks.restore(*found)
            self._predictions.restore(*found)
            self._progress.note(f"Resuming: {found[0]} of {plural(self._work.setting('steps'), 'step')} done already.")

    def run(self) -> None:
        """Learn from the current step to the last. Raises HfcartError if the entropy is not finite."""
        work, accelerator, steps = self._work, self._accelerator, self._work.setting("steps")
        loader = Loader(
            order=work.order,
            splits=work.splits,
            preprocessor=work.preprocessor,
            side=work.plan.architecture.image_size,
            batch_size=work.images_a_step,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
            workers=work.recipe.workers or default_workers(),
        )
        self._progress.start(f"Learning the coefficients of {work.adaptive.title.partition(' (')[0]}", steps, "steps")
        try:
            self._progress.advance(self._state.step)
            with heap_kept(), full_float32(), contextlib.closing(loader.batches(self._state.step, steps)) as batches:
                for batch in batches:
                    self._learn(batch)
                    self._progress.advance(1)
                    report(work, self._state, self._masks, self._progress)
                    if self._state.step % _SAVE_EVERY == 0 or self._state.step == steps:
                        self._save()
        finally:
            self._progress.finish()
        if self._state.broken:
            names = some((self._work.splits[task].where(index) for task, index in sorted(self._state.broken)), 3)
            count = plural(len(self._state.broken), "image")
            self._progress.warn(f"{count} could not be decoded and taught nothing ({names}).")
        warn_of_collapse(work, self._predictions, self._progress)

    def learned(self) -> Learned:
        """What was learned up to now."""
        adapted, processes = self._parts.adapted, self._accelerator.num_processes
        return learned(self._work, adapted, self._state, self._masks, self._predictions, processes)

    def _learn(self, batch: Batch) -> None:
        """One step: merge, every own batch forward and backward, inner products, add up over processes, update."""
        work, state = self._work, self._state
        self._merge(state.values())
        seen = Seen([len(head) for head in work.heads], len(batch.places))
        size = work.recipe.batch_size
        first = self._accelerator.process_index * len(batch.labels)
        seen.usable[first : first + len(batch.labels)] = batch.usable.double()
        pixels, told = batch.pixels.to(work.device), list[tuple[int, Tensor]]()
        for start in range(0, len(batch.labels), size * self._at_once):
            own = slice(start, start + size * self._at_once)
            places = batch.places[first:][own]
            told += self._backward(places, pixels[own], batch.usable[own])
        found = [self._gradient(i) for i in range(len(self._leaves))]
        # Of all batches and groups in one transfer, the one thing of a step that the host waits for.
        rows = [*(row for _, row in told), *(each.reshape(-1) for each in found)]
        parts = torch.split(torch.cat(rows).cpu().double(), [len(row) for row in rows])
        for (task, _), row in zip(told, parts, strict=False):
            seen.add(task, row)
        gradient = torch.cat(parts[len(told) :])
        everything = torch.cat([gradient, seen.flat])
        if self._accelerator.num_processes > 1:
            everything = self._accelerator.reduce(everything.to(work.device), "sum").cpu()
        if not bool(torch.isfinite(everything).all()):
            raise HfcartError(
                f"The adaptation diverged: the loss of step {state.step + 1} or its gradient is not finite.",
                hint=f"Try a lower --lr than {work.setting('lr'):g}, or --scale, with --overwrite to start anew.",
            )
        gradient, flat = everything[: len(gradient)], everything[len(gradient) :]
        seen.flat.copy_(flat)
        state.broken |= {place for place, good in zip(batch.places, seen.usable.tolist(), strict=True) if not good}
        self._predictions.update(seen.predicted / work.adaptive.rounds)
        agreed = (seen.agreements / work.adaptive.rounds).tolist() if self._own else []
        by_group = torch.split(gradient, [each.numel() for each in found])
        self._update([row.view(each.shape) for row, each in zip(by_group, found, strict=True)], seen, agreed)

    def _update(self, gradients: Sequence[Tensor], seen: Seen, told: list[float]) -> None:
        """One step of Adam. Args: of each group dL/dc, or of every direction where these are chosen; for the log."""
        state, masks, values = self._state, self._masks, self._state.values()
        rows = list(gradients)
        shares = masks.shares() if masks else []
        if masks:
            places = [i for i, adapted in enumerate(self._parts.adapted) if adapted.chosen]
            along = [gradients[i] for i in places]
            for i, kept in zip(places, masks.kept(), strict=True):
                rows[i] = (gradients[i] * kept).sum(dim=1)
            # A direction of no use without its tower's coefficient: it adds c_t times itself.
            scaled = [values[:, i, None] * row for i, row in zip(places, along, strict=True)]
            masks.update(torch.cat([row.reshape(-1) for row in scaled]))
        entropies = (seen.entropies / self._work.adaptive.rounds).tolist()
        state.update(torch.stack(rows, 1), entropies, [*shares, *told])

    @torch.no_grad()
    def _merge(self, values: Tensor) -> None:
        """Put the merged weights into the model."""
        masks = iter(self._masks.kept() if self._masks else ())
        kept = [next(masks) if adapted.chosen else None for adapted in self._parts.adapted]
        self._parts.merge_all(values, self._leaves, kept)

    def _backward(self, places: Sequence[Place], pixels: Tensor, usable: Tensor) -> list[tuple[int, Tensor]]:
        """Add the gradients of some batches' losses to the weights' own. Returns what `Seen.add` takes of each."""
        work, size = self._work, self._work.recipe.batch_size
        with torch.autocast(work.device.type, torch.bfloat16, enabled=work.precision == "bfloat16"):
            features = pooled_to_learn(self._model, normalised(pixels, work.preprocessor))
        parts = zip(torch.split(features, size), torch.split(usable, size), strict=True)
        found = [self._loss(places[i * size : (i + 1) * size], *part) for i, part in enumerate(parts)]
        losses = [loss for loss, _ in found]
        self._accelerator.backward(sum(losses[1:], start=losses[0]))
        return [(task, row) for (task, _), (_, row) in zip(places[::size], found, strict=True)]

    def _loss(self, places: Sequence[Place], features: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of one batch, and what is to be told of it, on the device."""
        work, (task, index) = self._work, places[0]
        if not bool(usable.any()):
            raise nothing_decoded(work.splits[task], len(usable), first=work.splits[task][index])
        if not bool(usable.all()):
            features = features[usable.to(work.device)]
        log_p = log_predictions(features, self._heads[task], self._projection, work.base.logit_scale)
        loss = undecided = entropy(log_p)
        mean, agreement = log_p.detach().exp().mean(dim=0), torch.zeros_like(undecided)
        if work.objective == "infomax":
            loss = infomax(log_p, self._predictions.with_batch(task, mean).to(log_p))
        elif self._own is not None:
            own = self._own.of(places)[usable].to(log_p.device, log_p.dtype, non_blocking=True)
            loss = cross_entropy(log_p, own)
            agreement = (log_p.argmax(dim=1) == own.argmax(dim=1)).float().mean()
        return loss, torch.cat([undecided.detach()[None], agreement[None], mean])

    @torch.no_grad()
    def _gradient(self, number: int) -> Tensor:
        """dL/dc for each tower of one group, or of each of its directions where these are chosen.

        The weights' own gradient is let go.
        """
        leaves = self._leaves[number]
        found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        adapted, whole = self._parts.adapted[number], found[0] if len(found) == 1 else torch.cat(found)
        return self._parts.along(adapted, whole) if adapted.chosen else self._parts.inner(adapted, whole)

    def _save(self) -> None:
        if self._accelerator.is_main_process and self._state.step:
            state = self._state.checkpoint() | self._predictions.checkpoint()
            state |= self._masks.checkpoint() if self._masks else {}
            self._checkpoints.save(self._state.step, state)
