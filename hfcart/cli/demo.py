"""`hfcart demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfcart.cli._shared.output import reporting
from hfcart.cli._shared.params import DEBUG, QUIET
from hfcart.recipes.options import BASICS


def demo(
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where to put everything.", rich_help_panel=BASICS)
    ] = Path("hfcart-demo"),
    space: Annotated[
        bool,
        typer.Option("--space", help="Then run the Space of the merge, until Ctrl-C.", rich_help_panel=BASICS),
    ] = False,
    quiet: QUIET = False,
    debug: DEBUG = False,
) -> None:
    """See it work without a network: a tiny CLIP, six towers of it, and their merge.

    A Hub on this machine, towers trained now: a few minutes on two cores. Every number is measured in that run.

    Examples:
        hfcart demo
        hfcart demo --out /tmp/hfcart-demo
        hfcart demo --space
    """
    with reporting(quiet=quiet, debug=debug) as output:
        if space:
            from hfcart.demo.app import require_gradio

            require_gradio()
        from hfcart.demo.tour import run_demo

        with run_demo(out, output, space=space) as tour:
            output.result()
            output.table(tour.columns, tour.rows)
            output.result()
            output.result("Rank and scale were chosen on validation images; the table is of test images.")
            output.result("Adapters have 8 % of the rank, and each task is measured with its own.")
            output.result(f"  curve  {tour.curve}")
            output.result(f"  card   {tour.card}")
            output.result("Now with your own towers:  hfcart merge user/a user/b user/c --push-to user/merged")
            if space:
                output.result()
                output.result(
                    f"The Space opens at the address below. Pictures for it: {tour.pictures}. Ctrl-C ends it."
                )
                tour.space()
