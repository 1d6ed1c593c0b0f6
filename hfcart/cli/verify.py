"""`hfcart verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from hfcart.cli._shared.output import reporting
from hfcart.cli._shared.params import DEBUG, DEVICE, QUIET
from hfcart.recipes.options import MACHINE


def verify(
    target: Annotated[
        str, typer.Argument(metavar="TOWER", help="A merge: a folder, or a Hub repo (user/name, user/name@revision).")
    ],
    device: DEVICE = "auto",
    stream: Annotated[
        bool, typer.Option("--stream", help="Read the sources by ranged requests.", rich_help_panel=MACHINE)
    ] = False,
    quiet: QUIET = False,
    debug: DEBUG = False,
) -> None:
    """Repeat a merge from its record, and compare the bytes.

    Examples:
        hfcart verify user/merged
        hfcart verify ./merged --stream
    """
    with reporting(quiet=quiet, debug=debug) as output:
        from hfcart.commands.verify import run_verify

        verdict = run_verify(target, device=device, stream=stream, progress=output)
        if verdict.differences:
            output.table(["tensor", "largest difference", "relative"], verdict.rows())
        output.essential(verdict.sentence)
        if not verdict.identical:
            raise typer.Exit(1)
