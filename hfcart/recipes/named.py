"""What a recipe names besides Hub repos: a folder by its digest, an adapter with its base, the task of a source."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hfcart.quoting import quoted
from hfcart.records import DatasetRecord, FolderRecord, ImagesRecord
from hfcart.tasks.task_cards import TaskCard, benchmark_task


class LocalSource(BaseModel):
    """A local folder in a recorded recipe: its base name, and the sha256 its weights must have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class AdapterSource(BaseModel):
    """A LoRA adapter and the tower that it is added to, in a recorded recipe each at its commit or by its digest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    adapter: str | LocalSource
    base: str | LocalSource

    @property
    def path(self) -> str:
        """What names the adapter."""
        return self.adapter if isinstance(self.adapter, str) else self.adapter.path


# Fields of a task card that say which images it is about and what may be seen on them.
_DECIDES = ("id", "title", "dataset", "templates", "classnames")


class SourceTask(BaseModel):
    """The task of one source in a recorded recipe: the id of a benchmark's card or a whole card, and the commit.

    Attributes:
        task: id of a card that comes with hfcart.
        card: any other card.
        commit: of the dataset; None to take what the card says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    task: str | None = None
    card: TaskCard | None = None
    commit: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")

    @model_validator(mode="after")
    def _one_card(self) -> SourceTask:
        if (self.task is None) == (self.card is None):
            raise ValueError("expected either the id of a task or a card")
        if self.task is not None and benchmark_task(self.task) is None:
            raise ValueError(f"there is no task {quoted(self.task, 80)}")
        return self

    @property
    def found(self) -> TaskCard:
        """The card."""
        card = self.card or benchmark_task(self.task or "")
        assert card is not None  # checked above
        return card

    @classmethod
    def of(cls, card: TaskCard, images: ImagesRecord | None) -> SourceTask:
        """A card in the shortest form that says everything, pinned to the images that were read of it."""
        commit = images.commit if isinstance(images, DatasetRecord) else None
        if benchmark_task(card.id) == card:
            return cls(task=card.id, commit=commit)
        return cls(card=card.pinned(images.sha256) if isinstance(images, FolderRecord) else card, commit=commit)

    def plain(self, *, here: bool = False) -> dict[str, Any]:
        """As YAML and JSON have it; of a card what decides which images it is about, and how they are classified.

        Args:
            here: for another process on this machine, which is told the path of a folder.
        """
        found = self.model_dump(mode="json", exclude_defaults=True)
        if self.card is not None:
            found["card"] = {k: v for k, v in found["card"].items() if k in _DECIDES}
            if here and self.card.dataset.folder is not None:
                found["card"]["dataset"]["folder"] = str(self.card.dataset.place)
        return found
