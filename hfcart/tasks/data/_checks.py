"""A dataset against a task card: columns, labels, class names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import datasets

from hfcart.errors import SourceError
from hfcart.names import near
from hfcart.progress import Progress
from hfcart.quoting import plural, quoted, some
from hfcart.tasks.task_cards import TaskCard, name_of


def card_hint(task: TaskCard) -> str:
    """Where to look when a dataset is not what its card says."""
    command = f"hfcart tasks show {shlex.quote(name_of(task))}"
    return f"Columns, splits and class names are in the task card: `{command}` prints it."


@dataclass(frozen=True)
class Columns:
    """The two columns of a task, to be checked against what the dataset has."""

    task: TaskCard
    where: str
    progress: Progress

    @property
    def image(self) -> str:
        return self.task.dataset.image_column

    @property
    def names(self) -> list[str]:
        return [self.image, self.task.dataset.label_column]

    def check(self, features: datasets.Features) -> None:
        """Raise SourceError for a missing column or one of the wrong kind; warn where class names disagree."""
        for role, name in zip(("image", "label"), self.names, strict=True):
            if name not in features:
                raise SourceError(
                    f"{sentence(self.where)} has no {role} column {quoted(name)}: its columns are {some(features)}.",
                    hint=f"Correct {role}_column. " + card_hint(self.task),
                )
        image, label = (features[name] for name in self.names)
        if not is_image(image):
            self._refuse(self.names[0], "images", image)
        if not is_label(label) and not is_text(label):
            self._refuse(self.names[1], "whole numbers, booleans or texts", label)
        if self.task.dataset.labels is not None and not is_text(label):
            raise SourceError(
                f"The task {self.task.id} names the labels of its classes, and the column {quoted(self.names[1])} of "
                f"{self.where} holds numbers, which are the classes' places.",
                hint="Leave `labels` out. " + card_hint(self.task),
            )
        if isinstance(label, datasets.ClassLabel) and label.names:
            compare_names(self.task, label.names, self.where, self.progress)

    def _refuse(self, column: str, expected: str, feature: object) -> None:
        raise SourceError(
            f"The column {quoted(column)} of {self.where}: expected {expected}, found {kind_of(feature)}.",
            hint="Name the right column. " + card_hint(self.task),
        )


def is_image(feature: object) -> bool:
    """Whether a column of this feature holds image files."""
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Image) or kind_of(feature) in ("binary", "large_binary")


def is_label(feature: object) -> bool:
    """Whether a column of this feature holds class labels."""
    return isinstance(feature, datasets.ClassLabel) or re.fullmatch(r"bool|u?int\d+", kind_of(feature)) is not None


def is_text(feature: object) -> bool:
    """Whether a column of this feature holds texts."""
    return kind_of(feature) in ("string", "large_string")


def compare_names(task: TaskCard, found: Sequence[str], where: str, progress: Progress) -> None:
    """Tell where a dataset's own class names disagree with a task card's.

    Cards rename classes on purpose (`AnnualCrop` reads better as `annual crop land`), so a name that shares a word
    with the dataset's is only noted, as is one where the dataset has but a number. A warning, which shows both, is
    for what makes a measurement wrong: another number of classes, a name that the dataset gives to another label, or
    names that have nothing in common.
    """
    theirs, ours = [_plain(name) for name in found], [_plain(name) for name in task.classnames]
    places = {name: i for i, name in enumerate(theirs) if name}
    differing = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
    moved = [i for i in differing if places.get(ours[i], i) != i]
    strange = [i for i in differing if not _kin(task.classnames[i], found[i])]
    shared = min(len(ours), len(theirs))
    if len(found) != len(task.classnames):
        more = [name[:60] for name in (*task.classnames[shared:], *found[shared:])]
        progress.warn(
            f"{sentence(where)} has {plural(len(found), 'class', 'classes')}, the task {task.id} has "
            f"{plural(len(task.classnames), 'class name')}. "
            f"Only {'there' if len(found) > shared else 'here'}: {_listed(more)}"
        )
    if moved:
        progress.warn(
            f"The classes of {where} seem to be in another order than those of the task {task.id}: "
            + _pairs(task, found, moved)
        )
    elif strange:
        progress.warn(f"The classes of {where} are not those of the task {task.id}: " + _pairs(task, found, strange))
    elif differing:
        progress.note(
            f"The task {task.id} has {plural(len(differing), 'class name')} of its own where {where} says otherwise: "
            + _pairs(task, found, differing)
        )


def _pairs(task: TaskCard, found: Sequence[str], labels: Sequence[int]) -> str:
    shown = "; ".join(f"{i} is {quoted(task.classnames[i], 60)} here, {quoted(found[i], 60)} there" for i in labels[:3])
    return f"{shown}{'; …' if len(labels) > 3 else ''}."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + ("." if len(names) <= 3 else ", ….")


def _kin(ours: str, theirs: str) -> bool:
    """Whether two names can mean one class: a word in common, one within the other, or a mere number."""
    plain = _plain(ours), _plain(theirs)
    if plain[1].isdecimal() or plain[0] in plain[1] or plain[1] in plain[0]:
        return True
    return bool(_words(ours) & _words(theirs))


def _words(name: str) -> set[str]:
    return {_plain(word) for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", name)}


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def checked_label(value: object, where: str, task: TaskCard, texts: Mapping[str, int]) -> int:
    """The class that a label means: its place among the class names; `texts` has that of labels that are texts."""
    classes = len(task.classnames)
    if isinstance(value, int) and 0 <= value < classes:
        return int(value)
    if isinstance(value, str):
        if value in texts:
            return texts[value]
        known = task.dataset.labels or task.classnames
        raise SourceError(
            f"{sentence(where)} has the label {quoted(value)}, which is none of the task {task.id}. "
            + (near(value, texts) or f"Its labels: {some(known)}."),
            hint=card_hint(task),
        )
    hint = card_hint(task)
    if value is None or value == -1:
        hint = "Datasets keep the labels of some splits secret: name another test_split. " + hint
    found = "no label" if value is None else f"label {value}"
    raise SourceError(
        f"{sentence(where)} has {found} in the column {quoted(task.dataset.label_column)}, "
        f"expected 0 to {classes - 1}: the task {task.id} has {plural(classes, 'class name')}.",
        hint=hint,
    )


def kind_of(feature: object) -> str:
    return str(feature.dtype) if isinstance(feature, datasets.Value) else type(feature).__name__


def sentence(text: str) -> str:
    """The text as the beginning of a sentence; the path of a file stays as it is."""
    return text if "/" in text.partition(" ")[0] else text[:1].upper() + text[1:]
