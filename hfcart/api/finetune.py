"""`hfcart.finetune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from hfcart.api._calling import calling, names_of, plain, text_of
from hfcart.api.options import FinetuneOptions, Names, StrPath

if TYPE_CHECKING:
    from hfcart.api.results import Finetuned
    from hfcart.progress import Progress


def finetune(
    base: StrPath,
    tasks: Names,
    *,
    progress: bool | Progress = False,
    **options: Unpack[FinetuneOptions],
) -> Finetuned:
    """Fine-tune a CLIP model's vision tower with the text side frozen, as `hfcart finetune` does. Prints nothing.

        tower = hfcart.finetune("openai/clip-vit-base-patch32", "sun397", steps=2000, out="sun397")

    A training that was interrupted goes on where it stopped when the same call is made again.

    Args:
        base: the CLIP model: `user/name[@revision]`, or a folder.
        tasks: as for `hfcart.evaluate`; several train one tower jointly.
        progress: True draws in a terminal or a notebook, a `Progress` of your own is told of every stage; False prints
            nothing, and warnings are Python's (HfcartWarning).

    Options:
        Basics:
            out (path): Where to write. Default: the name in `push_to`, else ./finetuned.
            push_to (str): Publish the result there, in one commit.
        Training:
            lr (float): Peak learning rate. Default: 1e-5.
            weight_decay (float): Of every parameter. Default: 0.1.
            warmup (int): Linear warm-up. Default: 500, at most a quarter of the steps.
            steps (int): Steps of the optimiser. Default: 2000.
            batch_size (int): Images a step, over all processes. Default: 128.
            seed (int): Of the order of the images. Default: 0.
            precision ("auto" | "float32" | "bfloat16"): Of the forward pass. Default: auto.
            max_grad_norm (float): Larger gradients are scaled down to it; 0: never. Default: 1.
            freeze (str): Parts that stay the base's, such as embeddings.
            validate_every (int): Between validations; 0: never. Default: a fifth of the steps.
            keep ("last" | "best"): The last step, or the best in validation. Default: last.
        Output:
            overwrite (bool): Replace an output folder or repo that exists.
            save_every (int): Between two checkpoints. Default: 100.
            track ("trackio" | "tensorboard" | "wandb"): Log losses and accuracy there.
        Publishing:
            private (bool): Make the repo private if it is created.
            create_pr (bool): Open a pull request instead of committing to main.
            commit_message (str): Message of the commit.
        Machine:
            device (str): Where to train. Default: auto.
            workers (int): Threads that decode images. Default: one a core, at most 8.

    Returns:
        The record of the training (what hfcart.json holds), with the folder and what was published.

    Raises:
        hfcart.errors.HfcartError: each kind of failure has its class; the message says what is wrong, and a hint, which
            a traceback shows, what to do next.
        hfcart.errors.KeywordError: a keyword that there is not (a TypeError, too).
    """
    with calling("finetune", options, FinetuneOptions.__annotations__, progress) as listener:
        from hfcart.learning.finetune.recipe import make

        recipe = make({**plain(options), "base": text_of(base), "tasks": tuple(names_of(tasks))}, "finetune()")
        from hfcart.api.results import Finetuned, Published
        from hfcart.commands.finetune import run_finetune

        record, published = run_finetune(recipe, listener)
        return Finetuned.of(record, folder=recipe.folder, published=Published.made(published))
