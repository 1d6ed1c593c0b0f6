"""The embedded Hub's repos as wholes: made, described, listed, changed, moved, copied, deleted."""

from __future__ import annotations

import base64
import binascii
from typing import Any, get_args

from hfcart.demo.embedded_hub._call import Call, Reply, check_gate, may_read, reply_json
from hfcart.demo.embedded_hub._cards import front_matter
from hfcart.demo.embedded_hub._repo import Commit, Entry, Gated, Kind, Refusal, Repo

# Of a listing: what stands in it without being asked for, and the questions that no repo here answers with yes.
_SHORT = (
    *("id", "modelId", "author", "sha", "lastModified", "createdAt", "private", "gated", "disabled", "downloads"),
    *("likes", "tags", "pipeline_tag", "library_name", "sdk"),
)
_NEVER = ("apps", "inference", "inference_provider", "num_parameters", "benchmark")
_SORTS = ("createdAt", "lastModified")


def create(call: Call) -> Reply:
    """A new repo in a namespace of the user's; the 409 for a taken name carries the address of what is there."""
    user, request = call.user(), call.json()
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    namespace = request.get("organization") or user.name
    _check_namespace(call, namespace)
    kind = str(request.get("type") or "model")
    private = bool(request.get("private")) or request.get("visibility") == "private"
    repo_id = f"{namespace}/{request.get('name')}"
    existing = call.store.repos.get((kind, repo_id))
    if existing is not None:
        message = f"You already created this {kind} repo: {repo_id}"
        return reply_json({"error": message, "url": f"{call.url}/{existing.url_path}"}, 409)
    files = _first_files(request.get("files"))
    repo = call.store.create(repo_id, kind, user.name, private=private, sdk=str(request.get("sdk")))
    if files:
        changes = [(path, call.store.keep(repo, path, call.store.add_bytes(data))) for path, data in files]
        call.store.commit(repo, "main", changes, "Initial files", user.name)
    return _address(call, repo)


def delete(call: Call) -> Reply:
    """The end of a repo."""
    request = call.json()
    namespace = request.get("organization") or call.signed_in().name
    repo = call.repo(str(request.get("type") or "model"), f"{namespace}/{request.get('name')}")
    call.writer(repo)
    call.store.delete(repo)
    return Reply()


def move(call: Call) -> Reply:
    """Another name, in this namespace or in another one of the user's."""
    request = call.json()
    repo = call.repo(str(request.get("type") or "model"), str(request.get("fromRepo")))
    call.writer(repo)
    target = str(request.get("toRepo"))
    _check_namespace(call, target.partition("/")[0])
    call.store.move(repo, target)
    return Reply()


def duplicate(call: Call, repo: Repo) -> Reply:
    """A new repo of the user's with the files of this one's main."""
    check_gate(call, repo)
    request, user = call.json(), call.signed_in()
    target = str(request.get("repository"))
    _check_namespace(call, target.partition("/")[0])
    files = repo.at("main").files
    private = request.get("visibility", "private" if repo.private else "public") == "private"
    made = call.store.create(target, repo.type, user.name, private=private, sdk=str(facts_of(call, repo).get("sdk")))
    made.uploaded |= {entry.sha256: entry for entry in files.values() if entry.lfs}
    call.store.commit(made, "main", files.items(), f"Duplicate from {repo.id}", user.name)
    return _address(call, made)


def settings(call: Call, repo: Repo) -> Reply:
    """Who sees it, and who may read it."""
    call.writer(repo)
    request = call.json()
    if "gated" in request:
        gates = [each for each in get_args(Gated) if each == request["gated"]]
        if not gates:
            raise Refusal(400, '"gated" must be one of [auto, manual, false]')
        repo.gated = gates[0]
    visibility = request.get("visibility")
    if visibility is not None or "private" in request:
        repo.private = visibility == "private" or request.get("private") is True
    return reply_json({"private": repo.private, "gated": repo.gated})


def listing(call: Call, kind: Kind) -> Reply:
    """The repos of a kind that the user may know of and that all filters let through, sorted, page by page."""
    user, query = call.user(), call.query
    wanted = call.expand
    short = None if call.flag("full") or wanted else _SHORT
    found = []
    for repo in list(call.store.repos.values()):
        if repo.type != kind or (repo.private and not may_read(user, repo)):
            continue
        facts = facts_of(call, repo)
        if _fits(facts, query):
            found.append(facts)
    found.sort(key=lambda facts: str(facts["id"]))
    sort = query.get("sort", [""])[0]
    if sort in _SORTS:
        found.sort(key=lambda facts: str(facts[sort]), reverse=query.get("direction", ["-1"])[0] != "1")
    return call.page([_chosen(facts, wanted, short) for facts in found])


