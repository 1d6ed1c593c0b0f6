"""The words of a Space: its README.md, whose front matter is what the Hub runs it by, and what it says of its tower."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hfcart import __version__
from hfcart.errors import HfcartError
from hfcart.formats.markdown import code, text
from hfcart.quoting import plural
from hfcart.records import FinetuneRecord, MergeRecord, SourceRecord, SpaceRecord
from hfcart.records.file_names import AVERAGE
from hfcart.report.licences import license_fields
from hfcart.report.links import HUB, pinned
from hfcart.report.template import front_matter, render
from hfcart.system.cards_folder import cards_dir

FOLDER = "space"  # of cards/
APP, REQUIREMENTS = "app.py", "requirements.txt"
PYTHON = "3.11"  # the Hub's own default is too old for the requirements
_SHORT = 60  # characters that the Hub takes for a short description


def about(record: MergeRecord | FinetuneRecord | None) -> str:
    """A sentence on a tower, in our own words: what it is, as far as hfcart knows."""
    if isinstance(record, FinetuneRecord):
        count = len(record.tasks)
        return f"A CLIP vision tower, fine-tuned on {'one task' if count == 1 else f'{count} tasks'}."
    if isinstance(record, MergeRecord):
        count, method = len(record.sources), record.method.title.partition(" (")[0]
        return f"A CLIP vision tower, merged from {plural(count, 'fine-tuned one')} with {method}."
    return "A CLIP vision tower."


def shipped(name: str) -> bytes:
    """A file of the Space that is the same in every one. Raises HfcartError if it cannot be read."""
    path = cards_dir() / FOLDER / name
    try:
        return path.read_bytes()
    except OSError as error:
        raise HfcartError(f"The template {path} cannot be read: {error.strerror}.") from None


def render_space_card(
    record: SpaceRecord, source: SourceRecord, *, averaged: int, closed: Sequence[str], version: str = __version__
) -> str:
    """The README.md of a Space.

    Args:
        record: what it shows.
        source: its tower, pinned, with what its card says.
        averaged: how many towers its average is of; 0 without one.
        closed: the repos that it reads and that not everybody may read.
        version: of hfcart.

    Raises:
        UsageError: the template (which users may edit) does not render.
    """
    repo, base = record.towers[0].repo or "", record.base
    licence = source.facts.license
    return render(
        f"{FOLDER}/README.md.jinja",
        metadata=front_matter(_metadata(repo, base["repo"], source)),
        hub=HUB,
        tower=repo,
        base=base["repo"],
        about=record.about,
        others=" and ".join(text(tower.title) for tower in record.towers[1:]),
        rows=[
            {"what": what, "pin": pinned(name, commit, between="at")}
            for what, name, commit in (
                ("the tower", repo, record.towers[0].commit),
                ("its base", base["repo"], base["commit"]),
            )
        ],
        averaged=averaged,
        average=AVERAGE,
        closed=" and ".join(map(code, closed)),
        several=len(closed) > 1,
        licence=f"of the tower, {code(licence, 60)}, as its card says." if licence else "its card states none.",
        version=version,
    )


def _metadata(repo: str, base: str, source: SourceRecord) -> dict[str, Any]:
    name = repo.partition("/")[2]
    short = f"Try {name} zero-shot, beside its base"
    return {
        "title": f"{name}, zero-shot",
        "emoji": "🧩",
        "colorFrom": "blue",
        "colorTo": "indigo",
        "sdk": "gradio",
        "sdk_version": _gradio(),
        "python_version": PYTHON,
        "app_file": APP,
        "short_description": short if len(short) <= _SHORT else "Try a CLIP vision tower zero-shot, beside its base",
        **license_fields(source),
        "models": list(dict.fromkeys([repo, base])),
        "tags": ["hfcart", "clip", "merge", "zero-shot-image-classification"],
    }


def _gradio() -> str:
    """The version that the requirements pin: the Hub installs what the front matter says, a user what they say."""
    found = re.search(r"^gradio==([\w.]+)$", shipped(REQUIREMENTS).decode(), re.MULTILINE)
    if found is None:
        raise HfcartError(f"The template {cards_dir() / FOLDER / REQUIREMENTS} pins no version of gradio.")
    return found[1]
