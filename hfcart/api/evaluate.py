"""`hfcart.evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from hfcart.api._calling import calling, names_of, plain, text_of
from hfcart.api.options import EvaluateOptions, Names, StrPath

if TYPE_CHECKING:
    from hfcart.api.results import Evaluated
    from hfcart.progress import Progress


def evaluate(
    tower: StrPath,
    tasks: Names,
    *,
    write: bool = True,
    progress: bool | Progress = False,
    **options: Unpack[EvaluateOptions],
) -> Evaluated:
    """Measure a tower's zero-shot accuracy on Hub datasets, as `hfcart eval` does. Prints nothing.

        results = hfcart.evaluate("merged", ["sun397", "eurosat"], limit=500)
        results.mean, results.to_frame()

    Args:
        tower: a Hub repo (`user/name`, `user/name@revision`) or a folder with a CLIP vision tower.
        tasks: task ids, groups ("8", "14", "20"), paths of task cards and of folders of images; `hfcart tasks` lists
            the tasks.
        write: whether results.json and the chart are written, and the card of a merged folder brought up to them.
        progress: True draws in a terminal or a notebook, a `Progress` of your own is told of every stage; False prints
            nothing, and warnings are Python's (HfcartWarning).

    Options:
        Basics:
            base (path): The CLIP model with the text tower. Default: by card or shape.
            out (path): Where to write. Default: a merged folder itself, else ./NAME-results.
            push (bool): Put the results into the tower's Hub repo, in one commit.
        Output:
            overwrite (bool): Let a sample replace a whole split's result, in folder and repo.
        Publishing:
            create_pr (bool): Open a pull request instead of committing to main.
            commit_message (str): Message of the commit.
        Images:
            part ("test" | "validation" | "train"): Which images. Default: test.
            limit (int): Score a seeded sample of so many images a task.
            seed (int): Of that sample.
            streaming (bool): Read images over the network; False keeps them in the cache. Default: True.
            references ("none" | "published" | "measured"): What to compare with. Default: published.
            adapters (bool): Of a merge with adapters, measure each task with its own, too. Default: True.
        Machine:
            device (str): Where to compute. Default: auto.
            precision ("auto" | "float32" | "bfloat16"): Of the forward pass. Default: auto.
            batch_size (int): Most images a forward pass. Default: 16 on a CPU, else 256.
            workers (int): Worker threads. Default: one a core, at most 8.

    Returns:
        The results, a task each in the order given (what results.json holds), with the folder and what was published.

    Raises:
        hfcart.errors.HfcartError: each kind of failure has its class; the message says what is wrong, and a hint, which
            a traceback shows, what to do next.
        hfcart.errors.KeywordError: a keyword that there is not (a TypeError, too).
    """
    with calling("eval", options, EvaluateOptions.__annotations__, progress) as listener:
        from hfcart.api.results import Evaluated, Published
        from hfcart.commands.evaluate import run_eval
        from hfcart.commands.evaluate_and_publish import run_measure
        from hfcart.errors import UsageError
        from hfcart.tasks.task_cards import read_tasks
        from hfcart.zero_shot.measurement import Measurement, split_options

        how, rest = split_options(plain(options))
        measurement = Measurement(read_tasks(names_of(tasks)), **how)
        ref = text_of(tower)
        if not write:
            if unfit := [name for name, value in rest.items() if value]:
                raise UsageError(f"write=False writes and publishes nothing: leave out {', '.join(unfit)}.")
            return Evaluated.of(run_eval(ref, measurement, listener).record, folder=None, published=None)
        out = rest.pop("out", None)
        done = run_measure(
            ref,
            measurement,
            out=Path(out) if out else None,
            push=rest.pop("push", False) or rest.get("create_pr", False),
            message=rest.pop("commit_message", None),
            progress=listener,
            **rest,
        )
        if done is None:
            raise UsageError("Of processes that were launched together, the first alone has the results.")
        return Evaluated.of(done.record, folder=done.folder, published=Published.made(done.published))
