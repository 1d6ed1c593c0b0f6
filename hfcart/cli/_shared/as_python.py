"""A command line in Python's words: the functions' options, and the call that does what a message says to type.

Messages are written once, as commands. Whoever called a function gets them in Python: a command that there is a
function for becomes the call, an option its keyword. Everything else (`hf auth login`, `pip`) stays as it is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import typer

from hfcart.cli import app
from hfcart.cli._shared.output import without_foreign_options
from hfcart.cli._shared.recipe_options import given_fields
from hfcart.methods import ADAPTING, METHODS
from hfcart.recipes.merge_recipe import WRAPPERS
from hfcart.recipes.options import BASICS, PANELS
from hfcart.recipes.parameter_fields import PARAMETERS
from hfcart.tasks.task_cards import parts


@dataclass(frozen=True)
class Function:
    """A command as a function.

    Attributes:
        name: what it is called in Python.
        placed: options of the command that are arguments of the function, after the command's own.
    """

    name: str
    placed: tuple[str, ...] = ()


FUNCTIONS = {
    "merge": Function("merge"),
    "eval": Function("evaluate", ("tasks",)),
    "sweep": Function("sweep", ("tasks",)),
    "compare": Function("compare", ("tasks",)),
    "finetune": Function("finetune", ("tasks",)),
    "push": Function("push", ("push_to",)),
    "verify": Function("verify"),
}
# How a command prints, and what only looks: a function returns its result, and has `progress`.
_PRINTING = {"quiet", "json", "debug", "help", "dry_run"}
_TURNED = {"no_streaming": "streaming", "no_adapters": "adapters"}
_ON = {
    "no_streaming": "Read images over the network; False keeps them in the cache. Default: True.",
    "no_adapters": "Of a merge with adapters, measure each task with its own, too. Default: True.",
}
_NAMES = {"tasks", "methods", "eval", "adapt"}
_PATHS = {"out", "base", "recipe", "sweep", "folder", "tower", "target", "sources"}
_CHOICES = re.compile(r"[a-z0-9-]+(\|[a-z0-9-]+)+")

_TICKS = re.compile(r"(`[^`]*`)")
_FLAG = re.compile(r"(?<![\w-])(--[a-z][a-z0-9-]*)(?:([ =])('[^']*'|\"[^\"]*\"|\S+))?")
_AGAIN = ((r"\b([Rr])un the same command\b", r"make the same call"), (r"\bthe same command\b", "the same call"))


@dataclass(frozen=True)
class Keyword:
    """An option of a command as the keyword of its function.

    Attributes:
        name: of the keyword.
        kind: how a value is written; see `_kind`.
        choices: the values there are, () for any.
        meaning: the option's help, in Python's words.
        panel: of the help.
    """

    name: str
    kind: str
    choices: tuple[str, ...]
    meaning: str
    panel: str


def keywords(command: str) -> list[Keyword]:
    """Every option of a command that its function has as a keyword; what packages bring is left out."""
    own = {p.name for p in (*ADAPTING, *(p for m in METHODS.values() if not m.package for p in m.parameters))}
    brought = set(PARAMETERS) - own if command == "merge" else set()
    found = [_keyword(command, option) for option in _options(command) if option.name not in brought]
    order = {panel: i for i, panel in enumerate(PANELS)}
    return sorted(found, key=lambda each: order.get(each.panel, order[BASICS]))


def keyword(name: str) -> str:
    """What a function calls an option: its name, or where the option turns something off, the name of that."""
    return _TURNED.get(name, name)


def as_call(typed: str) -> str | None:
    """A command line as the call that does the same; None if no function does.

    Args:
        typed: such as `hfcart merge user/a user/b --rank 0.08`; a command's name alone, or its --help.
    """
    try:
        words = shlex.split(typed)[1:]
    except ValueError:
        return None
    if not words or words[0] not in FUNCTIONS:
        return None
    name, rest = words[0], words[1:]
    function = f"hfcart.{FUNCTIONS[name].name}"
    if not rest:
        return function
    if rest == ["--help"]:
        return f"help({function})"
    command = _command(name)
    try:
        context = command.make_context(name, rest)
    except Exception:  # typer's own kinds are not public
        return None
    given = {
        option.name: _written(name, option, context.params[option.name])
        for option in command.params
        if context.get_parameter_source(option.name).name == "COMMANDLINE"
    }
    first = [option.name for option in command.params if option.param_type_name == "argument"]
    placed = [given.pop(each) for each in (*first, *FUNCTIONS[name].placed) if each in given]
    named = [f"{keyword(each)}={value}" for each, value in given.items() if each not in _PRINTING]
    return f"{function}({', '.join([*placed, *named])})"


def in_python(text: str, command: str = "") -> str:
    """A message in Python's words.

    Args:
        text: as for the command line; lines stay lines.
        command: the one behind the function that was called, whose options go before others of the same name.
    """
    for pattern, instead in _AGAIN:
        text = re.sub(pattern, lambda m, to=instead: to[0].upper() + to[1:] if m[0][0] == "R" else to, text)  # type: ignore[misc]
    return "\n".join(_line(line, command) for line in text.split("\n"))


def hint_in_python(hint: str, command: str) -> str:
    """A hint in Python's words, without sentences about what the function called has no keyword for."""
    flags = {flag for option in _command(command).params for flag in option.opts}
    lines = without_foreign_options(hint, flags)
    return in_python("\n".join(lines), command) or f"`help(hfcart.{FUNCTIONS[command].name})` lists what it takes."


