"""`hfcart demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfcart.cli._output import reporting
from hfcart.cli._params import DEBUG, QUIET


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to put everything.")] = Path("hfcart-demo"),
    quiet: QUIET = False,
    debug: DEBUG = False,
) -> None:
    """See it work without a network: a Hub on this machine, tiny towers, and the commands you would type."""
    with reporting(quiet=quiet, debug=debug) as output:
        from hfcart.demo.tour import run_demo

        card = run_demo(out, output)
        output.result()
        output.result(f"That is all. The model card that was published: {card}")
        output.result("Now with your own towers:  hfcart merge user/a user/b --push-to user/merged")