def storage(call: Call, namespace: str) -> Reply:
    """What the repos of a namespace of the user's take on disk."""
    _check_namespace(call, namespace, reading=True)
    repos = [repo for repo in call.store.repos.values() if repo.namespace == namespace]
    sizes = [sum(entry.size for entry in repo.at("main").files.values()) for repo in repos]
    whole = sum(sizes) or 1
    return call.page(
        [
            {
                "id": repo.id,
                "type": repo.type,
                "updatedAt": repo.at("main").date,
                "visibility": "private" if repo.private else "public",
                "storage": size,
                "storagePercent": size / whole,
            }
            for repo, size in zip(repos, sizes, strict=True)
        ]
    )


def info(call: Call, repo: Repo, revision: str) -> Reply:
    """The facts of a repo at a revision; with `expand`, only those asked for."""
    return reply_json(_chosen(facts_of(call, repo, revision), call.expand))


def facts_of(call: Call, repo: Repo, revision: str = "main") -> dict[str, Any]:
    """All that the Hub tells of a repo at a revision."""
    at = repo.at(revision)
    card = _card_of(call, at)
    tags = card.get("tags")
    facts: dict[str, Any] = {
        "id": repo.id,
        "author": repo.namespace,
        "sha": at.id,
        "lastModified": at.date,
        "createdAt": list(repo.log("main"))[-1].date,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else [],
        "cardData": card,
        "usedStorage": sum(entry.size for entry in at.files.values()),
        "siblings": [sibling(path, entry, call.flag("blobs")) for path, entry in at.files.items()],
    }
    if repo.type == "model":
        facts["modelId"] = repo.id
        facts |= {key: card[key] for key in ("library_name", "pipeline_tag") if isinstance(card.get(key), str)}
    if repo.type == "space":
        facts["sdk"] = card.get("sdk")
    return facts


def sibling(path: str, entry: Entry, blobs: bool) -> dict[str, Any]:
    """A file in the repo's facts."""
    facts: dict[str, Any] = {"rfilename": path}
    if blobs:
        facts |= {"size": entry.size, "blobId": entry.oid}
        if entry.lfs:
            facts["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": len(entry.pointer)}
    return facts


def _card_of(call: Call, at: Commit) -> dict[str, Any]:
    if (readme := at.files.get("README.md")) is None:
        return {}
    with call.store.open(readme) as file:
        return front_matter(file.read(1 << 20).decode(errors="replace"))


def _chosen(facts: dict[str, Any], wanted: list[str], short: tuple[str, ...] | None = None) -> dict[str, Any]:
    names = ("id", *wanted) if wanted else short
    chosen = {key: value for key, value in facts.items() if names is None or key in names}
    return {"_id": facts["id"], **chosen}


def _fits(facts: dict[str, Any], query: dict[str, list[str]]) -> bool:
    """Whether a repo is one of those that a listing asks for."""
    card = facts["cardData"]
    prefixed = {f"{name.rstrip('s')}:{value}" for name in ("license", "datasets", "base_model")
                for value in _texts(card.get(name))}  # fmt: skip
    known = {*facts["tags"], *prefixed, facts.get("library_name"), facts.get("pipeline_tag"), facts.get("sdk")}
    return (
        not any(name in query for name in _NEVER)
        and all(text.lower() in facts["id"].lower() for text in query.get("search", []))
        and all(author == facts["author"] for author in query.get("author", []))
        and all(part in known for text in query.get("filter", []) for part in text.split(","))
        and all(tag == facts.get("pipeline_tag") for tag in query.get("pipeline_tag", []))
        and all((text == "true") == bool(facts["gated"]) for text in map(str.lower, query.get("gated", [])))
    )


def _texts(value: object) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _check_namespace(call: Call, namespace: str, *, reading: bool = False) -> None:
    user = call.signed_in()
    if namespace not in user.namespaces or (user.role != "write" and not reading):
        raise Refusal(403, f"You don't have the rights to create a repo under the namespace {namespace!r}")


def _first_files(files: object) -> list[tuple[str, bytes]]:
    """The files that a new repo is to begin with."""
    try:
        listed = files if isinstance(files, list) else []
        return [(str(file["path"]), base64.b64decode(file["content"], validate=True)) for file in listed]
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise Refusal(400, '"files" must be an array of files with a path and base64 content') from None


def _address(call: Call, repo: Repo) -> Reply:
    return reply_json({"url": f"{call.url}/{repo.url_path}", "name": repo.id, "id": repo.id})
