"""A training's numbers on their way to trackio, tensorboard or wandb, by accelerate's trackers, if asked for.

A point is noted in the work folder's journal before it is sent, and one that is noted is not sent again: a resumed
training, which gives the same numbers once more, doubles none in its run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import secrets
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from hfcart.errors import HfcartError, UsageError
from hfcart.learning.finetune.plan import FinetunePlan
from hfcart.learning.finetune.state import TrainingState
from hfcart.progress import Progress
from hfcart.system.work_folder import WorkFolder

PROJECT = "hfcart"  # what runs are grouped under
RUNS = "runs"  # tensorboard's folder, beside the output: nothing of it is published


def check_trackers(names: Sequence[str]) -> None:
    """Refuse what is not installed, before the work. Raises UsageError."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"--track {name} needs the package {name}, which is not installed here.", hint=f"pip install {name}"
            )


class Tracking:
    """The trackers of one training; without any, and in all processes but the first, it does nothing.

    What a tracker prints on stdout is dropped, as stdout is for the command's own data: where to look is said here.
    """

    def __init__(self, folder: WorkFolder | None, plan: FinetunePlan, progress: Progress) -> None:
        """Take the work folder, whose journal remembers the run and its points; nothing is started yet."""
        self._folder, self._plan, self._progress = folder, plan, progress
        self._names = dict.fromkeys(plan.recipe.track) if folder else {}
        self._trackers: list[GeneralTracker] = []
        self._done = -1

    def __enter__(self) -> Self:
        """Start the run, or go on with that of the training that is resumed.

        Raises:
            HfcartError: a tracker does not start, e.g. because nobody is logged in.
        """
        if self._folder is None or not self._names:
            return self
        lines = self._folder.lines
        run = next((line["run"] for line in lines if "run" in line), None)
        if run is None:
            run = f"{self._plan.recipe.folder.name}-{secrets.token_hex(3)}"
            self._folder.note({"run": run})
        self._done = max((line["tracked"] for line in lines if "tracked" in line), default=-1)
        for name in self._names:
            tracker = self._tracker(name, run)
            try:
                with _quiet():
                    tracker.start()
            except Exception as error:  # whatever the package raises
                raise HfcartError(
                    f"--track {name} does not start: {type(error).__name__}.",
                    hint="Log in there first, or leave --track out. With --debug its own error is shown.",
                ) from error
            self._trackers.append(tracker)
            where = {
                "tensorboard": f"tensorboard --logdir {self._runs}",
                "trackio": f"trackio show --project {PROJECT}",
            }
            self._progress.note(f"Logging to {name}, run {run}" + (f": `{where[name]}`" if name in where else ""))
        return self

    def log(self, step: int, state: TrainingState, rate: float) -> None:
        """Send what is known of a step: loss, learning rate and gradient norm; accuracy where it was validated."""
        if self._folder is None or not self._trackers or step <= self._done:
            return
        values: dict[str, float] = {}
        if step:
            loss, norm = state.history[step - 1]
            values = {"train/loss": loss, "train/learning_rate": rate, "train/gradient_norm": norm}
        seen = state.validation
        if seen is not None and (look := seen.at(step)):
            values["validation/accuracy"] = seen.accuracy(look)
            if len(self._plan.tasks) > 1:
                each = zip(self._plan.tasks, look.correct, seen.images, strict=True)
                values |= {f"validation/accuracy/{task.id}": right / images for task, right, images in each}
        if not values:
            return
        self._folder.note({"tracked": step})
        for tracker in list(self._trackers):
            try:
                with _quiet():
                    tracker.log(values, step=step)
            except Exception as error:  # a training of hours does not end because a log does
                self._trackers.remove(tracker)
                self._progress.warn(
                    f"{tracker.name} took no more after step {step - 1} ({type(error).__name__}); the training goes on."
                )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the run; a resumed training goes on with it all the same."""
        for tracker in self._trackers:
            with contextlib.suppress(Exception), _quiet():
                # Trackio's own forgets the run, too: at the end of the process it would be ended, and told, once more.
                importlib.import_module("trackio").finish() if tracker.name == "trackio" else tracker.finish()

    @property
    def _runs(self) -> Path:
        return self._plan.recipe.folder.parent / RUNS

    def _tracker(self, name: str, run: str) -> GeneralTracker:
        config = self._plan.recorded_recipe()
        if name == "tensorboard":
            return TensorBoardTracker(run, logging_dir=self._runs)
        if name == "wandb":
            return WandBTracker(PROJECT, name=run, id=run, resume="allow", config=config)
        return TrackioTracker(PROJECT, name=run, resume="allow", config=config)


def _quiet() -> contextlib.redirect_stdout[io.StringIO]:
    return contextlib.redirect_stdout(io.StringIO())
