"""`hfcart sweep`."""

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
from hfcart.cli._shared.recipe_options import given_fields
from hfcart.recipes.grid import numbers
from hfcart.recipes.options import BASICS, IMAGES, MERGED, METHOD, OUTPUT
from hfcart.system.processes import together
from hfcart.zero_shot.measurement import Measurement

if TYPE_CHECKING:
    from hfcart.records import SweepPoint, SweepRecord


def sweep(
    sources: SOURCES,
    tasks: TASKS,
    method: Annotated[
        str,
        typer.Option(
            metavar="METHOD",
            help="cart, or another with a scale, such as tsv_m.\fAny that adds λ times something to the base and "
            "looks at no images; those have scales only.",
            rich_help_panel=BASICS,
        ),
    ] = "cart",
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="RANKS",
            help="Such as 0.02,8%,1.0 or 2%:50%:10. Default: 2, 4, 8, 16, 32, 100 %.\f0.02,0.08,1.0 names them; "
            "0.02:0.5 is six of them evenly apart by ratio, 0.02:0.5:10 ten.",
            rich_help_panel=BASICS,
        ),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="SCALES",
            help="Such as 1,1.5,2 or 0.5:2.5:9. Default: the method's usual ones.\f1,1.5,2 names them; 0.5:2.5 is "
            "five of them evenly apart, 0.5:2.5:9 nine. The usual ones: 1 to 2.5 for cart; for others a third to twice "
            "their default.",
            rich_help_panel=BASICS,
        ),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="X or X,X", help="consensus: as for `hfcart merge`, at every point.", rich_help_panel=METHOD
        ),
    ] = None,
    agree: Annotated[
        int | None, typer.Option(help="consensus: as for `hfcart merge`, at every point.", rich_help_panel=METHOD)
    ] = None,
    reverse: Annotated[
        bool,
        typer.Option(
            "--reverse", help="Keep the lowest singular directions in place of the top.", rich_help_panel=MERGED
        ),
    ] = False,
    adapters: Annotated[
        bool,
        typer.Option(
            "--adapters",
            help="Measure the average with an adapter for each task, not merges.\fAt every rank, each task "
            "through the adapter of its own tower: the one that its card names, or whose card names its dataset, or "
            "whose record its folder; say others as SOURCE=TASK among the tasks. (Eq. 5 and Fig. 3 of CART's paper.)",
            rich_help_panel=MERGED,
        ),
    ] = False,
    adapters_carry: Annotated[
        str,
        typer.Option(
            metavar="all|matrices",
            help="What adapters hold.\fall: biases, norms and embeddings of the source, too. matrices: the attention "
            "and MLP weights alone, as Eq. 5 is printed.",
            rich_help_panel=MERGED,
        ),
    ] = "all",
    qkv: Annotated[
        str,
        typer.Option(
            metavar="split|fused", help="Merge q, k and v as three matrices, or as one.", rich_help_panel=MERGED
        ),
    ] = "split",
    base: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="The CLIP model with the text tower. Default: by cards or shape.",
            rich_help_panel=BASICS,
        ),
    ] = None,
    part: Annotated[
        str,
        typer.Option(
            metavar="validation|test|train",
            help="Which images.\fA setting is chosen on validation images. What is chosen on test images is no "
            "result: nothing is marked as the best there.",
            rich_help_panel=IMAGES,
        ),
    ] = "validation",
    limit: LIMIT = Measurement.limit,
    no_streaming: NO_STREAMING = False,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write.", rich_help_panel=BASICS)] = Path(
        "sweep"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier sweep.", rich_help_panel=OUTPUT)
    ] = False,
    device: DEVICE = Measurement.device,
    precision: PRECISION = Measurement.precision,
    workers: WORKERS = None,
    quiet: QUIET = False,
    json: JSON = False,
    debug: DEBUG = False,
) -> None:
    """Find the best rank and scale: a grid of them, measured on validation images.

    Examples:
        hfcart sweep user/a user/b user/c --tasks 8
        hfcart sweep user/a user/b user/c --tasks 8 --rank 0.02:0.5 --scale 0.5:2.5
        hfcart sweep user/a user/b user/c --tasks 8 --adapters
    """
    with reporting(quiet=quiet, json=json, debug=debug) as output, together() as team:
        if team is not None and not team.first:
            team.follow()
            return
        asked = measurement(
            None if adapters else tasks,
            base=base,
            part=part,
            limit=limit,
            no_streaming=no_streaming,
            device=device,
            precision=precision,
            workers=workers,
        )
        from hfcart.commands.sweep import run_sweep
        from hfcart.records.file_names import SWEEP_RECORD

        own = {"threshold": threshold, "agree": agree}
        record = run_sweep(
            sources,
            asked,
            ranks=_numbers(rank, "--rank") if rank else None,
            scales=_numbers(scale, "--scale") if scale else None,
            method=method,
            settings=given_fields(own),
            qkv=qkv,
            reverse=reverse,
            adapters=[tasks] if adapters else (),
            adapters_carry=adapters_carry,
            out=out,
            overwrite=overwrite,
            progress=output,
            team=team,
        )
        if json:
            output.data(record.to_json())
        kept = [text for name, value in own.items() if value is not None for text in (f"--{name}", str(value))]
        _show(record, [*sources, *kept], base, out, output)
        output.result(f"  record   {out / SWEEP_RECORD}")


def _numbers(text: str, option: str) -> list[int | float]:
    try:
        return numbers(text, ratios=option == "--rank")
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _show(record: SweepRecord, command: list[str], base: str | None, out: Path, output: Output) -> None:
    from hfcart.report.sweep_table import columns, remarks, rows, smallest

    output.result()
    output.table(columns(record), rows(record))
    for remark in remarks(record):
        output.result(remark)
    best = record.points[record.best]
    if not record.reverse and record.part != "test":
        output.result(f"  best     hfcart merge {shlex.join([*command, *_setting(record, best, base)])}")
        if record.adapters and (small := smallest(record)) is not best:
            output.result(f"  smaller  hfcart merge {shlex.join([*command, *_setting(record, small, base)])}")
    if (curve := out / "figures" / "curve.png").is_file():
        output.result(f"  curve    {curve}")


def _setting(record: SweepRecord, point: SweepPoint, base: str | None) -> list[str]:
    """A point as options of `hfcart merge`."""
    options = ["--scale", f"{point.scale:g}"]
    if point.rank is not None:
        options = ["--rank", str(point.rank), *options]
    if record.adapters:
        options = ["--adapters", str(point.rank)]
        options += ["--adapters-carry", record.adapters.carry] if record.adapters.carry != "all" else []
    options += ["--method", record.method] if record.method != "cart" else []
    options += ["--qkv", record.qkv] if record.qkv != "split" else []
    options += ["--base", base] if base and record.anchor == "base" else []
    return options
