"""`hfcart verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from hfcart.cli._shared.output import reporting
from hfcart.cli._shared.params import DEBUG, QUIET


def verify(
    target: Annotated[str, typer.Argument(metavar="FOLDER|USER/NAME", help="A merge: a folder, or a Hub repo.")],
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]|mps", help="Where to compute.")] = "auto",
    stream: Annotated[bool, typer.Option("--stream", help="Read the sources by ranged requests.")] = False,
    quiet: QUIET = False,
    debug: DEBUG = False,
) -> None:
    """Repeat a merge from its record: pull the pinned sources, merge again, and compare the bytes."""
    with reporting(quiet=quiet, debug=debug) as output:
        from hfcart.commands.verify import run_verify

        verdict = run_verify(target, device=device, stream=stream, progress=output)
        if verdict.differences:
            output.table(["tensor", "largest difference", "relative"], verdict.rows())
        output.essential(verdict.sentence)
        if not verdict.identical:
            raise typer.Exit(1)
