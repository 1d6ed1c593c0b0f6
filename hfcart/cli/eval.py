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
from hfcart.recipes.options import IMAGES, MACHINE, OUTPUT, PUBLISHING
from hfcart.zero_shot.measurement import Measurement

if TYPE_CHECKING:
    from hfcart.records import EvalRecord, Reference

_COMPARE = "Comparison"


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
            help="The CLIP model with the text tower. Default: what the tower's record or card says, "
            "else the openai/clip-vit-* of its shape.",
        ),
    ] = None,
    part: Annotated[
        str,
        typer.Option(
            metavar="test|validation|train",
            help="Which images. Validation is a seeded tenth of the train split: choose settings there.",
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
            help="Compare with the task cards' published figures, or with the base, the plain average and each "
            "task's own tower, measured on the same images (of a merge that hfcart made).",
            rich_help_panel=_COMPARE,
        ),
    ] = Measurement.references,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where to write the results. Default: a merged folder itself, else ./NAME-results.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    push: Annotated[
        bool,
        typer.Option("--push", help="Put the results into the Hub repo, in one commit.", rich_help_panel=PUBLISHING),
    ] = False,
    create_pr: CREATE_PR = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Let a sample replace the result of a whole split, in the folder and in the repo.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    commit_message: MESSAGE = None,
    device: DEVICE = Measurement.device,
    precision: PRECISION = Measurement.precision,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Images a forward pass; changes no number. Default: 16 on a CPU, else 256.", rich_help_panel=MACHINE
        ),
    ] = None,
    workers: WORKERS = None,
    quiet: QUIET = False,
    json: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Measure a tower's zero-shot accuracy on Hub datasets.

    Example:  hfcart eval user/merged --tasks sun397,eurosat --push

    Several GPUs or machines:  accelerate launch -m hfcart eval user/merged --tasks 8
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
            push=push or create_pr,
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


def show_results(record: EvalRecord, output: Output) -> None:
    """The table of accuracies, its mean, and what qualifies them."""
    from hfcart.report.accuracy import accuracy, mean_accuracy, mean_reference, normalised, wilson

    others = [n for n in ("pretrained", "average", "individual") if any(getattr(r, n) for r in record.results)]
    rows = []
    for result in record.results:
        low, high = wilson(result.correct, result.n)
        images = f"{result.n:,}" + (f" of {result.rows:,}" if result.partial else "")
        own = accuracy(result)
        rows.append(
            (
                result.title,
                "none" if own is None else f"{100 * own:.1f}",
                f"{100 * low:.1f} to {100 * high:.1f}",
                images,
                *(_figure(getattr(result, name)) for name in others),
            )
        )
    mean = mean_accuracy(record.results)
    if len(rows) > 1 and mean.value is not None:
        means = [mean_reference(getattr(r, name) for r in record.results) for name in others]
        cells = [
            f"{100 * m.value:.1f}{'*' * bool(m.published)}" if m.value is not None and m.tasks == mean.tasks else ""
            for m in means
        ]
        rows.append((f"mean of {mean.tasks}", f"{100 * mean.value:.1f}", "", "", *cells))
    output.result()
    output.table(["task", "accuracy %", "95 % interval", "images", *others], rows)
    ratio = normalised(record.results)
    if ratio.value is not None:
        kind = "published, not measured here" if ratio.published else "measured on the same images"
        output.result(f"Normalised accuracy: {100 * ratio.value:.1f} % of the individual towers' ({kind}).")
    if any(reference and not reference.measured for r in record.results for reference in _references(r)):
        output.result("* published for the same base; measured elsewhere.")
    if any(result.partial for result in record.results):
        output.result("Partial: samples, not whole splits. Such numbers are no results to quote.")
    if parts := {result.part for result in record.results} - {"test"}:
        output.result(f"Measured on {' and '.join(sorted(parts))} images, not on the test split.")


def _references(result: object) -> list[Reference | None]:
    return [getattr(result, name) for name in ("pretrained", "individual", "average")]


def _figure(reference: Reference | None) -> str:
    return "" if reference is None else f"{100 * reference.accuracy:.1f}{'' if reference.measured else '*'}"
