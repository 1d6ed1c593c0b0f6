"""`hfcart compare`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hfcart.cli._shared.output import Output, reporting
from hfcart.cli._shared.params import (
    DEBUG,
    DEVICE,
    JSON,
    LIMIT,
    NO_STREAMING,
    PRECISION,
    QUIET,
    SOURCES,
    TASKS,
    WORKERS,
    measurement,
)
from hfcart.methods import ADAPTIVE, RANKED, behind
from hfcart.recipes.options import BASICS, IMAGES, OUTPUT
from hfcart.system.processes import together
from hfcart.zero_shot.measurement import Measurement

if TYPE_CHECKING:
    from hfcart.records import CompareRecord


def compare(
    sources: SOURCES,
    tasks: TASKS,
    methods: Annotated[
        str,
        typer.Option(
            metavar="METHODS",
            help="Such as cart,average,cart++, or all. Default: all that learn nothing.\f`hfcart methods` lists them. "
            "The default is all that take these sources and learn no coefficients, which takes long on a CPU.",
            show_default=False,
            rich_help_panel=BASICS,
        ),
    ] = "",
    base: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="The CLIP model with the text tower. Default: by cards or shape.\fThe base of methods that need one, "
            "too, as for `hfcart merge`.",
            rich_help_panel=BASICS,
        ),
    ] = None,
    references: Annotated[
        str,
        typer.Option(
            metavar="measured|none",
            help="The base and each task's own tower, or not.",
            rich_help_panel=IMAGES,
        ),
    ] = "measured",
    part: Annotated[
        str,
        typer.Option(
            metavar="validation|test|train",
            help="Which images.\fA method is chosen on validation images. Test images are for reporting: nothing is "
            "marked as the best there.",
            rich_help_panel=IMAGES,
        ),
    ] = "validation",
    limit: LIMIT = Measurement.limit,
    no_streaming: NO_STREAMING = False,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write.", rich_help_panel=BASICS)] = Path(
        "compare"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier comparison.", rich_help_panel=OUTPUT)
    ] = False,
    device: DEVICE = Measurement.device,
    precision: PRECISION = Measurement.precision,
    workers: WORKERS = None,
    quiet: QUIET = False,
    json: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Find the best method: merge with each, measure all on the same images.

    Examples:
        hfcart compare user/a user/b user/c --tasks 8 --methods cart,average,ties
        hfcart compare user/a user/b user/c --tasks 8 --limit 500
    """
    with reporting(quiet=quiet, json=json, debug=debug) as output, together() as team:
        if team is not None and not team.first:
            team.follow()
            return
        asked = measurement(
            tasks,
            base=base,
            part=part,
            limit=limit,
            no_streaming=no_streaming,
            references=references,
            device=device,
            precision=precision,
            workers=workers,
        )
        from hfcart.commands.compare import run_compare

        record = run_compare(
            sources,
            asked,
            methods=[name.strip() for name in methods.split(",") if name.strip()],
            out=out,
            overwrite=overwrite,
            progress=output,
            team=team,
        )
        if json:
            output.data(record.to_json())
        _show(record, sources, tasks, base, out, output)
    if any(row.error for row in record.rows):
        raise typer.Exit(1)


def _show(record: CompareRecord, sources: list[str], tasks: str, base: str | None, out: Path, output: Output) -> None:
    from hfcart.commands.compare import TABLE
    from hfcart.records.file_names import COMPARE_RECORD
    from hfcart.report.compare_table import cells, columns, evidence, explain

    output.result()
    output.table(columns(record), [cells(record, row) for row in record.rows])
    for sentence in (*evidence(record), explain(record)):
        output.result(sentence)
    for row in record.rows:
        if row.error:
            output.result(f"{row.name} failed: {row.error}")
    if record.part == "test":
        output.result("Measured on test images, which are for reporting: choose a method on validation images.")
    elif record.best:
        method = behind(record.best.name)
        options = [] if method.name == "cart" else ["--method", method.name]
        options += ["--base", base] if base and (method.needs_base or method.heads) else []
        options += ["--tasks", tasks] if method.statistics else []
        options += ["--adapt", tasks] if record.best.name in ADAPTIVE else []
        options += ["--adapt-ranks", "100%"] if record.best.name in RANKED else []
        output.result(f"  best     hfcart merge {shlex.join([*sources, *options])}")
    output.result(f"  table    {out / TABLE}")
    if (chart := out / "figures" / "compare.png").is_file():
        output.result(f"  chart    {chart}")
    output.result(f"  record   {out / COMPARE_RECORD}")