def _line(line: str, command: str) -> str:
    blank = _TICKS.sub(lambda m: " " * len(m[0]), line)
    names = "|".join(_root().commands)
    found = re.search(rf"(?<![\w/.-])hfcart (?:{names})(?![\w=/-]).*", blank)
    head, tail = (line[: found.start()], line[found.start() :]) if found else (line, "")
    return "".join(_piece(piece, command) for piece in _TICKS.split(head)) + (as_call(tail.rstrip()) or tail)


def _piece(piece: str, command: str) -> str:
    """Prose, or what stands in backticks."""
    if piece.startswith("`hfcart "):
        call = as_call(piece.strip("`"))
        return f"`{call}`" if call else piece
    if piece.startswith("`") and not piece.startswith("`--"):
        return piece
    tick = "" if piece.startswith("`") else "`"
    return _FLAG.sub(lambda m: _mention(m, command, tick), piece)


def _mention(found: re.Match[str], command: str, tick: str) -> str:
    """An option in the middle of a sentence; with its value, if what follows is one."""
    flag, gap, value = found[1], found[2] or "", found[3] or ""
    place, option = _find(flag, command)
    if option is None:
        return found[0]
    name = keyword(option.name)
    if option.is_flag:
        return f"{tick}{name}={option.name not in _TURNED}{tick}{gap}{value}"
    bare = value.rstrip(".,;:)")
    if bare and (bare in (option.metavar or "").split("|") or re.search(r"^[A-Z]|[/=0-9'\"]", bare)):
        words = shlex.split(bare) if bare[0] in "'\"" else [bare]
        return f"{tick}{name}={_written(place, option, words[0])}{tick}{value[len(bare) :]}"
    return f"{tick}{name}{tick}{gap}{value}"


def _find(flag: str, command: str) -> tuple[str, Any]:
    """An option by its flag: the command's own, else any function's. (None as the option if there is none.)"""
    for name in [command] * (command in FUNCTIONS) + list(FUNCTIONS):
        for option in _command(name).params:
            if flag in option.opts and option.name not in _PRINTING:
                return name, option
    return "", None


def _keyword(command: str, option: Any) -> Keyword:  # noqa: ANN401 (typer's own classes are not public)
    turned = option.name in _TURNED
    meaning = in_python((option.help or "").partition("\f")[0], command).strip()
    default = None if turned or callable(option.default) or option.default in (None, False, "", ()) else option.default
    if turned:
        meaning = _ON[option.name]
    elif default is not None and "Default:" not in meaning:
        meaning = f"{meaning.rstrip('.')}. Default: {default}."
    panel = getattr(option, "rich_help_panel", None) or BASICS
    return Keyword(keyword(option.name), _kind(command, option), _choices(command, option), meaning, panel)


def _kind(command: str, option: Any) -> str:  # noqa: ANN401 (typer's classes)
    """`flag`, `names`, `grid`, `path`, `choice`, `whole`, `number`, `text`, or the kind of a method's parameter."""
    if getattr(option, "is_flag", False):
        return "flag"
    if command == "sweep" and option.name in ("rank", "scale"):
        return "grid"
    if command in ("merge", "sweep") and option.name in PARAMETERS:
        return PARAMETERS[option.name].kind
    for kind, those in (("names", _NAMES), ("path", _PATHS)):
        if option.name in those:
            return kind
    if _choices(command, option):
        return "choice"
    # Texts on the command line, which takes 8% for a number.
    if option.name in ("adapters", "adapt_ranks") or option.name in WRAPPERS:
        return "number" if option.name in WRAPPERS else "rank"
    return {int: "whole", float: "number"}.get(option.type_descriptor.annotation, "text")


def _choices(command: str, option: Any) -> tuple[str, ...]:  # noqa: ANN401 (typer's classes)
    if command == "merge" and option.name in PARAMETERS:
        return tuple(PARAMETERS[option.name].choices)
    metavar = option.metavar or ""
    return tuple(metavar.split("|")) if _CHOICES.fullmatch(metavar) else ()


def _written(command: str, option: Any, value: Any) -> str:  # noqa: ANN401 (typer's classes, and any value)
    """A value that was typed, as Python's source."""
    kind = _kind(command, option)
    if kind == "flag":
        return str(value == (option.name not in _TURNED))
    if isinstance(value, list | tuple):
        return f"[{', '.join(repr(str(each)) for each in value)}]"
    if kind == "names":
        return repr(parts(str(value)))
    if kind in ("rank", "numbers", "each", "number", "whole"):
        try:
            numbers = given_fields({option.name: value})[option.name]
            return repr(
                list(numbers) if isinstance(numbers, tuple) else float(numbers) if kind == "number" else numbers
            )
        except (ValueError, typer.BadParameter):
            return str(value)  # a word in capitals that stands for a number
    return repr(str(value))


def _options(command: str) -> Iterator[Any]:
    for option in _command(command).params:
        placed = {*_PRINTING, *FUNCTIONS[command].placed}
        if option.param_type_name == "option" and option.name not in placed and not option.hidden:
            yield option


@cache
def _root() -> Any:  # noqa: ANN401 (typer's classes)
    return typer.main.get_command(app)


def _command(name: str) -> Any:  # noqa: ANN401 (typer's classes)
    return _root().commands[name]
