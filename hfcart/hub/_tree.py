"""The files of one commit, with their digests: asked of the Hub once and kept, since a commit never changes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants, get_session, hf_raise_for_status
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from hfcart.errors import CorruptFileError
from hfcart.hub._assets import assets, write_whole
from hfcart.hub._calls import call
from hfcart.quoting import quoted
from hfcart.records.check import is_commit, is_sha256
from hfcart.system.patience import READ_TIMEOUT

Kind = Literal["model", "dataset", "space"]
_GIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class RepoFile:
    """One file of a pinned tree.

    Attributes:
        path: inside the repo.
        size: bytes.
        sha256: 64 hex digits, where LFS holds the file; None where git does.
        oid: git's digest of what git holds: the file, or LFS's pointer to it.
    """

    path: str
    size: int
    sha256: str | None
    oid: str

    @property
    def digest(self) -> str:
        """What its content is proven by."""
        return self.sha256 or self.oid

    def digest_of(self, path: Path) -> str:
        """The digest that a file on this machine has, of the kind that this one is proven by."""
        whole = hashlib.sha256() if len(self.digest) == 64 else hashlib.sha1(usedforsecurity=False)
        with path.open("rb") as file:
            if self.sha256 is None:
                whole.update(b"blob %d\0" % os.fstat(file.fileno()).st_size)
            return hashlib.file_digest(file, lambda: whole).hexdigest()


def name_of(kind: Kind, repo: str) -> str:
    """The repo as messages and `call` know it: `user/name`, or `datasets/user/name`."""
    return repo if kind == "model" else f"{kind}s/{repo}"


@dataclass(frozen=True)
class Kept:
    """The files of a commit by path, and what the Hub called the repo when they were listed ("" if nobody asked)."""

    name: str
    files: dict[str, RepoFile]


def listing(kind: Kind, repo: str, commit: str, name: str = "") -> dict[str, RepoFile]:
    """Every file of a commit by its path: as kept by an earlier run, or asked of the Hub and kept.

    Args:
        kind: of the repo.
        repo: `user/name`.
        commit: 40 hex digits.
        name: what the Hub calls the repo, to be kept with the files.

    Raises:
        CorruptFileError: it lists a file name that leads out of it.
        SourceError, HubError: it cannot be asked.
    """
    before = kept(kind, repo, commit)
    if before is not None and (before.name or not name):
        return before.files
    found = before.files if before else {}
    if before is None:
        for entry in tree(repo, commit, kind):
            lfs = entry.get("lfs")
            file = RepoFile(entry["path"], (lfs or entry)["size"], lfs["oid"] if lfs else None, entry["oid"])
            if not _is_plain(file.path):
                raise CorruptFileError(
                    f"{repo} lists a file named {quoted(str(file.path), 120)}, which is no plain path inside a repo.",
                    hint="Do without this repo, or name a revision without that file: user/name@revision.",
                )
            found[file.path] = file
    listed = [[file.path, file.size, file.sha256, file.oid] for file in found.values()]
    data = json.dumps({"name": name, "files": listed}).encode()
    write_whole(_place(kind, repo) / f"{commit}.json", hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
    return found


def tree(repo: str, commit: str, kind: Kind = "model") -> list[dict[str, Any]]:
    """The Hub's entries for every file of a commit: `path`, `size`, `oid` (git's digest), and `lfs` for LFS files.

    The client's own listing waits for ever for a silent server, hence the plain requests.
    """

    def page() -> tuple[list[dict[str, Any]], str | None]:
        headers = build_hf_headers(library_name="hfcart")
        response = get_session().get(url or "", headers=headers, timeout=READ_TIMEOUT)
        hf_raise_for_status(response)
        if not isinstance(answer := response.json(), list):
            raise ValueError("no list")
        found = [dict(entry) for entry in answer if entry["type"] == "file"]
        for entry in found:
            lfs = entry.get("lfs")
            size, digest = (lfs or entry)["size"], lfs["oid"] if lfs else None
            if not _is_sound(size, digest, entry["oid"]):
                raise ValueError("a file without a size or a digest")
        follow = response.links.get("next", {}).get("url")
        # The token goes along: to the Hub alone. And a list that leads back to itself has no end.
        if follow is not None and (follow in seen or not follow.startswith(f"{constants.ENDPOINT}/")):
            raise ValueError("a next page that cannot be")
        seen.add(follow)
        return found, follow

    seen: set[str | None] = set()
    entries: list[dict[str, Any]] = []
    url: str | None = f"{constants.ENDPOINT}/api/{kind}s/{repo}/tree/{commit}?recursive=true"
    while url is not None:
        found, url = call(f"Listing {repo}", page, repo=name_of(kind, repo))
        entries += found
    return entries


def kept(kind: Kind, repo: str, commit: str) -> Kept | None:
    """The listing that hfcart, or else the Hub's client (`hf download`), kept of a commit; None if there is none.

    What is read is believed no more than an answer of the Hub: a listing with anything odd in it counts as none.
    """
    for folder, read in ((_place(kind, repo), _ours), (_clients_place(kind, repo), _clients)):
        try:
            found = read((folder / f"{commit}.json").read_bytes())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if all(_is_plain(file.path) and _is_sound(file.size, file.sha256, file.oid) for file in found.files.values()):
            return found
    return None


def kept_commits(kind: Kind, repo: str) -> list[str]:
    """Commits of a repo whose listing is kept, sorted."""
    folders = (_place(kind, repo), _clients_place(kind, repo))
    names = {path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.json")}
    return sorted(name for name in names if is_commit(name))


def _place(kind: Kind, repo: str) -> Path:
    return assets("trees") / f"{kind}s--{repo.replace('/', '--')}"


def _clients_place(kind: Kind, repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}" / "trees"


def _ours(data: bytes) -> Kept:
    digest, _, listed = data.partition(b"\n")
    if digest.decode() != hashlib.sha256(listed).hexdigest():
        raise ValueError("not as it was written")
    found = json.loads(listed)
    files = (RepoFile(path, size, sha256, oid) for path, size, sha256, oid in found["files"])
    return Kept(str(found["name"])[:200], {file.path: file for file in files})


def _clients(data: bytes) -> Kept:
    found = json.loads(data)
    if found["format_version"] != 1:
        raise ValueError("another format")
    files = {}
    for path, entry in found["files"].items():
        sha256 = entry.get("lfs_sha256")
        size = entry["size"] if sha256 is None else entry["lfs_size"]
        files[path] = RepoFile(path, size, sha256, entry["blob_id"])
    return Kept("", files)


def _is_sound(size: object, sha256: object, oid: object) -> bool:
    lfs = sha256 is None or (isinstance(sha256, str) and is_sha256(sha256))
    return type(size) is int and size >= 0 and lfs and isinstance(oid, str) and _GIT.fullmatch(oid) is not None


def _is_plain(path: object) -> bool:
    return (
        isinstance(path, str)
        and not {"", ".", ".."}.intersection(path.split("/"))
        and not re.search(r"[\\\x00-\x1f\x7f]", path)
    )
