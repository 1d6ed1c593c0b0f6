"""Task cards: what a zero-shot task is made of. cards/tasks/<id>.yaml for the benchmark, or a user's own YAML.

A card holds facts and no code: the dataset and its splits, the columns, the class names in label order, the
prompts, and what is published about the task. Unknown keys, wrong types and empty names are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from hfcart.errors import UsageError
from hfcart.formats import safe_yaml
from hfcart.names import meant, spelled
from hfcart.quoting import printable, quoted
from hfcart.records.check import TASK_ID, is_folder_name
from hfcart.records.repo_id import is_repo_id
from hfcart.system.cards_folder import cards_dir
from hfcart.tasks.dataset_ref import MAX_CLASSES, DatasetRef, Line, Strict, each_once
from hfcart.tasks.folder_cards import fields_of, find
from hfcart.tasks.image_folder import holds_images, is_folder

MAX_PROMPTS = 1_000

_BENCHMARK = (
    *("sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd"),
    *("oxford_flowers102", "pcam", "fer2013", "oxford-iiit-pet", "stl10", "cifar100"),
    *("cifar10", "food101", "fashion_mnist", "emnist_letters", "kmnist", "rendered-sst2"),
)
# The settings of the papers, in benchmark order: each is the beginning of the next.
GROUPS: dict[str, tuple[str, ...]] = {str(n): _BENCHMARK[:n] for n in (8, 14, 20)}

_HINT = "`hfcart tasks show eurosat` shows a card; `hfcart tasks new user/dataset` drafts one, also of a folder."


class PublishedAccuracy(Strict):
    """Published accuracies in per cent: of the pretrained base, and of the tower fine-tuned on this task."""

    pretrained: float = Field(ge=0, le=100, strict=False)
    fine_tuned: float = Field(ge=0, le=100, strict=False)


class TaskCard(Strict):
    """One zero-shot classification task.

    Attributes:
        id: lower-case name; part of file names.
        title: name for people.
        dataset: where the images are.
        templates: the prompts; `{}` stands for the class name.
        classnames: one a label, in label order.
        fine_tuned: tower fine-tuned on this task, by the Hub id of its base.
        published: accuracies of base and tower, by the Hub id of the base.
        note: what one should know before comparing numbers.
        license: of the dataset, as the Hub spells it; None where not known for certain.
        citation: of the dataset's paper; None where not known for certain.
    """

    id: str = Field(pattern=f"^{TASK_ID}$")
    title: Line
    dataset: DatasetRef
    templates: tuple[Line, ...] = Field(min_length=1, max_length=MAX_PROMPTS, strict=False)
    classnames: tuple[Line, ...] = Field(min_length=2, max_length=MAX_CLASSES, strict=False)
    fine_tuned: dict[str, str] = {}
    published: dict[str, PublishedAccuracy] = {}
    note: str = Field(default="", max_length=4000)
    license: Line | None = None
    citation: str | None = Field(default=None, max_length=4000)

    @field_validator("templates")
    @classmethod
    def _prompts_have_a_place(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in value:
            if "{}" not in prompt:
                raise ValueError(f"expected {{}} where the class name goes, found {quoted(prompt, 80)}")
        return value

    @field_validator("templates", "classnames")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        each_once(value)
        return value

    @field_validator("fine_tuned")
    @classmethod
    def _towers_on_the_hub(cls, value: dict[str, str]) -> dict[str, str]:
        for name in (*value, *value.values()):
            if not is_repo_id(name, namespace=True):
                raise ValueError(f"expected repos on the Hub, user/name, found {quoted(name, 80)}")
        return value

    @model_validator(mode="after")
    def _labels_of_classes(self) -> TaskCard:
        labels = self.dataset.labels
        if labels is not None and len(labels) != len(self.classnames):
            raise ValueError(f"expected a label for each class name, found {len(labels)} for {len(self.classnames)}")
        return self

    @property
    def sha256(self) -> str:
        """Digest of what decides a measurement: dataset, split, columns, prompts and class names; 64 hex digits.

        A title, a note or a published figure may be corrected without making a result incomparable. Of a folder
        neither its name nor its content counts: what is measured names its images by their own digest.
        """
        fields = self.model_dump(mode="json", include={"dataset", "templates", "classnames"})
        for name in ("test_size", "folder", "sha256"):
            del fields["dataset"][name]
        if self.dataset.labels is None:
            del fields["dataset"]["labels"]
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def pinned(self, sha256: str) -> TaskCard:
        """The same task on a folder, of these very files."""
        return self.model_copy(update={"dataset": self.dataset.model_copy(update={"sha256": sha256})})

    def classes(self) -> dict[str, int]:
        """The class of each text that a column of texts, or the name of a folder, may have for a label.

        That is `dataset.labels`; without them the class names, an underscore in place of a space being the same.
        """
        names = self.dataset.labels or self.classnames
        loose = {} if self.dataset.labels else {name.replace(" ", "_"): i for i, name in enumerate(names)}
        return loose | {name: i for i, name in enumerate(names)}

    def prompts(self, label: int) -> tuple[str, ...]:
        """Every prompt for one class, in the card's order. Replaces `{}` and reads no other braces."""
        return tuple(template.replace("{}", self.classnames[label]) for template in self.templates)


