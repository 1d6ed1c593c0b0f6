"""The embedded Hub's files: listing them, sending them, taking them in, and the commits that change them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import mimetypes
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

from hfcart.demo.embedded_hub._call import LINE_LIMIT, Call, Reply, check_gate, reply_json
from hfcart.demo.embedded_hub._repo import Commit, Entry, Refusal, Repo, is_lfs

SIGNATURE = "signed0by0the0embedded0hub"  # not checked: the path names the upload
_SHA256 = re.compile("[0-9a-f]{64}")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def split_revision(segments: list[str]) -> tuple[str, str]:
    """Revision and path from what follows /tree/ or /resolve/: refs/pr/1 comes as one segment or as three."""
    width = 3 if segments[:1] == ["refs"] else 1
    return "/".join(segments[:width]), "/".join(segments[width:]).strip("/")


def tree(call: Call, repo: Repo, segments: list[str]) -> Reply:
    """Files and folders at a revision, in the order of their paths."""
    revision, folder = split_revision(segments)
    at = repo.at(revision)
    prefix = f"{folder}/" if folder else ""
    found: dict[str, Entry | None] = {}
    for path, entry in at.files.items():
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        depths = range(1, len(parts) if call.flag("recursive") else min(2, len(parts)))
        found |= {prefix + "/".join(parts[:depth]): None for depth in depths}
        if call.flag("recursive") or len(parts) == 1:
            found[path] = entry
    if folder and not found:
        raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound", commit=at.id)
    expand = call.flag("expand")
    return call.page([describe(repo, at, path, expand) for path in sorted(found)])


def paths_info(call: Call, repo: Repo, revision: str) -> Reply:
    """What is known of some paths; those that do not exist are left out."""
    at = repo.at(revision)
    if call.headers.get("content-type", "").startswith("application/json"):
        asked = call.json()
        names, expand = asked.get("paths"), bool(asked.get("expand"))
    else:
        form = parse_qs(call.body.read(LINE_LIMIT).decode(errors="replace"))
        names, expand = form.get("paths", []), form.get("expand", [""])[-1].lower() == "true"
    if not isinstance(names, list):
        raise Refusal(400, '"paths" must be an array')
    paths = [path for path in map(str, names) if path in at.files or is_folder(at, path)]
    return reply_json([describe(repo, at, path, expand) for path in paths])


def is_folder(at: Commit, path: str) -> bool:
    """Whether any file lies below `path`."""
    return any(name.startswith(f"{path}/") for name in at.files)


def describe(repo: Repo, at: Commit, path: str, expand: bool) -> dict[str, Any]:
    """One entry of a tree, with the commit that last changed it if `expand`."""
    facts: dict[str, Any]
    entry = at.files.get(path)
    if entry is None:
        facts = {"type": "directory", "oid": content_digest(at, path), "size": 0, "path": path}
    else:
        facts = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
        if entry.lfs:
            facts["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": len(entry.pointer)}
    if expand:
        last = at
        while last.parent and content_digest(repo.history[last.parent], path) == content_digest(last, path):
            last = repo.history[last.parent]
        facts["lastCommit"] = {"id": last.id, "title": last.message.partition("\n")[0], "date": last.date}
    return facts


def content_digest(at: Commit, path: str) -> str:
    """40 hex digits that change whenever anything at or below `path` does."""
    below = [[name, entry.sha256] for name, entry in at.files.items() if name == path or name.startswith(f"{path}/")]
    return hashlib.sha1(json.dumps(below).encode(), usedforsecurity=False).hexdigest()


def resolve(call: Call, repo: Repo, segments: list[str], *, raw: bool = False) -> Reply:
    """A file, or the range of it that was asked for, with the headers the client pins it by.

    `raw`: what git holds of it, which is a small text for a file that LFS holds.
    """
    check_gate(call, repo)
    revision, path = split_revision(segments)
    at = repo.at(revision)
    entry = at.files.get(path)
    if entry is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", commit=at.id)
    if raw and entry.lfs:
        entry = call.store.add_bytes(entry.pointer)
    headers = {
        "X-Repo-Commit": at.id,
        "ETag": f'"{entry.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Type": mimetypes.guess_type(path)[0] or "application/octet-stream",
        "Content-Disposition": "inline",
    }
    if entry.lfs:
        headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
    start, end = 0, entry.size
    status = 200
    asked = _RANGE.fullmatch(call.headers.get("range", ""))
    if asked is not None and asked.groups() != ("", ""):
        first, last = asked.groups()
        start = int(first) if first else max(0, entry.size - int(last))
        end = min(int(last) + 1, entry.size) if first and last else entry.size
        if start >= end:
            return Reply(416, headers=headers | {"Content-Range": f"bytes */{entry.size}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size}"
        status = 206
    return Reply(status, headers=headers, path=call.store.blob(entry), start=start, length=end - start)


def preupload(call: Call, repo: Repo, revision: str) -> Reply:
    """Which files are to come through LFS, and what the branch holds in their place."""
    call.contributor(repo, revision, opens_pull_request=call.flag("create_pr"))
    at = repo.at(revision)
    modes = []
    for asked in call.json().get("files", []):
        path, size = str(asked["path"]), int(asked["size"])
        held = at.files.get(path)
        mode = "lfs" if is_lfs(path, size) else "regular"
        modes.append(
            {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": held.etag if held is not None else None}
        )
    return reply_json({"files": modes, "commitOid": at.id})


def lfs_batch(call: Call, repo: Repo) -> Reply:
    """Where to put LFS files; nothing for those that are here."""
    request = call.json()
    # A client that is about to open a pull request names no ref, and needs no write access.
    revision = str((request.get("ref") or {}).get("name"))
    call.contributor(repo, revision, opens_pull_request="ref" not in request)
    objects = []
    for asked in request.get("objects", []):
        oid, size = str(asked["oid"]), int(asked["size"])
        if not _SHA256.fullmatch(oid):
            raise Refusal(422, f"Not a sha256: {oid!r}")
        reply: dict[str, Any] = {"oid": oid, "size": size}
        ticket = call.store.announce(repo, oid, size)
        if ticket is not None:
            reply["actions"] = {
                "upload": {"href": f"{call.url}/lfs-upload/{ticket}?X-Amz-Signature={SIGNATURE}"},
                "verify": {"href": f"{call.url}/{repo.url_path}.git/info/lfs/verify"},
            }
        objects.append(reply)
    return reply_json({"transfer": "basic", "objects": objects})


def lfs_verify(call: Call, repo: Repo) -> Reply:
    """Whether an LFS file arrived whole."""
    call.signed_in()
    request = call.json()
    entry = repo.uploaded.get(str(request.get("oid")))
    if entry is None or entry.size != request.get("size"):
        raise Refusal(404, f"LFS object {request.get('oid')} has not arrived")
    return reply_json({})


def commit(call: Call, repo: Repo, revision: str) -> Reply:
    """One commit from newline-delimited JSON: a header, then files to write and to delete."""
    pull_request = call.flag("create_pr")
    user = call.contributor(repo, revision, opens_pull_request=pull_request)
    header, changes = read_operations(call, repo)
    message = "\n\n".join(filter(None, (header.get("summary"), header.get("description"))))
    if not message:
        raise Refusal(400, "A commit needs a summary.")
    details = (repo, revision, changes, message, user.name)
    address = f"{call.url}/{repo.url_path}"
    reply = {"success": True, "hookOutput": ""}
    if pull_request:
        made, number = call.store.open_pull_request(*details, parent=header.get("parentCommit"))
        reply["pullRequestUrl"] = f"{address}/discussions/{number}"
    else:
        made = call.store.commit(*details, parent=header.get("parentCommit"))
    return reply_json(reply | {"commitOid": made.id, "commitUrl": f"{address}/commit/{made.id}"})


def read_operations(call: Call, repo: Repo) -> tuple[dict[str, Any], list[tuple[str, Entry | None]]]:
    """The header of a commit and its changes, with the content of every regular file on disk."""
    header: dict[str, Any] = {}
    changes: list[tuple[str, Entry | None]] = []
    for line in lines(call):
        try:
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            path = "" if key == "header" else str(value["path"])
            if key == "header":
                header = dict(value)
            elif key == "file":
                changes.append((path, call.store.add_bytes(base64.b64decode(value["content"], validate=True))))
            elif key == "lfsFile":
                changes.append((path, repo.uploaded[value["oid"]]))
            elif key in ("deletedFile", "deletedFolder"):
                changes.append((path.rstrip("/") + "/" * (key == "deletedFolder"), None))
            else:
                raise Refusal(400, f"Unknown operation in a commit: {key!r}")
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            raise Refusal(400, f"A line of the commit makes no sense, or names a file not uploaded: {error}") from error
    return header, changes


def lines(call: Call) -> Iterator[bytes]:
    """The lines of a body, each bounded."""
    while line := call.body.readline(LINE_LIMIT):
        if not line.endswith(b"\n") and len(line) >= LINE_LIMIT:
            raise Refusal(413, "A line of the commit is too long.")
        if line.strip():
            yield line
