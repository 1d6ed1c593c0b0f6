"""A command as it is typed: panels in one order, examples last, and a misspelt word told what was meant."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from hfcart.errors import UsageError
from hfcart.names import near
from hfcart.recipes.options import OUTPUT, PANELS
from hfcart.system import processes

_EXAMPLES = "\n\nExamples:\n"
_VALUES = {"int": "N", "float": "X", "str": "TEXT"}  # how a value is written where nothing says it better
# Options that were called otherwise, or are so elsewhere: what was typed before -> what is shown.
_CALLED = {"task": "tasks", "to": "push-to"}
_SAID = {"show_completion": "Print what --install-completion installs."}  # in place of what is longer than a line

_WRONG_USAGE: Any = typer.BadParameter.__mro__[1]  # the class of every wrong usage, which is not public

_SHARED = ("merge", "eval", "sweep", "compare", "finetune")  # what several processes that were launched together can do

running: dict[str, Any] = {}  # name and options of the command that runs


def as_shown(token: str) -> str:
    """The name of an option or a command as it is shown, from one as it was typed."""
    plain = token.casefold().replace("_", "-")
    return _CALLED.get(plain, plain)


if TYPE_CHECKING:
    _Base = TyperCommand
else:
    _Base = object


class _Shown(_Base):
    """What commands and groups of commands have in common."""

    examples = ""
    panels: tuple[str, ...] = PANELS
    panel = OUTPUT  # of options that name none

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401 (what Typer knows of it)
        """Take the settings; examples at the end of the docstring are shown below the options."""
        text, _, self.examples = (settings.get("help") or "").partition(_EXAMPLES)
        super().__init__(*args, **{**settings, "help": text or None})
        for param in self.params:
            _in_one_line(param)

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 (typer's own classes are not public)
        """The parameters, in the order of their panels."""
        params: list[Any] = super().get_params(ctx)
        for param in params:
            if not hasattr(param, "more"):  # of Typer's own
                _in_one_line(param)
        return sorted(params, key=self._place)

    def _place(self, param: Any) -> int:  # noqa: ANN401
        if isinstance(param, TyperArgument):
            return -1
        return self.panels.index(param.rich_help_panel if param.rich_help_panel in self.panels else self.panel)

    def get_help_option(self, ctx: Any) -> Any:  # noqa: ANN401
        """--help, among what decides about the output."""
        option: Any = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = self.panel
        return option

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        """Parse; an option that there is not is answered with what was meant."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if (option := getattr(error, "option_name", None)) and hasattr(error, "possibilities"):
                known = [flag for param in self.params for flag in param.opts if flag.startswith("--")]
                told: Any = error
                told.message, told.possibilities = f"{told.message}. {near(option, known)}".rstrip(), None
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Print the help."""
        from hfcart.cli._shared.help import show

        show(self, ctx, self.panels, self.panel, self.examples)


class Command(_Shown, TyperCommand):
    """A command that leaves word of its name and options: hints are written for several commands."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Run it."""
        running.update(name=ctx.command_path, options={flag for param in self.params for flag in param.opts})
        if processes.launched() > 1:
            _launched(self.name or "")
        return super().invoke(ctx)


def _launched(name: str) -> None:
    """Several processes were started: they share the command, or it is refused."""
    if not processes.is_first():  # what it could not parse, the first has said
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    if name in _SHARED:
        return
    if processes.is_first():
        number, again = processes.launched(), shlex.join(["hfcart", *sys.argv[1:]])
        typer.echo(f"Error: `{running['name']}` is not shared among processes, and {number} were launched.", err=True)
        typer.echo(f"→ Type it without the launcher: {again}", err=True)
    raise typer.Exit(UsageError.exit_code)


class Group(_Shown, TyperGroup):
    """A command with commands of its own."""

    panel = "Options"
    panels = (panel,)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401
        """The command that is meant; one that there is not is answered with those like it."""
        self.suggest_commands = False
        try:
            return super().resolve_command(ctx, args)
        except _WRONG_USAGE as error:
            told: Any = error
            told.message = f"{told.message} {near(args[0], self.commands)}".rstrip()
            raise


def _in_one_line(param: Any) -> None:  # noqa: ANN401
    """A number is N or X, and the default ends the sentence. What follows a form feed is for the reference alone."""
    param.help, _, param.more = _SAID.get(param.name, param.help or "").partition("\f")
    if not isinstance(param, TyperArgument) and not param.is_flag and param.metavar is None:
        param.metavar = _VALUES.get(param.bare_type())
    default = param.default
    if param.show_default is True and default not in (None, False, "", ()) and not callable(default):
        param.help += f" Default: {default}."
    param.show_default = False