@cache
def shipped() -> tuple[str, ...]:
    """Ids of the cards in cards/tasks: the benchmark's in its order, then whatever else lies there."""
    found = sorted(path.stem for path in (cards_dir() / "tasks").glob("*.yaml"))
    return (*_BENCHMARK, *(name for name in found if name not in _BENCHMARK))


@cache
def _benchmark_task(name: str) -> TaskCard:
    return read_card(cards_dir() / "tasks" / f"{name}.yaml")


def benchmark_task(name: str) -> TaskCard | None:
    """A task that comes with hfcart by its id; None if there is none."""
    return _benchmark_task(name) if name in shipped() else None


def all_tasks() -> list[TaskCard]:
    """The tasks that come with hfcart: the 20 of the benchmark in its order, then any other card there is."""
    return [_benchmark_task(name) for name in shipped()]


_READ_FROM: dict[tuple[str, str], str] = {}  # id and sha256 of a card of the user's own -> where it was read


def name_of(task: TaskCard) -> str:
    """What names a task on a command line: its id if it comes with hfcart, else the path its card was read from."""
    return task.id if benchmark_task(task.id) == task else _READ_FROM.get((task.id, task.sha256), task.id)


def read_tasks(names: Sequence[str]) -> list[TaskCard]:
    """The tasks that a user names.

    Args:
        names: task ids, groups (keys of GROUPS), paths of YAML files or of folders of them, and of folders of images
            in imagefolder layout; each may hold several, with commas.

    Returns:
        Every task once, in the order named.

    Raises:
        UsageError: an unknown name, a card that is not valid, two different cards with one id, or no name at all.
        SourceError: a folder of images of which no task can be made.
    """
    found: dict[str, TaskCard] = {}
    for name in [part for text in names for part in parts(text)]:
        for task in _named(name):
            if found.setdefault(task.id, task) != task:
                raise UsageError(
                    f"{name} and another task named before it both have the id {quoted(task.id)}, and differ.",
                    hint="Give your own card an id of its own.",
                )
    if not found:
        raise UsageError("No task is named.", hint="`hfcart tasks` lists them.")
    return list(found.values())


def parts(text: str) -> list[str]:
    """What a text with commas names, one by one; the path of a file or of a folder is one, commas and all."""
    with contextlib.suppress(OSError, ValueError):  # of what no path can be
        if _is_path(text) and Path(text).exists():  # a comma may be part of its name
            return [text]
    return [part.strip() for part in text.split(",") if part.strip()]


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.lower().endswith((".yaml", ".yml"))


def _named(name: str) -> list[TaskCard]:
    if name in GROUPS:
        return [_benchmark_task(one) for one in GROUPS[name]]
    if found := spelled(name, shipped()):
        return [_benchmark_task(found)]
    if is_folder(name):
        cards = sorted(Path(name).glob("*.yaml"))
        if cards and (any(map(_says_dataset, cards)) or not holds_images(Path(name))):
            return [read_card(path) for path in cards]
        return [_card_of_folder(name)]
    if _is_path(name):
        return [read_card(Path(name))]
    raise UsageError(
        f"There is no task {quoted(name, 80)}. {meant(name, (*shipped(), *GROUPS))}",
        hint="`hfcart tasks` lists the tasks and groups; a path of your own task card (FILE.yaml) or of a folder of "
        "images is taken too.",
    )


