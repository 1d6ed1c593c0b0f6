"""A command's help: usage, what it does, a panel a topic with a line an option, the commands below it, examples."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperArgument

_OPTION, _VALUE, _TITLE = "bold cyan", "yellow", "bold"


def show(command: Any, ctx: Any, panels: Iterable[str], panel: str, examples: str) -> None:  # noqa: ANN401 (typer's, not public)
    """Print the help of a command.

    Args:
        command: of typer's.
        ctx: its context.
        panels: their order.
        panel: where an option goes that names none of them.
        examples: command lines, one a line.
    """
    console = Console(file=sys.stdout, highlight=False)
    console.print(Text(command.get_usage(ctx).translate({ord("{"): None, ord("}"): None}), style=_TITLE))
    console.print()
    first, *rest = (" ".join(part.split()) for part in (command.help or "").split("\n\n"))
    for text, style in ((first, ""), *((text, "dim") for text in rest)):
        console.print(Text(text, style))
        console.print()
    shown: dict[str, list[tuple[Text, Text]]] = {name: [] for name in ("Arguments", "Commands", *panels)}
    parameters = [param for param in command.get_params(ctx) if not param.hidden]
    for param in parameters:
        name = "Arguments" if isinstance(param, TyperArgument) else param.rich_help_panel
        shown.setdefault(name if name in shown else panel, []).append(
            (_written(param), Text(param.help + " Required." * _must(param)))
        )
    commands = [(name, command.get_command(ctx, name)) for name in getattr(command, "commands", ())]
    shown["Commands"] = [(Text(name, _OPTION), Text(_first(one.help))) for name, one in commands if not one.hidden]
    for name, rows in shown.items():
        if rows:
            console.print(_panel(name, rows))
    if examples.strip():
        console.print(Text("Examples:", _TITLE))
        for line in examples.strip().splitlines():
            console.print(Text(f"  {line.strip()}"), soft_wrap=True)  # to be copied whole


def _must(param: Any) -> bool:  # noqa: ANN401
    return bool(param.required) and not isinstance(param, TyperArgument)


def _written(param: Any) -> Text:  # noqa: ANN401
    if isinstance(param, TyperArgument):
        return Text(param.display_name_raw, _VALUE)
    names = ", ".join(sorted((*param.opts, *param.secondary_opts), key=lambda name: -len(name)))
    return Text.assemble((names, _OPTION), (f" {param.metavar}" if param.metavar else "", _VALUE))


def _first(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def _panel(title: str, rows: list[tuple[Text, Text]]) -> Panel:
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for row in rows:
        table.add_row(*row)
    return Panel(table, title=title, title_align="left", border_style="dim")
