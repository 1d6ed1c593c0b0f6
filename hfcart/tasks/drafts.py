"""A first draft of a task card for a dataset on the Hub: what its metadata tells, and what a person must check."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml

from hfcart import hub
from hfcart.errors import SourceError
from hfcart.formats import safe_yaml
from hfcart.formats.card_facts import card_facts
from hfcart.quoting import some
from hfcart.tasks.data import Contents, contents
from hfcart.tasks.folder_cards import LABEL_COLUMNS, draft_lines, find, scalar, slug
from hfcart.tasks.image_folder import TESTS, TRAINS

_TITLE = re.compile(r"^pretty_name:[^\n]*$", re.MULTILINE)


def draft_card(ref: str, config: str | None = None) -> tuple[str, str]:
    """Draft a task card.

    Args:
        ref: `user/name` or `user/name@revision`.
        config: configuration of the dataset.

    Returns:
        An id for the task, and the card as YAML. Where the dataset names no classes the card is not valid yet.

    Raises:
        SourceError: it cannot be opened, or holds no images, or no labels.
        HubError: the Hub is down, slow or limiting.
    """
    found = contents(ref, config)
    where = f"The dataset {found.pinned.repo}"
    columns = some((f"{name} ({kind})" for name, kind in found.columns.items()), 20)
    for kind, there in (("images", found.images), ("labels", found.labels)):
        if not there:
            raise SourceError(f"{where} has no column of {kind}: its columns are {columns}.")
    readme = (hub.read_dataset_file(found.pinned, "README.md") or b"").decode("utf-8", "replace")
    name = slug(found.pinned.repo.split("/")[1])
    return name, "\n".join(_lines(name, found, config, readme)) + "\n"


def draft_folder(path: Path, out: Path | None) -> tuple[str, str]:
    """Draft the task card of a folder of images.

    Args:
        path: the folder.
        out: the card's file, None for one in the present folder: the card names the images as seen from there.

    Returns, raises: as `draft_card`.
    """
    found = find(path)
    beside = out.parent if out is not None else Path()
    seen = os.path.relpath(path.resolve(), beside.resolve())
    return found.id, "\n".join(draft_lines(found, seen)) + "\n"


def _lines(name: str, found: Contents, config: str | None, readme: str) -> list[str]:
    test = next((split for split in TESTS if split in found.splits), next(iter(found.splits)))
    train = next((split for split in TRAINS if split in found.splits and split != test), None)
    label = min(found.labels, key=lambda column: (not found.labels[column], _rank(column), column))
    names, rows = found.labels[label], found.splits[test]
    license = card_facts(readme).license
    others = [split for split in found.splits if split not in (test, train)]
    lines = [
        f"# Drafted from {found.pinned.repo} at commit {found.pinned.commit}.",
        '# Check what is marked "check", then use it: hfcart eval user/tower --tasks FILE',
        f"id: {scalar(name)}",
        f"title: {scalar(_title(readme) or found.pinned.repo.split('/')[1])}",
        "dataset:",
        f"  repo: {scalar(found.pinned.repo)}",
        *([f"  config: {scalar(config)}"] if config else []),
        *([f"  revision: {scalar(found.pinned.revision)}"] if found.pinned.revision else []),
        f"  test_split: {scalar(test)}" + _check(test in ("test", "testing"), "accuracies are reported on this split"),
        f"  train_split: {scalar(train) if train else 'null'}"
        + _check(train is not None, "no split to train on or to choose settings on was recognised"),
        *([f"  # other splits: {scalar(', '.join(others[:20]))}"] if others else []),
        f"  image_column: {scalar(found.images[0])}" + _check(len(found.images) == 1, _others(found.images)),
        f"  label_column: {scalar(label)}" + _check(len(found.labels) == 1, _others(list(found.labels))),
        *([f"  test_size: {rows}"] if rows else []),
        *([f"license: {scalar(license)}"] if license else []),
        "# check: prompts that say what the images are do better, such as `a satellite photo of {}.`",
        "templates:",
        "  - a photo of a {}.",
    ]
    if not names:
        return [
            *lines,
            "# check: the dataset names no classes. One a label, "
            + ("as the column has it." if found.columns[label] == "string" else "in label order, in words."),
            "classnames: []",
        ]
    lines.append("# check: CLIP reads these as words; `annual crop land` does better than `AnnualCrop`.")
    return [*lines, "classnames: # in label order", *(f"  - {scalar(one)}" for one in names)]


def _rank(column: str) -> int:
    name = column.lower()
    return LABEL_COLUMNS.index(name) if name in LABEL_COLUMNS else len(LABEL_COLUMNS)


def _others(columns: tuple[str, ...] | list[str]) -> str:
    return f"it could be any of {scalar(', '.join(columns[:20]))}"


def _check(sure: bool, why: str) -> str:
    return "" if sure else f" # check: {why}"


def _title(readme: str) -> str | None:
    """The README's pretty_name, a line of text or nothing."""
    line = _TITLE.search(readme[: 1 << 16]) if readme.startswith("---") else None
    try:
        title = safe_yaml.load(line[0])["pretty_name"] if line else None
    except (yaml.YAMLError, ValueError, TypeError):
        return None
    return title.strip()[:200] if isinstance(title, str) and title.strip() and title.isprintable() else None
