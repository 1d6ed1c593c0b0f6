"""The end of a fine-tuning: the folder written, proven and renamed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from typing import Any

import torch

from hfcart.clip.architecture import output_config
from hfcart.formats.shard_layout import INDEX
from hfcart.learning.finetune.objective import learning_rate
from hfcart.learning.finetune.plan import FinetunePlan
from hfcart.learning.finetune.state import BETAS, EPSILON, TrainingState
from hfcart.progress import Progress
from hfcart.recipes.finished_finetuning import FROZEN, MODEL_CLASS, OPTIMIZER, RULE
from hfcart.records import Environment, FinetuneRecord, TensorRecord, TrainedTask, TrainingCurve, TrainingRecord
from hfcart.records.check import MOST_LOSSES
from hfcart.records.file_names import RECORD
from hfcart.report.finetune_card import render_finetune_card
from hfcart.sources.preprocessor import FILE as PREPROCESSOR
from hfcart.sources.preprocessor import to_json
from hfcart.system.checkpoints import FOLDER as CHECKPOINTS
from hfcart.system.disk import explain_os_errors
from hfcart.system.tensor_files import TensorFiles, read_back
from hfcart.system.work_folder import WorkFolder
from hfcart.tasks.copies import copies

LOG = "results/training.csv"
AVERAGED = 50  # steps that the first and the last loss are means of; a tenth of the training where that is less


def training_log(plan: FinetunePlan, history: Sequence[tuple[float, float]]) -> bytes:
    """The training as CSV, one row a step: loss, learning rate, and gradient norm before it was limited."""
    recipe = plan.recipe
    lines = ["step,loss,learning_rate,gradient_norm"]
    for step, (loss, norm) in enumerate(history):
        rate = learning_rate(step, peak=recipe.lr, warmup=recipe.warmup_steps, steps=recipe.steps)
        lines.append(f"{step + 1},{loss:.8g},{rate:.8g},{norm:.8g}")
    return ("\n".join(lines) + "\n").encode()


def finish(
    folder: WorkFolder,
    tensors: TensorFiles,
    plan: FinetunePlan,
    state: TrainingState,
    processes: int,
    environment: Environment,
    progress: Progress,
) -> FinetuneRecord:
    """Write the trained tower and what goes beside it, prove it, and rename the folder into place.

    Args:
        folder: where the training was done.
        tensors: with the plan's layout, in that folder.
        plan: what was trained.
        state: after the last step.
        processes: how many shared each batch.
        environment: versions and device.
        progress: told of the stages.
    """
    from hfcart.report.plots import draw_training  # matplotlib's memory must not add to the training's own

    progress.step("Writing the tower and reading it back")
    best = state.validation and state.validation.best
    kept = best.step if best and plan.recipe.keep == "best" else state.step
    digests, weights = {}, state.weights(best=kept != state.step)
    for name in plan.shapes:
        flat: Any = weights[name].contiguous().reshape(-1).view(torch.uint8).numpy()
        digests[name] = tensors.write(name, memoryview(flat))
    files = dict(read_back(folder.path, plan.layout, digests))
    for name, data in _small_files(plan).items():
        folder.add(name, data)
        files[name] = hashlib.sha256(data).hexdigest()
    for name, card in copies(zip(plan.tasks, (split.dataset for split in plan.splits), strict=True)).items():
        folder.add(name, card)
    folder.add(LOG, training_log(plan, state.history))
    curve = TrainingCurve(*_stretches(state.history), kept, state.validation)
    record = _record(plan, state, processes, environment, digests, files, curve)
    folder.add(RECORD, record.to_json().encode())
    with explain_os_errors(folder.path):
        draw_training(curve, record.tasks, folder.path)
    folder.add("README.md", render_finetune_card(record, repo=plan.recipe.push_to).encode())
    shutil.rmtree(folder.path / CHECKPOINTS, ignore_errors=True)
    folder.commit()
    return record


def _small_files(plan: FinetunePlan) -> dict[str, bytes]:
    config = output_config(plan.tower.architecture, MODEL_CLASS, "float32")
    contents = {
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
        PREPROCESSOR: to_json(plan.base.preprocessor),
    }
    index = plan.layout.index
    return contents if index is None else {**contents, INDEX: index}


def _record(
    plan: FinetunePlan,
    state: TrainingState,
    processes: int,
    environment: Environment,
    digests: dict[str, str],
    files: dict[str, str],
    curve: TrainingCurve,
) -> FinetuneRecord:
    undecodable = state.undecodable(len(plan.tasks))
    return FinetuneRecord(
        recipe=plan.recorded_recipe(),
        method=_training(plan, state, processes),
        sources=(plan.base.source,),
        tasks=tuple(
            TrainedTask(task.id, task.title, split.dataset, len(split), broken, task.sha256)
            for task, split, broken in zip(plan.tasks, plan.splits, undecodable, strict=True)
        ),
        architecture=plan.tower.architecture,
        model_class=MODEL_CLASS,
        parameters=plan.parameters,
        dtype="float32",
        tensors=tuple(
            TensorRecord(
                name, shape, "F32", FROZEN if name in plan.frozen else RULE, None, None, None, False, digests[name]
            )
            for name, shape in plan.shapes.items()
        ),
        environment=environment,
        files=dict(sorted(files.items())),
        curve=curve,
    )


def _stretches(history: Sequence[tuple[float, float]]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Ends of stretches of steps that are about equally long, and the mean loss of each."""
    count = min(MOST_LOSSES, len(history))
    ends = [len(history) * (i + 1) // count for i in range(count)]
    losses = [loss for loss, _ in history]
    return tuple(ends), tuple(
        round(sum(losses[start:end]) / (end - start), 6) for start, end in zip([0, *ends], ends, strict=False)
    )


def _training(plan: FinetunePlan, state: TrainingState, processes: int) -> TrainingRecord:
    losses = [loss for loss, _ in state.history]
    count = max(1, min(AVERAGED, len(losses) // 10))
    return TrainingRecord(
        name="joint" if len(plan.tasks) > 1 else "individual",
        optimizer=OPTIMIZER,
        betas=BETAS,
        epsilon=EPSILON,
        schedule="cosine",
        processes=processes,
        first_loss=round(sum(losses[:count]) / count, 6),
        last_loss=round(sum(losses[-count:]) / count, 6),
    )
