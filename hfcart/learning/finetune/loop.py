"""Fine-tuning a CLIP vision tower on one task (Individual) or on several at once (Traditional MTL).

The text side, both projections and the zero-shot heads are frozen: the tower learns to bring an image near the
prompts of its class. No augmentation: images are preprocessed as they will be when the tower is used. With
accelerate, for one process or many; the order of the images is a pure function of seed and step, so the state
to resume from is the weights, the optimiser and the step.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor

from hfcart.clip.pixels import normalised
from hfcart.errors import HfcartError, NonFiniteError, SourceError, UsageError
from hfcart.learning.batches import Batch, Loader, Mixture
from hfcart.learning.finetune.folder import LOG, finish, training_log
from hfcart.learning.finetune.objective import example_losses, learning_rate, weights
from hfcart.learning.finetune.plan import FinetunePlan, make_finetune_plan
from hfcart.learning.finetune.recipe import FinetuneRecipe
from hfcart.learning.finetune.state import TrainingState
from hfcart.learning.finetune.tracking import Tracking
from hfcart.learning.finetune.validation import cost, count_correct
from hfcart.progress import Progress
from hfcart.quoting import plural, some
from hfcart.records import FinetuneRecord
from hfcart.records.file_names import RECORDS
from hfcart.report.accuracy import described
from hfcart.system.allocator import keep_freed_blocks
from hfcart.system.checkpoints import FOLDER, Checkpoints
from hfcart.system.device import choose_device, full_float32, precision_for
from hfcart.system.environment import current_environment
from hfcart.system.tensor_files import TENSOR_FILES, TensorFiles
from hfcart.system.threads import default_workers
from hfcart.system.work_folder import WorkFolder
from hfcart.zero_shot.scoring import nothing_decoded

_LINES = 20  # lines of loss and rate that a whole training prints
_ENOUGH = 100  # images of a task, none of which can be decoded, before nothing more is expected of the others


def finetune(recipe: FinetuneRecipe, accelerator: Accelerator, progress: Progress) -> FinetuneRecord:
    """Fine-tune, verify and write the folder; every process gets the record. Arguments and errors as `run_finetune`."""
    device = _device(recipe, accelerator)
    with contextlib.ExitStack() as stack:
        folder = tensors = None
        if accelerator.is_main_process:  # it alone touches the disk; the others get the state from it
            folder = stack.enter_context(
                WorkFolder(recipe.folder, RECORDS, overwrite=recipe.overwrite, redone=(TENSOR_FILES,))
            )
        with accelerator.main_process_first():  # it downloads, the others find everything there
            plan = make_finetune_plan(recipe, precision_for(recipe.precision, device), progress)
        images = sum(len(split) for split in plan.splits)
        epochs = recipe.steps * recipe.batch_size / images
        progress.note(
            f"{plural(images, 'training image')}, {plural(recipe.steps, 'step')}: each seen about {epochs:.3g} times."
        )
        if plan.frozen:
            count = f"{len(plan.frozen)} of {plural(len(plan.shapes), 'tensor')}"
            progress.note(f"Frozen: {', '.join(plan.freeze)} ({count}).")
        if plan.validation:
            progress.note(cost(plan))
        environment = current_environment(device)
        if folder is not None:
            folder.begin(plan.fingerprint(environment, accelerator.num_processes))
            tensors = stack.enter_context(TensorFiles(folder.path, plan.layout))
        training = _Training(plan, accelerator, device, folder, progress)
        training.resume()
        with Tracking(folder, plan, progress) as tracking:
            training.run(tracking)
        record = None
        if folder is not None and tensors is not None:
            record = finish(folder, tensors, plan, training.state, accelerator.num_processes, environment, progress)
    (shared,) = broadcast_object_list([record])
    return shared  # type: ignore[no-any-return]


def _device(recipe: FinetuneRecipe, accelerator: Accelerator) -> torch.device:
    if recipe.batch_size % accelerator.num_processes:
        raise UsageError(
            f"A batch of {plural(recipe.batch_size, 'image')} cannot be shared evenly by "
            f"{plural(accelerator.num_processes, 'process', 'processes')}.",
            hint=f"Give a --batch-size that is a multiple of {accelerator.num_processes}.",
        )
    if accelerator.num_processes == 1:
        return choose_device(recipe.device)
    device: torch.device = accelerator.device
    if recipe.device not in ("auto", device.type):
        raise UsageError(
            f"accelerate launch runs on {device.type}, --device says {recipe.device}.",
            hint="Leave --device out; `accelerate launch --cpu` runs on the CPU.",
        )
    return device


class _Training:
    """The loop: batches in, one update a step, checkpoints of weights that have proved themselves."""

    def __init__(
        self,
        plan: FinetunePlan,
        accelerator: Accelerator,
        device: torch.device,
        folder: WorkFolder | None,
        progress: Progress,
    ) -> None:
        recipe = plan.recipe
        self._plan, self._recipe, self._progress = plan, recipe, progress
        self._accelerator, self._device, self._folder = accelerator, device, folder
        self._checkpoints = Checkpoints(folder.path / FOLDER) if folder else None
        self._tower: Any = plan.tower.model
        torch.nn.Module.to(self._tower, device)
        self.state = TrainingState(self._tower, lr=recipe.lr, weight_decay=recipe.weight_decay, frozen=plan.frozen)
        self._model, self._optimizer = accelerator.prepare(self._tower, self.state.optimizer)
        self._projection = plan.base.projection.to(device)
        self._heads = [values.to(device) for values in plan.heads]
        self._order = Mixture([len(split) for split in plan.splits], recipe.seed)
        self._readable: set[int] = set()  # tasks of which an image could be decoded

    def resume(self) -> None:
        """Go back to the newest checkpoint, if there is one: the first process reads it and tells the others."""
        state = self.state
        if self._checkpoints and (found := self._checkpoints.newest()):
            state.restore(*found)
        (told,) = broadcast_object_list([state.told()])
        if told["step"] == 0:
            return
        if not self._accelerator.is_main_process:
            state.expect(**told)
        for tensor in state.shared():
            broadcast(tensor)
        for step in range(state.step):
            if len(self._readable) == len(self._plan.tasks):
                break
            self._readable |= {
                place[0] for place in self._order.batch(step, self._recipe.batch_size) if place not in state.broken
            }
        self._progress.note(f"Resuming: {state.step} of {plural(self._recipe.steps, 'step')} done already.")

    def run(self, tracking: Tracking) -> None:
        """Train from the current step to the last. Raises HfcartError if it diverges."""
        recipe, accelerator, start = self._recipe, self._accelerator, self.state.step
        loader = Loader(
            order=self._order,
            splits=self._plan.splits,
            preprocessor=self._plan.base.preprocessor,
            side=self._plan.tower.architecture.image_size,
            batch_size=recipe.batch_size,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
            workers=recipe.workers or default_workers(),
        )
        keep_freed_blocks()
        self._progress.start("Fine-tuning", recipe.steps, "steps")
        try:
            self._progress.advance(start)
            if start == 0:
                self._validate(tracking)
            with full_float32(), contextlib.closing(loader.batches(start, recipe.steps)) as batches:
                for batch in batches:
                    self._train(batch, save=self.state.step > start and self.state.step % recipe.save_every == 0)
                    self._progress.advance(1)
                    self._report()
                    self._validate(tracking)
        finally:
            self._progress.finish()
        self._refuse_unreadable(1)
        if self.state.step > start:
            # Nothing will prove the last weights on a batch: they are looked at themselves.
            if not self.state.finite():
                raise self._diverged("a weight")
            self._save()
        if self.state.broken:
            names = some((self._plan.splits[task].where(index) for task, index in sorted(self.state.broken)), 3)
            count = plural(len(self.state.broken), "image")
            self._progress.warn(f"{count} could not be decoded and taught nothing ({names}).")

    def _rate(self, step: int) -> float:
        recipe = self._recipe
        return learning_rate(step, peak=recipe.lr, warmup=recipe.warmup_steps, steps=recipe.steps)

    def _train(self, batch: Batch, *, save: bool) -> None:
        """One step. The state is saved between the gradient and the update: these weights have just proved finite."""
        state = self.state
        self._optimizer.zero_grad()
        loss = self._backward(batch)
        limit = self._recipe.max_grad_norm or math.inf
        norm = float(self._accelerator.clip_grad_norm_(list(state.parameters.values()), limit))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged("the loss" if not math.isfinite(loss) else "the gradient's norm")
        if save:
            self._save()
        for group in state.optimizer.param_groups:
            group["lr"] = self._rate(state.step)
        self._optimizer.step()
        state.step += 1
        state.history.append((loss, norm))

    def _backward(self, batch: Batch) -> float:
        """Gradients of the batch's loss, averaged over the processes; returns the loss of the whole batch."""
        accelerator, plan = self._accelerator, self._plan
        share = len(batch.labels)
        own = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
        tasks = torch.tensor([task for task, _ in batch.places], device=self._device)
        labels = batch.labels.to(self._device)
        pixels = normalised(batch.pixels.to(self._device), plan.base.preprocessor)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=plan.precision == "bfloat16"):
            features = self._model(pixel_values=pixels).pooler_output
        losses = example_losses(features, labels, tasks[own], self._heads, self._projection, plan.base.logit_scale)
        # What each image of the whole batch cost, and whether it could be decoded: every process knows it of all.
        everywhere: Tensor = accelerator.gather(torch.stack([losses.detach(), batch.usable.to(losses)], 1))
        usable = everywhere[:, 1] > 0
        self._note_broken(batch, usable.tolist())
        counted = weights(tasks, usable)
        # Gradients are averaged over the processes: each gives its part of the sum that many times.
        accelerator.backward((counted[own] * losses).sum() * accelerator.num_processes)
        return float((counted * everywhere[:, 0]).sum())

    def _note_broken(self, batch: Batch, usable: list[bool]) -> None:
        self.state.broken |= {place for place, good in zip(batch.places, usable, strict=True) if not good}
        self._readable |= {task for (task, _), good in zip(batch.places, usable, strict=True) if good}
        self._refuse_unreadable(_ENOUGH if any(usable) else 1)
        if not any(usable):
            task = self._plan.tasks[batch.places[0][0]]
            raise SourceError(
                f"Of {plural(len(usable), 'image')} of step {self.state.step + 1} none could be decoded "
                f"(the first is of {task.dataset.label}).",
                hint="Look at the dataset's images, and at the image column of the task card.",
            )

    def _refuse_unreadable(self, enough: int) -> None:
        """Raise SourceError for a task of which none of so many images, or of all that there are, could be decoded."""
        for task, split in enumerate(self._plan.splits if self.state.broken else ()):
            broken = [index for number, index in self.state.broken if number == task]
            if task not in self._readable and len(broken) >= min(enough, len(split)):
                raise nothing_decoded(split, len(broken), first=split[min(broken)])

    def _diverged(self, what: str) -> HfcartError:
        kept = "no checkpoint was saved before"
        if self._folder and self._checkpoints:
            self._folder.add(LOG, training_log(self._plan, self.state.history))
            if steps := self._checkpoints.steps():
                kept = f"the state after step {steps[-1]} is kept in {self._folder.path}"
        step = min(self.state.step, self._recipe.steps - 1)
        return HfcartError(
            f"The training diverged: {what} of step {step + 1} of {self._recipe.steps} is not finite "
            f"(learning rate {self._rate(step):.3g}); {kept}.",
            hint=f"Try a lower --lr than {self._recipe.lr:g}, or a longer --warmup, with --overwrite to start anew.",
        )

    def _validate(self, tracking: Tracking) -> None:
        """Look at the validation images if it is time to, and log what is known of this step."""
        state, recipe = self.state, self._recipe
        every, step = recipe.validation_steps, state.step
        if every and (step % every == 0 or step == recipe.steps):
            try:
                correct, images = count_correct(self._plan, self._tower, self._accelerator, self._device)
            except NonFiniteError:
                raise self._diverged("what the tower makes of a validation image after the update") from None
            self._progress.note(f"Step {step} of {recipe.steps}: validation accuracy {self._look(correct, images)}")
        tracking.log(step, state, self._rate(max(0, step - 1)))

    def _look(self, correct: tuple[int, ...], images: tuple[int, ...]) -> str:
        look = self.state.look(correct, images, keep_best=self._recipe.keep == "best")
        seen = self.state.validation
        assert seen is not None
        best = ", the best so far" if seen.best is look and len(seen.looks) > 2 else ""
        return described(seen, look) + best

    def _save(self) -> None:
        if self._folder and self._checkpoints:
            self._checkpoints.save(self.state.step, self.state.checkpoint())
            self._folder.add(LOG, training_log(self._plan, self.state.history))

    def _report(self) -> None:
        step, steps = self.state.step, self._recipe.steps
        every = math.ceil(steps / _LINES)
        if step % every == 0 or step == steps:
            last = [loss for loss, _ in self.state.history[-every:]]
            mean = sum(last) / len(last)
            self._progress.note(f"Step {step} of {steps}: loss {mean:.4f}, learning rate {self._rate(step - 1):.2e}")
