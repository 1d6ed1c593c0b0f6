"""What a Space shows: the SpaceRecord that its app reads as space.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hfcart.records._format import RECORD_FORMAT, canonical_json


@dataclass(frozen=True)
class SpaceTower:
    """One tower of a Space.

    Attributes:
        title: what its bars are called.
        repo: `user/name`, None for one that lies beside the app.
        commit: 40 hex digits, None for one that lies beside the app.
        folder: where that one lies, relative to the app.
        image_processor: its image preprocessing, in the canonical form of `hfcart.sources.preprocessor`.
    """

    title: str
    repo: str | None
    commit: str | None
    folder: str | None
    image_processor: dict[str, Any]


@dataclass(frozen=True)
class SpaceTask:
    """Labels and prompts that a visitor can choose in one go; `{}` in a prompt stands for the label."""

    title: str
    labels: tuple[str, ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class SpaceRecord:
    """A Space; written as space.json.

    Attributes:
        about: a sentence of ours on the first tower.
        towers: the first is what the Space is of; then what it is compared with.
        base: `repo` and `commit` of the CLIP model with the text tower and the projections.
        prompts: of labels that come with none.
        tasks: what can be chosen; the first is there at the beginning.
    """

    about: str
    towers: tuple[SpaceTower, ...]
    base: dict[str, str]
    prompts: tuple[str, ...]
    tasks: tuple[SpaceTask, ...]
    format: int = RECORD_FORMAT

    def to_json(self) -> str:
        """Canonical JSON: same record, same bytes."""
        return canonical_json(self)
