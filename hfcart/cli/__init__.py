"""The command line: one file a command, each thin. Importing it imports neither torch nor the Hub's client.

A command is a file here whose name has no underscore before it, with a function of that name (or an `app` of several).
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Annotated

import typer

from hfcart import __version__
from hfcart.cli._output import Command

# In the order in which --help lists them; a command that is not here comes after these.
_ORDER = ("merge", "eval", "sweep", "compare", "finetune", "push", "verify", "methods", "tasks", "demo")

app = typer.Typer(
    name="hfcart",
    help="Merge fine-tuned CLIP vision towers from the Hugging Face Hub into one tower, ready to publish.",
    epilog="Start with: hfcart demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hfcart {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def _place(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)


for _name in sorted((found.name for found in pkgutil.iter_modules(__path__) if found.name[0] != "_"), key=_place):
    _module = importlib.import_module(f"hfcart.cli.{_name}")
    if hasattr(_module, "app"):
        app.add_typer(_module.app, name=_name)
    else:
        app.command(cls=Command)(getattr(_module, _name))


def main() -> None:
    """Entry point of the console script and of `python -m hfcart`."""
    try:
        app()
    except KeyboardInterrupt:  # before a command's own handler stands
        sys.exit(130)
