"""Where the images of a task are: a dataset on the Hub, or a folder on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

from hfcart.quoting import quoted
from hfcart.records.check import is_folder_name
from hfcart.records.repo_id import is_repo_id, is_revision

MAX_CLASSES = 10_000
_SPLIT = r"^\w+(?:\.\w+)*$"
# Of a folder nothing else says which images these are; what is the Hub's says nothing of it.
_OF_THE_HUB = ("config", "revision")


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError(f"expected one line of text, found {quoted(text, 80)}")
    return text


def each_once(texts: Sequence[str]) -> None:
    """Raise ValueError for a text that is there twice."""
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        if first.setdefault(text, i) != i:
            raise ValueError(f"{quoted(text, 80)} is there twice, at places {first[text]} and {i} (counted from 0)")


Line = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_one_line)]
SplitName = Annotated[str, Field(pattern=_SPLIT, max_length=100)]


class Strict(BaseModel):
    """A part of a card: known fields alone, of the very types, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DatasetRef(Strict):
    """Where the images are: `repo`, or else `folder`.

    Attributes:
        repo: the dataset on the Hub, `user/name`.
        folder: a folder of images on this machine. It may be given as a path, which is `place` from then on: this
            field keeps the base name alone, so that no path of a machine is written anywhere.
        sha256: digest of the folder's files that the task is about; None for whatever they are.
        config: of a dataset, its configuration, None for its only (or default) one.
        revision: branch, tag or commit; None for main. It is resolved to a commit before anything is read.
        test_split: the split that accuracies are reported on.
        train_split: the split that training and validation images are taken from; None if there is none.
        image_column: column that holds the image.
        label_column: column that holds the label: whole numbers from 0, booleans, or texts.
        labels: where labels are texts (of a folder: names of folders), those of the classes in their order; None where
            the class names are these very texts.
        test_size: rows of the test split as published, None where unknown.
    """

    repo: str | None = None
    folder: Line | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    config: Line | None = None
    revision: str | None = None
    test_split: SplitName = "test"
    train_split: SplitName | None = "train"
    image_column: Line = "image"
    label_column: Line = "label"
    labels: tuple[Line, ...] | None = Field(default=None, min_length=2, max_length=MAX_CLASSES, strict=False)
    test_size: int | None = Field(default=None, ge=1)
    _place: Path | None = PrivateAttr(default=None)

    @field_validator("repo")
    @classmethod
    def _repo_on_the_hub(cls, value: str | None) -> str | None:
        if value is not None and not is_repo_id(value, namespace=True):
            raise ValueError("expected a dataset on the Hub, user/name")
        return value

    @field_validator("revision")
    @classmethod
    def _revision_readable(cls, value: str | None) -> str | None:
        if value is not None and not is_revision(value):
            raise ValueError("expected a branch, a tag, a commit or refs/pr/N")
        return value

    @field_validator("labels")
    @classmethod
    def _each_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        each_once(value or ())
        return value

    def model_post_init(self, context: Any) -> None:  # noqa: ANN401 (pydantic's own signature)
        """Keep the path of a folder apart from its name."""
        if self.folder is not None:
            self._place = Path(self.folder).absolute()
            name = self._place.name
            self.__dict__["folder"] = name if name not in ("", "..") else self._place.resolve().name

    @model_validator(mode="after")
    def _one_place(self) -> DatasetRef:
        if (self.repo is None) == (self.folder is None):
            raise ValueError("expected a repo on the Hub or a folder, found " + ("both" if self.repo else "neither"))
        if self.folder is not None and not is_folder_name(self.folder):
            raise ValueError(f"expected the path of a folder, found {quoted(self.folder, 80)}")
        theirs = _OF_THE_HUB if self.folder is not None else ("sha256",)
        if given := next((name for name in theirs if getattr(self, name) is not None), None):
            kind = "a dataset on the Hub" if self.folder is not None else "a folder"
            raise ValueError(f"{given} is for {kind}: expected none, found {quoted(getattr(self, given))}")
        return self

    @model_validator(mode="after")
    def _apart(self) -> DatasetRef:
        if self.train_split == self.test_split:
            raise ValueError(
                f"train_split and test_split are both {quoted(self.test_split)}: nothing would be held out"
            )
        if self.image_column == self.label_column:
            raise ValueError(f"image_column and label_column are both {quoted(self.image_column)}")
        return self

    @property
    def label(self) -> str:
        """What it is called: `user/name`, or the folder's base name."""
        return self.repo or self.folder or ""

    @property
    def place(self) -> Path:
        """Where the folder is on this machine."""
        assert self._place is not None  # of a folder
        return self._place
