"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result, warnings and errors.")]
JSON = Annotated[bool, typer.Option("--json", help="Print the record as JSON on stdout, everything else on stderr.")]
DEBUG = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the Hub client's log.")]
PUBLISHING = "Publishing"
PRIVATE = Annotated[
    bool,
    typer.Option("--private", help="Make the repo private if it is created.", rich_help_panel=PUBLISHING),
]
CREATE_PR = Annotated[
    bool,
    typer.Option("--create-pr", help="Open a pull request instead of committing to main.", rich_help_panel=PUBLISHING),
]
MESSAGE = Annotated[
    str | None,
    typer.Option("--commit-message", metavar="TEXT", help="Message of the commit.", rich_help_panel=PUBLISHING),
]
