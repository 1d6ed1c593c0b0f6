"""What messages tell people to type: every command and option in a text, tried against the real command line."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import typer

import hfcart
from hfcart.api import options
from hfcart.cli import app
from hfcart.cli._shared.as_python import FUNCTIONS, in_python

ROOT = typer.main.get_command(app)
# Function -> its keywords.
KEYWORDS = {
    f.name: {
        *getattr(options, f"{f.name.capitalize()}Options").__annotations__,
        *inspect.signature(getattr(hfcart, f.name)).parameters,
    }
    for f in FUNCTIONS.values()
}
_NAMES = "|".join(ROOT.commands)
_IN_TICKS = re.compile(r"`((?:hfcart |--)[^`]*)`")
_TO_THE_END = re.compile(rf"(?<![\w/.-])hfcart (?:{_NAMES})(?![\w=/-]).*")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# Of `accelerate launch`, of `hf download`, of `uv pip`, of trackers, and of `python -m hfcart.cli._reference`.
_OF_OTHERS = {
    "--cpu",
    "--local-dir",
    "--revision",
    "--repo-type",
    "--force-download",
    "--check",
    "--torch-backend",
    "--logdir",
    "--project",
}


def command_of(args: Sequence[str]) -> Any:
    """The command that a command line runs."""
    command = ROOT
    for word in args:
        if word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]
    return command


def options_of(command: Any) -> set[str]:
    return {flag for parameter in command.params for flag in parameter.opts} | {"--help"}


def commands_in(text: str) -> Iterator[str]:
    """Every command line of hfcart's that a text names: in backticks, or from there to the end of the line."""
    for line in text.splitlines():
        yield from (found for found in _IN_TICKS.findall(line) if found.startswith("hfcart"))
        if found := _TO_THE_END.search(_IN_TICKS.sub(lambda m: " " * len(m[0]), line)):
            yield line[found.start() :]


def faults(text: str, command: Any = None) -> list[str]:
    """What of a message would not work when typed: a command that does not parse, an option its command lacks.

    Args:
        text: a message or its hint.
        command: the command that says so; options outside a command line of their own are meant for it.
    """
    wrong = []
    for typed in commands_in(text):
        if problem := _problem(typed):
            wrong.append(f"{typed!r} in {text!r}: {problem}")
        text = text.replace(typed, "")
    anywhere = set().union(*(options_of(one) for one in every(ROOT)))
    known = (options_of(command) if command else anywhere) | _OF_OTHERS
    return wrong + [f"{option} in {text!r}: no such option" for option in set(_OPTION.findall(text)) - known]


def _problem(typed: str) -> str | None:
    try:
        args = shlex.split(typed)[1:]
    except ValueError as error:
        return str(error)
    if len(args) < 2 or args[1:] == ["--help"]:  # its name, or its help
        return None if not args or command_of(args) is not ROOT else "no such command"
    if any(word[:1] == "(" or word[-1:] in tuple(".,;:)") for word in args[1:]):
        return "runs on into the sentence"
    command = command_of(args)
    words = args[1 + (command.name != args[0]) :]
    try:
        command.make_context(command.name, words)
    except Exception as error:  # typer's own kinds are not public
        return str(getattr(error, "message", error)) or type(error).__name__
    return None


def every(command: Any) -> Iterator[Any]:
    yield command
    for one in getattr(command, "commands", {}).values():
        yield from every(one)


def faults_in_python(text: str) -> list[str]:
    """What of a message would not work when it is told to who called a function: see `in_python`."""
    told = in_python(text)
    wrong = [
        f"{line!r} is still a command"
        for line in commands_in(told)
        if _words(line)[1:2] and _words(line)[1] in FUNCTIONS
    ]
    known = {name for keys in KEYWORDS.values() for name in keys}
    if told == text:
        return wrong
    for call in _calls(told):
        try:
            tree = ast.parse(call, mode="eval").body
        except SyntaxError:
            wrong.append(f"{call!r} is no Python")
            continue
        name = getattr(getattr(tree, "func", None), "attr", "")
        named = {each.arg for each in tree.keywords} if isinstance(tree, ast.Call) else set()
        if named - KEYWORDS.get(name, set()):
            wrong.append(f"{call!r}: {name} has no {', '.join(map(str, named))}")
    for mention in set(re.findall(r"`([a-z_]+)(?:=[^`]*)?`", told)) - set(re.findall(r"`([a-z_]+)(?:=[^`]*)?`", text)):
        wrong += [f"{mention!r} is no keyword"] if mention not in known else []
    flags = {flag for command in FUNCTIONS for option in ROOT.commands[command].params for flag in option.opts}
    kept = re.sub(r"`[^`]*`|(?:hfcart|hf) .*", "", told)
    return wrong + [f"{flag} is left" for flag in set(_OPTION.findall(kept)) & flags - {"--debug", "--json", "--quiet"}]


def _calls(told: str) -> list[str]:
    """The calls of hfcart's functions: in backticks, or to the end of the line."""
    found = [tick for tick in re.findall(r"`([^`]*)`", told) if tick.startswith(("hfcart.", "help("))]
    bare = re.sub(r"`[^`]*`", "", told)
    return found + re.findall(
        r"((?:help\()?hfcart\.(?:" + "|".join(f.name for f in FUNCTIONS.values()) + r")\b.*)", bare
    )


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()
