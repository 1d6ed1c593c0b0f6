"""`hfcart finetune` from a recipe to the end: check where it may go, fine-tune, publish."""

from __future__ import annotations

import atexit

from accelerate import Accelerator

from hfcart.commands.push import run_push
from hfcart.hub import Published, check_target, set_notifier
from hfcart.learning.finetune.loop import finetune
from hfcart.learning.finetune.recipe import FinetuneRecipe
from hfcart.learning.finetune.tracking import check_trackers
from hfcart.progress import Progress
from hfcart.records import FinetuneRecord
from hfcart.records.file_names import RECORDS
from hfcart.sources.places import open_store
from hfcart.sources.replacing import fine_tuning_of, refuse_replacing
from hfcart.system.work_folder import refuse_existing
from hfcart.tasks.task_cards import read_tasks


def run_finetune(recipe: FinetuneRecipe, progress: Progress) -> tuple[FinetuneRecord, Published | None]:
    """Fine-tune, verify, write the folder, and publish it if the recipe says where.

    Under `accelerate launch` every process calls it, and gets the same record; the first one alone writes,
    publishes and reports. (On CPUs `accelerate launch` starts one process whatever it is told: `torchrun` with
    ACCELERATE_USE_CPU=true starts several.) The same command again goes on where a killed one stopped, and ends
    with the same bytes (same number of processes and threads, same torch, same kind of processor; on a GPU, up to
    its own rounding).

    Args:
        recipe: what to do.
        progress: told of every stage.

    Returns:
        The record, and what was published (None without `push_to`, and in all processes but the first).

    Raises:
        HfcartError: see hfcart.errors; among others, when the training diverges.
        KeyboardInterrupt: with a note that says how to go on.
    """
    check_trackers(recipe.track)
    refuse_existing(recipe.folder, RECORDS, overwrite=recipe.overwrite)
    # Precision and device are this module's own affair: accelerate's are one setting for the whole process.
    accelerator = Accelerator(mixed_precision="no", device_placement=False)
    if accelerator.num_processes > 1:
        atexit.register(accelerator.end_training)  # its threads must be gone before the interpreter is
    target = None
    tasks = read_tasks(recipe.tasks)  # an unknown one is refused before the work
    if not accelerator.is_main_process:
        progress = Progress()
    elif recipe.push_to is not None:
        set_notifier(progress.note)
        progress.step(f"Checking write access to {recipe.push_to}")
        target = check_target(
            recipe.push_to, private=recipe.private, overwrite=recipe.overwrite, create_pr=recipe.create_pr
        )
        if not recipe.create_pr:
            new = fine_tuning_of(open_store(recipe.base, Progress()), [task.id for task in tasks])
            refuse_replacing(target, new, overwrite=recipe.overwrite, progress=progress)
    record = finetune(recipe, accelerator, progress)
    if target is None:
        return record, None
    return record, run_push(
        recipe.folder,
        target.repo,
        target=target,
        overwrite=recipe.overwrite,
        private=recipe.private,
        create_pr=recipe.create_pr,
        message=recipe.commit_message,
        progress=progress,
    )