def _says_dataset(path: Path) -> bool:
    """Whether a YAML file may be a task's card, and no other tool's beside its images."""
    with contextlib.suppress(OSError, ValueError):
        return b"\ndataset:" in b"\n" + path.read_bytes()[: safe_yaml.MAX_LENGTH]
    return False


def _card_of_folder(name: str) -> TaskCard:
    """The card of a folder of images, made of what is in it."""
    found = find(Path(name))
    try:
        card = TaskCard(**fields_of(found))  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        raise UsageError(
            f"The folder {name} makes no task: {_explain(error)}.",
            hint=f"A card of your own can put that right: hfcart tasks new {shlex.quote(name)}",
        ) from None
    _READ_FROM[card.id, card.sha256] = name
    return card


def read_card(path: Path) -> TaskCard:
    """One task card.

    Raises:
        UsageError: the file cannot be read, is too long, is no YAML, or its fields are not a task's; names them.
    """
    try:
        with path.open("rb") as file:
            text = file.read(4 * safe_yaml.MAX_LENGTH + 1).decode("utf-8")
        fields = safe_yaml.load(text)
    except OSError as error:
        raise UsageError(f"The task card {path} cannot be read: {error.strerror}.", hint=_HINT) from None
    except (yaml.YAMLError, ValueError) as error:
        problem = (
            "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "problem", None) or error
        )
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise UsageError(
            f"The task card {path} is not valid YAML{place}: {printable(problem, 300)}.", hint=_HINT
        ) from None
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise UsageError(f"The task card {path} is not a mapping of fields to values.", hint=_HINT)
    dataset = fields.get("dataset")
    if isinstance(dataset, dict) and isinstance(given := dataset.get("folder"), str):
        dataset["folder"] = _located(given, path.parent)
    try:
        card = TaskCard(**fields)
    except ValidationError as error:
        raise UsageError(f"The task card {path}: {_explain(error)}.", hint=_HINT) from None
    _READ_FROM[card.id, card.sha256] = str(path)
    return card


def _located(folder: str, beside: Path) -> str:
    """The folder that a card names, as seen from the card; a mere name may be one of the present folder, too."""
    try:
        path = Path(folder).expanduser()
    except RuntimeError:  # ~ and no user of that name
        path = Path(folder)
    places = [beside / path, *([Path(folder)] if is_folder_name(folder) else [])]
    place = next((one for one in places if one.is_dir()), places[-1])
    return os.path.normpath(place.absolute()) if folder.strip() else folder


def _explain(error: ValidationError) -> str:
    """Each wrong field once: its name, what was expected, what was found."""
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        name = printable(".".join(str(part) for part in problem["loc"]), 100)
        if problem["type"] == "too_short" and any(one.startswith(f"{name}.") for one in lines):
            continue  # it is short of the items that are wrong themselves
        lines.setdefault(name, (f"{name}: " if name else "") + _problem(problem["type"], problem))
    shown = list(lines.values())
    return "; ".join(shown[:5]) + (f"; and {len(shown) - 5} more" if len(shown) > 5 else "")


def _problem(kind: str, problem: Any) -> str:  # noqa: ANN401 (pydantic's own mapping)
    found = quoted(problem["input"])
    if kind == "extra_forbidden":
        return "there is no such field"
    if kind == "missing":
        return "it is missing"
    if kind == "string_type":  # unquoted 0, no and 2012 are no texts in YAML
        return f"expected text, found {found}; write it in quotes"
    if kind == "value_error":
        message: str = problem["msg"].removeprefix("Value error, ")
        return (
            message
            if " found " in message or " both " in message or " twice" in message
            else f"{message}, found {found}"
        )
    if kind == "tuple_type":
        return f"expected a list, found {found}"
    if kind == "too_short":
        return f"expected at least {problem['ctx']['min_length']} items, found {len(problem['input'])}"
    if kind == "string_pattern_mismatch":
        return f"expected the form {problem['ctx']['pattern']}, found {found}"
    return f"{problem['msg']}, found {found}"
