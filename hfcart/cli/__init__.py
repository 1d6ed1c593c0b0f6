"""The command line: one file a command, each thin. Importing it imports neither torch nor the Hub's client."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hfcart import __version__
from hfcart.cli import compare, demo, eval, finetune, merge, methods, push, sweep, tasks, verify
from hfcart.cli._output import Command

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


for command in (
    merge.merge,
    eval.eval,
    sweep.sweep,
    compare.compare,
    finetune.finetune,
    push.push,
    verify.verify,
    methods.methods,
    demo.demo,
):
    app.command(cls=Command)(command)
app.add_typer(tasks.app, name="tasks")


def main() -> None:
    """Entry point of the console script and of `python -m hfcart`."""
    try:
        app()
    except KeyboardInterrupt:  # before a command's own handler stands
        sys.exit(130)
