"""The command line: one file a command, each thin. Importing it imports neither torch nor the Hub's client.

A command is a file here whose name has no underscore before it, with a function of that name; what commands share is
in `_shared/`. It is imported when it is run; to list it, its docstring is enough.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from hfcart import __version__
from hfcart.cli._shared.command import Group, as_shown
from hfcart.system.processes import is_first, leave

_FOLDER = Path(__file__).parent
# In the order in which --help lists them; a command that is not here comes after these.
_ORDER = (
    *("merge", "eval", "sweep", "compare", "finetune", "push", "space", "verify"),
    *("methods", "tasks", "demo", "help"),
)


class Commands(Group):
    """hfcart's commands. Listing them imports none of them."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 (what Typer knows of the group)
        """Take the group's settings; no command is loaded yet."""
        super().__init__(**settings)
        self.commands: Any = _Loaded()

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 (typer's own classes are not public)
        """Print the help, each command with the first paragraph of its docstring."""
        with self._only_listed():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:  # noqa: ANN401
        """Complete the name of a command."""
        with self._only_listed():
            return super().shell_complete(ctx, incomplete)

    @contextlib.contextmanager
    def _only_listed(self) -> Iterator[None]:
        loaded, self.commands = self.commands, {name: _listed(name) for name in self.commands}
        try:
            yield
        finally:
            self.commands = loaded


class _Loaded(Mapping[str, Any]):
    """Name -> the command, made when it is asked for the first time."""

    def __init__(self) -> None:
        files = [found.name for found in pkgutil.iter_modules([str(_FOLDER)]) if found.name[0] != "_"]
        known = [name for name in _ORDER if name in files]
        self._made: dict[str, Any] = dict.fromkeys([*known, *sorted(set(files) - set(known))])

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 (a command of typer's)
        if self._made[name] is None:
            self._made[name] = _load(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def _load(name: str) -> Any:  # noqa: ANN401 (a command of typer's)
    from hfcart.cli._shared.command import Command
    from hfcart.cli._shared.completion import completed

    module = importlib.import_module(f"hfcart.cli.{name}")
    if hasattr(module, "app"):  # a command with commands of its own
        own = module.app
        for each in own.registered_commands:
            completed(each.callback)
    else:
        own = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        own.command(name, cls=Command)(completed(getattr(module, name)))
    command: Any = typer.main.get_command(own)
    command.name = name
    return command


def _listed(name: str) -> TyperCommand:
    """A command that can be listed and not run: what its file says in the docstring of its function."""
    tree = ast.parse((_FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return TyperCommand(name, help=ast.get_docstring(functions[0]) if functions else None)


app = typer.Typer(
    name="hfcart",
    cls=Commands,
    help="Merge fine-tuned CLIP vision towers from the Hugging Face Hub into one tower, ready to publish."
    "\n\nExamples:\nhfcart demo\nhfcart merge user/a user/b user/c --push-to user/merged\nhfcart help merge",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": as_shown},
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


def main() -> None:
    """Entry point of the console script and of `python -m hfcart`."""
    if not is_first():  # of several processes that cannot parse a command, one says so
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    try:
        app(prog_name="hfcart")
    except KeyboardInterrupt:  # before a command's own handler stands
        leave()
        sys.exit(130)
    except SystemExit as end:
        if end.code:
            leave()
        raise
