"""`hfcart help`."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def help(
    context: typer.Context,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="Whose help to show, such as merge or tasks new.")
    ] = None,
) -> None:
    """Show the help of a command: the same as its --help.

    Examples:
        hfcart help merge
        hfcart help tasks new
    """
    root: Any = context.find_root()
    root.command.main([*(words or []), "--help"], prog_name=root.info_name)
