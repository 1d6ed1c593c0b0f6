"""`hfcart push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hfcart.cli._shared.output import reporting
from hfcart.cli._shared.params import CREATE_PR, DEBUG, MESSAGE, PRIVATE, QUIET
from hfcart.recipes.options import BASICS, OUTPUT


def push(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="What `hfcart merge`, `finetune`, `eval` or `space` made."),
    ],
    push_to: Annotated[
        str, typer.Option(metavar="USER/NAME", help="The Hub repo to publish it in.", rich_help_panel=BASICS)
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace whatever is there.", rich_help_panel=OUTPUT)
    ] = False,
    private: PRIVATE = False,
    create_pr: CREATE_PR = False,
    commit_message: MESSAGE = None,
    quiet: QUIET = False,
    debug: DEBUG = False,
) -> None:
    """Publish a tower, or results, on the Hub, in one commit. Safe to repeat.

    Examples:
        hfcart push merged --push-to user/merged
        hfcart push merged --push-to user/merged --private --create-pr
    """
    with reporting(quiet=quiet, debug=debug) as output:
        from hfcart.commands.push import run_push

        published = run_push(
            folder,
            push_to,
            overwrite=overwrite,
            private=private,
            create_pr=create_pr,
            message=commit_message,
            progress=output,
        )
        output.essential(published.pull_request or published.url)
