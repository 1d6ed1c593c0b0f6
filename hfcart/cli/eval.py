"""`hfcart eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hfcart.cli._shared.output import Output, reporting
from hfcart.cli._shared.params import (
    CREATE_PR,
    DEBUG,
    DEVICE,
    JSON,
    LIMIT,
    MESSAGE,
    NO_STREAMING,
    PRECISION,
    QUIET,
    TASKS,
    WORKERS,
    measurement,
)
from hfcart.errors import UsageError
from hfcart.recipes.options import BASICS, IMAGES, MACHINE, OUTPUT
from hfcart.zero_shot.measurement import Measurement

if TYPE_CHECKING:
    from hfcart.records import EvalRecord


def eval(
    tower: Annotated[
        str,
        typer.Argument(
            metavar="TOWER", help="A Hub repo (user/name, user/name@revision) or a folder with a CLIP vision tower."
        ),
    ],
    tasks: TASKS,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="The CLIP model with the text tower. Default: by card or shape.\fWhat the tower's record or card "
            "says, else the openai/clip-vit-* of its shape.",
            rich_help_panel=BASICS,
        ),
    ] = None,
    part: Annotated[
        str,
        typer.Option(
            metavar="test|validation|train",
            help="Which images.\fValidation is a seeded tenth of the train split: choose settings there.",
            rich_help_panel=IMAGES,
        ),
    ] = Measurement.part,
    limit: LIMIT = Measurement.limit,
    seed: Annotated[int, typer.Option(help="Of that sample.", rich_help_panel=IMAGES)] = Measurement.seed,
    no_streaming: NO_STREAMING = False,
    references: Annotated[
        str,
        typer.Option(
            metavar="none|published|measured",
            help="What to compare with.\fThe task cards' published figures, or the base, the plain average and each "
            "task's own tower, measured on the same images (of a merge that hfcart made).",
            rich_help_panel=IMAGES,
        ),
    ] = Measurement.references,
    no_adapters: Annotated[
        bool,
        typer.Option(
            "--no-adapters",
            help="Measure the tower alone, not with each task's adapter.\fOf a merge with adapters, each task is "
            "measured with the adapter of its own tower beside the tower alone, on the same images.",
            rich_help_panel=IMAGES,
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where to write. Default: a merged folder itself, else ./NAME-results.",
            rich_help_panel=BASICS,
        ),
    ] = None,
    push: Annotated[
        bool,
        typer.Option(
            "--push", help="Put the results into the tower's Hub repo, in one commit.", rich_help_panel=BASICS
        ),
    ] = False,
    push_to: Annotated[str | None, typer.Option(metavar="USER/NAME", hidden=True)] = None,
    create_pr: CREATE_PR = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Let a sample replace a whole split's result, in folder and repo.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    commit_message: MESSAGE = None,
    device: DEVICE = Measurement.device,
    precision: PRECISION = Measurement.precision,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Most images a forward pass. Default: 16 on a CPU, else 256.\fChanges no number.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    workers: WORKERS = None,
    quiet: QUIET = False,
    json: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Measure a tower's zero-shot accuracy on Hub datasets or your own images.

    Examples:
        hfcart eval user/merged --tasks sun397,eurosat --push
        hfcart eval ./merged --tasks 8 --limit 500
        hfcart eval ./merged --tasks ./photos
        accelerate launch -m hfcart eval user/merged --tasks 8
    """
    with reporting(quiet=quiet, json=json, debug=debug) as output:
        asked = measurement(
            tasks,
            base=base,
            part=part,
            limit=limit,
            seed=seed,
            no_streaming=no_streaming,
            references=references,
            adapters=not no_adapters,
            device=device,
            precision=precision,
            batch_size=batch_size,
            workers=workers,
        )
        from hfcart.commands.evaluate_and_publish import run_measure  # torch: only once the options are right

        done = run_measure(
            tower,
            asked,
            out=out,
            push=_same_repo(push_to, tower) or push or create_pr,
            create_pr=create_pr,
            overwrite=overwrite,
            message=commit_message,
            progress=output,
        )
        if done is None:  # another process of the same launch reports
            return
        if json:
            output.data(done.record.to_json())
        show_results(done.record, output)
        output.result(f"  results  {done.folder / 'results.json'}")
        output.result(f"  chart    {done.folder / 'figures' / 'accuracy.png'}")
        if done.published is not None:
            output.result(f"  online   {done.published.pull_request or done.published.url}")
            if quiet:
                output.essential(done.published.pull_request or done.published.url)


def _same_repo(push_to: str | None, tower: str) -> bool:
    """Whether --push-to, as other commands have it, names the repo that --push means. Raises UsageError for another."""
    if push_to is None:
        return False
    if push_to != tower.partition("@")[0]:
        raise UsageError(
            f"Results go to the repo of the tower that was measured, and {push_to} is not that of {tower}.",
            hint="Leave it at --push, or publish a folder of results: hfcart push FOLDER --push-to user/name",
        )
    return True


def show_results(record: EvalRecord, output: Output) -> None:
    """The table of accuracies, its mean, and what qualifies them."""
    from hfcart.report.eval_table import columns, remarks, rows

    output.result()
    output.table(columns(record), rows(record))
    for remark in remarks(record):
        output.result(remark)
