"""What the shell offers when Tab is pressed: names of methods, tasks and recipes, folders of towers, choices.

Which of them follows from how the value is called in the help. Nothing heavy is imported; where nothing is offered, the
shell completes names of files, as it always does.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from typer.models import ParameterInfo

_MOST = 2_000  # entries of a folder that are looked at
_CHOICE = re.compile(r"[a-z0-9-]+(\[[^]]*\])?(\|[a-z0-9-]+(\[[^]]*\])?)+")


def completed(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give every option and argument of a command what completes it."""
    signature = inspect.signature(command, eval_str=True)
    for parameter in signature.parameters.values():
        for info in (parameter.default, *getattr(parameter.annotation, "__metadata__", ())):
            if isinstance(info, ParameterInfo) and info.autocompletion is None:
                info.autocompletion = _of(info.metavar or "")
    command.__signature__ = signature  # type: ignore[attr-defined]  # evaluated once: else Typer makes others of it
    return command


def _of(metavar: str) -> Callable[..., Any] | None:
    if _CHOICE.fullmatch(metavar):
        choices = re.sub(r"\[[^]]*\]", "", metavar).split("|")
        return lambda incomplete: list(choices)
    for word, offered in (("METHODS", _methods), ("METHOD", _method), ("TASK", _tasks), ("RECIPE", _recipes)):
        if word in metavar:
            return offered
    return _towers if re.search("SOURCE|TOWER|BASE|FOLDER", metavar) else None


def _method(incomplete: str) -> list[tuple[str, str]]:
    from hfcart.methods import METHODS

    return [(name, method.summary) for name, method in METHODS.items()]


def _methods(incomplete: str) -> list[tuple[str, str]]:
    from hfcart.methods import METHODS

    found = [method.adaptive for method in METHODS.values() if method.adaptive]
    found += [adaptive.ranked for adaptive in found if adaptive.ranked]
    learned = {adaptive.name: adaptive.title for adaptive in found}
    return _listed(incomplete, {**dict(_method("")), **learned})


def _tasks(incomplete: str) -> list[tuple[str, str]]:
    from hfcart.tasks.task_cards import GROUPS, shipped

    groups = {name: f"the {name} tasks of the benchmark" for name in GROUPS}
    return _listed(incomplete, {**dict.fromkeys(shipped(), ""), **groups})


def _recipes(incomplete: str) -> list[str]:
    from hfcart.recipes.recipe_files import names

    return [*names(), *_towers(incomplete)]


def _listed(incomplete: str, names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names behind those that are typed already, with commas."""
    before = incomplete[: incomplete.rfind(",") + 1]
    typed = set(before.split(","))
    return [(before + name, said) for name, said in names.items() if name not in typed]


def _towers(incomplete: str) -> list[str]:
    """Folders that hold a model: those that begin so, and those in folders that begin so."""
    typed, slash, beginning = incomplete.rpartition("/")
    place = Path(typed + slash or ".").expanduser()
    found = []
    for folder in _folders(place, beginning):
        name = f"{typed}{slash}{folder.name}"
        if (folder / "config.json").is_file():
            found.append(name)
        else:
            found += [f"{name}/{one.name}" for one in _folders(folder, "") if (one / "config.json").is_file()]
    return found


def _folders(place: Path, beginning: str) -> Iterator[Path]:
    try:
        entries = sorted(itertools.islice(place.iterdir(), _MOST))
        yield from (one for one in entries if one.name.startswith(beginning) and one.name[0] != "." and one.is_dir())
    except OSError:
        return
