"""What is read: a source pinned, what its card says, the shape of a tower, and where bytes were computed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CardFacts:
    """What a repo's model card says of itself: untrusted text, never more than these fields.

    The base of a local merge is what its hfcart.json leads to.

    `licenses` keeps the Hub's identifiers in lower case; None or () where the card is silent.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    datasets: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileRecord:
    """One weight file of a source: its name inside the source, bytes, and sha256 (64 hex digits)."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class SourceRecord:
    """One source, pinned: a Hub repo at a commit, or a local folder known by its base name and content.

    Attributes:
        label: `user/name` for a Hub repo, with `:path` behind it if a place in it was meant; the folder's base name for
            a local one, `folder:file` for a file of it. Used in every message.
        repo: the Hub id, None for a local folder.
        revision: what the user asked for (branch, tag, sha, refs/pr/N), None if nothing was asked.
        commit: 40 hex digits, None for a local folder.
        sha256: digest of the weight files' digests in name order, for an adapter with its base's behind them; sets the
            canonical order of sources.
        files: the weight files read; of an adapter its config, too.
        facts: what its card says.
        path: folder or file inside the Hub repo, None if the repo's top level was meant, or it is local.
        adapter_of: the tower that it is a LoRA adapter of; None for a whole tower.
    """

    label: str
    repo: str | None
    revision: str | None
    commit: str | None
    sha256: str
    files: tuple[FileRecord, ...]
    facts: CardFacts = CardFacts()
    path: str | None = None
    adapter_of: SourceRecord | None = None

    @property
    def ref(self) -> str | None:
        """What opens a source of the Hub again, `user/name@commit` or `user/name@commit:path`; None for a local one."""
        return f"{self.repo}@{self.commit}{f':{self.path}' if self.path else ''}" if self.repo else None


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the function a CLIP vision tower computes, shapes included."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_channels: int
    image_size: int
    patch_size: int
    hidden_act: str
    layer_norm_eps: float
    projection_dim: int


@dataclass(frozen=True)
class Environment:
    """Where the bytes were computed, as far as it can change them. No host names, no paths, no dates."""

    hfcart: str
    torch: str
    python: str
    platform: str
    device: str
    processor: str
    solver: str


@dataclass(frozen=True)
class DatasetRecord:
    """One split of a Hub dataset, pinned.

    Attributes:
        repo: `user/name`.
        config: the configuration, None for the dataset's only one.
        split: the Hub's name of the split that was read.
        commit: 40 hex digits.
    """

    repo: str
    config: str | None
    split: str
    commit: str

    @property
    def label(self) -> str:
        """What it is called."""
        return self.repo

    @property
    def pin(self) -> str:
        """The beginning of what pins it."""
        return self.commit[:7]


@dataclass(frozen=True)
class FolderRecord:
    """One split of a folder of images, pinned by its content. Where the folder lay is nobody's business.

    Attributes:
        folder: its base name.
        split: its folder in there, or `all` where there are no splits.
        sha256: of the lines "<sha256 of a file>  <its path in the folder>", in the order of the paths, of all images
            and of the metadata files beside them; 64 hex digits.
    """

    folder: str
    split: str
    sha256: str

    @property
    def label(self) -> str:
        """What it is called."""
        return self.folder

    @property
    def pin(self) -> str:
        """The beginning of what pins it."""
        return self.sha256[:12]


ImagesRecord = DatasetRecord | FolderRecord
"""Where images came from, pinned."""
