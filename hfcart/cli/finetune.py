"""`hfcart finetune`."""

from __future__ import annotations

import json as json_module
import os
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfcart.cli._shared.output import Output, reporting
from hfcart.cli._shared.params import CREATE_PR, DEBUG, JSON, MESSAGE, PRIVATE, QUIET
from hfcart.recipes.options import BASICS, MACHINE, OUTPUT
from hfcart.recipes.options import TRAINING as _TRAINING

if TYPE_CHECKING:
    from hfcart.hub import Published
    from hfcart.learning.finetune.recipe import FinetuneRecipe
    from hfcart.records import FinetuneRecord, Validation


def finetune(
    base: Annotated[
        str,
        typer.Argument(metavar="BASE", help="The CLIP model: user/name, user/name@revision, or a folder."),
    ],
    tasks: Annotated[
        list[str],
        typer.Option(
            metavar="TASKS",
            help="A task, your own card or images; several train one tower jointly.\fA task, a group, a task card's "
            "path or a folder of images with train/ and test/ (`hfcart tasks` lists the tasks).",
            rich_help_panel=BASICS,
        ),
    ],
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate. Default: 1e-5.", rich_help_panel=_TRAINING)
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of every parameter. Default: 0.1.", rich_help_panel=_TRAINING)
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS",
            help="Linear warm-up. Default: 500, at most a quarter of the steps.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the optimiser. Default: 2000.", rich_help_panel=_TRAINING)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images a step, over all processes. Default: 128.", rich_help_panel=_TRAINING),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the order of the images. Default: 0.", rich_help_panel=_TRAINING)
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="auto|float32|bfloat16",
            help="Of the forward pass. Default: auto.\fauto: bfloat16 where the device computes with it.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    max_grad_norm: Annotated[
        float | None,
        typer.Option(help="Larger gradients are scaled down to it; 0: never. Default: 1.", rich_help_panel=_TRAINING),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Parts that stay the base's, such as embeddings.\fWith commas: embeddings, norms, biases, matrices "
            "(the attention and MLP weights), and modules by dotted names, such as encoder.layers.0.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Where to write. Default: the name in --push-to, else ./finetuned.",
            rich_help_panel=BASICS,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an output folder or repo that exists.", rich_help_panel=OUTPUT)
    ] = False,
    save_every: Annotated[
        int | None,
        typer.Option(metavar="STEPS", help="Between two checkpoints. Default: 100.", rich_help_panel=OUTPUT),
    ] = None,
    validate_every: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS",
            help="Between validations; 0: never. Default: a fifth of the steps.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="last|best",
            help="The last step, or the best in validation. Default: last.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="trackio|tensorboard|wandb",
            help="Log losses and accuracy there.\fCan be repeated.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    push_to: Annotated[
        str | None,
        typer.Option(metavar="USER/NAME", help="Publish the result there, in one commit.", rich_help_panel=BASICS),
    ] = None,
    private: PRIVATE = False,
    create_pr: CREATE_PR = False,
    commit_message: MESSAGE = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="auto|cpu|cuda[:N]|mps", help="Where to train. Default: auto.", rich_help_panel=MACHINE),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Threads that decode images. Default: one a core, at most 8.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    quiet: QUIET = False,
    json: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Fine-tune a CLIP vision tower on one task or several, the text side frozen.

    A killed training goes on when the same command is run again.

    Examples:
        hfcart finetune openai/clip-vit-base-patch32 --tasks sun397 --push-to user/clip-sun397
        hfcart finetune ./clip --tasks cars.yaml,eurosat --steps 4000 --out both
        hfcart finetune ./clip --tasks ./photos
        accelerate launch -m hfcart finetune ./clip --tasks svhn
    """
    first = os.environ.get("RANK", "0") == "0"  # of the processes that accelerate launched: it alone reports
    with reporting(quiet=quiet or not first, json=json and first, debug=debug) as output:
        from hfcart.learning.finetune.recipe import make

        given: dict[str, Any] = {
            "base": base,
            "tasks": tuple(tasks),
            "lr": lr,
            "weight_decay": weight_decay,
            "warmup": warmup,
            "steps": steps,
            "batch_size": batch_size,
            "seed": seed,
            "precision": precision,
            "max_grad_norm": max_grad_norm,
            "freeze": freeze,
            "out": out,
            "overwrite": overwrite,
            "save_every": save_every,
            "validate_every": validate_every,
            "keep": keep,
            "track": None if track is None else tuple(track),
            "push_to": push_to,
            "private": private,
            "create_pr": create_pr,
            "commit_message": commit_message,
            "device": device,
            "workers": workers,
        }
        recipe = make({key: value for key, value in given.items() if value is not None})
        from hfcart.commands.finetune import run_finetune

        record, published = run_finetune(recipe, output)
        if first:
            _show_result(recipe, record, published, output)


def _accuracies(seen: Validation, kept: int, keep: str) -> list[str]:
    """What the validation images say of the step that was kept, and whether another one was better."""
    from hfcart.report.accuracy import described

    after, best = seen.at(kept), seen.best
    assert after is not None and best is not None  # the last step and every candidate were looked at
    why = "the best" if keep == "best" else "the last"
    lines = [
        f"  accuracy {described(seen, after)} on validation images after step {kept}, {why}",
        f"           {described(seen, seen.looks[0])} before; 95 % intervals in brackets",
    ]
    if seen.accuracy(best) > seen.accuracy(after):
        lines.append(f"           step {best.step} had {described(seen, best)}: --keep best would keep it")
    return lines


def _show_result(recipe: FinetuneRecipe, record: FinetuneRecord, published: Published | None, output: Output) -> None:
    if output.json:
        output.data(record.to_json())
    method, tasks = record.method, ",".join(task.task for task in record.tasks)
    given = shlex.quote(",".join(recipe.tasks))  # cards of the user's own are known by their paths
    losses = f"training loss {method.first_loss:.4f} to {method.last_loss:.4f}"
    given += "" if record.sources[0].repo else f" --base {shlex.quote(recipe.base)}"
    folder = shlex.quote(str(recipe.folder))
    output.result()
    output.result(f"Fine-tuned {record.sources[0].label} on {tasks}, {losses}: {recipe.folder}")
    if record.curve and (seen := record.curve.validation):
        for line in _accuracies(seen, record.curve.kept, recipe.keep):
            output.result(line)
    output.result(f"  card     {recipe.folder / 'README.md'}")
    if published is None:
        output.result(f"  load     {record.model_class}.from_pretrained({json_module.dumps(str(recipe.folder))})")
        output.result(f"  measure  hfcart eval {folder} --tasks {given}")
        output.result(f"  publish  hfcart push {folder} --push-to user/name")
    else:
        at = published.revision
        load = f'"{recipe.push_to}"' + (f', revision="{at}"' if at else "")
        output.result(f"  load     {record.model_class}.from_pretrained({load})")
        output.result(f"  measure  hfcart eval {recipe.push_to}{f'@{at}' if at else ''} --tasks {given}")
        output.result(f"  online   {published.pull_request or published.url}")
    if output.quiet:
        output.essential(published.pull_request or published.url if published else str(recipe.folder))
