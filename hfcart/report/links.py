"""How cards name what is on the Hub: with a link where the name and the commit have the form of one. Pure."""

from __future__ import annotations

from hfcart.formats.markdown import code, text
from hfcart.records import DatasetRecord, ImagesRecord
from hfcart.records.check import is_commit
from hfcart.records.repo_id import is_repo_id

HUB = "https://huggingface.co"


def page_of(repo: str | None, commit: str | None, kind: str = "") -> str | None:
    """The page of a repo at a commit; None where one of them is missing, or is not what it should be.

    Args:
        repo: `user/name`.
        commit: 40 hex digits.
        kind: "datasets/" for a dataset.
    """
    return f"{HUB}/{kind}{repo}" if repo and is_repo_id(repo) and is_commit(commit) else None


def at(page: str, commit: str | None) -> str:
    """A commit of a repo, linked."""
    return f"[`{(commit or '')[:7]}`]({page}/tree/{commit})"


def pinned(repo: str, commit: str | None, kind: str = "", between: str = "@") -> str:
    """A repo at its commit, linked; by its name alone where it is none of the Hub's. Args as for `page_of`."""
    page = page_of(repo, commit, kind)
    return f"[{text(repo)}]({page}) {between} {at(page, commit)}" if page else code(repo)


def dataset_link(name: str) -> str:
    """A dataset that a card names, at no commit."""
    return f"[{text(name)}]({HUB}/datasets/{name})" if is_repo_id(name) else code(name, 60)


def on_the_hub(dataset: ImagesRecord) -> bool:
    """Whether images are of a dataset on the Hub, at a commit."""
    return isinstance(dataset, DatasetRecord) and page_of(dataset.repo, dataset.commit) is not None


def images(dataset: ImagesRecord) -> str:
    """Where images are from: a dataset at its commit, linked; a folder by its name and the digest of its content."""
    if isinstance(dataset, DatasetRecord):
        return pinned(dataset.repo, dataset.commit, "datasets/")
    return f"a folder {code(dataset.folder)} with sha256 {code(dataset.sha256[:12])}"
