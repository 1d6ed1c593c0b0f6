"""What the embedded Hub answers, and at which addresses; whole repos are in `_catalogue`, files in `_files`.

Every function takes the `Call` and gives a `Reply`, or raises a `Refusal`. None of them touches a socket.
"""

from __future__ import annotations

from dataclasses import replace

from hfcart.demo.embedded_hub import _catalogue as catalogue
from hfcart.demo.embedded_hub import _files as files
from hfcart.demo.embedded_hub._call import Call, Reply, check_gate, reply_json
from hfcart.demo.embedded_hub._cards import check_card
from hfcart.demo.embedded_hub._repo import KINDS, Refusal, Repo


def answer(call: Call) -> Reply:
    """The reply to a request.

    Raises:
        Refusal: the request is turned down.
    """
    match (call.method, *call.segments):
        case ("GET", "api", "whoami-v2"):
            return whoami(call)
        case ("POST", "api", "validate-yaml"):
            return validate_yaml(call)
        case ("POST", "api", "repos", "create"):
            return catalogue.create(call)
        case ("DELETE", "api", "repos", "delete"):
            return catalogue.delete(call)
        case ("POST", "api", "repos", "move"):
            return catalogue.move(call)
        case ("GET", "api", ("models" | "datasets" | "spaces") as kind):
            return catalogue.listing(call, KINDS[kind])
        case ("GET", "api", "settings", "repositories"):
            return catalogue.storage(call, call.signed_in().name)
        case ("GET", "api", "organizations", namespace, "settings", "repositories"):
            return catalogue.storage(call, namespace)
        case (_, "api", ("models" | "datasets" | "spaces") as kind, namespace, name, *rest):
            return repo_api(call, call.repo(KINDS[kind], f"{namespace}/{name}"), rest)
        case (_, "api", ("models" | "datasets" | "spaces"), *_):
            raise Refusal(404, "Repository not found", "RepoNotFound")
        case ("PUT", "lfs-upload", ticket):
            call.store.receive(ticket, call.body)
            return Reply()
        case ("POST", *path, "info", "lfs", "objects", "batch"):
            return files.lfs_batch(call, page_repo(call, "/".join(path).removesuffix(".git")))
        case ("POST", *path, "info", "lfs", "verify"):
            return files.lfs_verify(call, page_repo(call, "/".join(path).removesuffix(".git")))
        case (("GET" | "HEAD"), ("datasets" | "spaces") as kind, namespace, name, ("resolve" | "raw") as how, *rest):
            return files.resolve(call, call.repo(KINDS[kind], f"{namespace}/{name}"), rest, raw=how == "raw")
        case (("GET" | "HEAD"), namespace, name, ("resolve" | "raw") as how, *rest):
            return files.resolve(call, call.repo("model", f"{namespace}/{name}"), rest, raw=how == "raw")
        case ("GET", namespace, name) if namespace not in ("api", *KINDS):
            return page(call, f"{namespace}/{name}", "main")
        case ("GET", namespace, name, "tree", revision) if namespace not in ("api", *KINDS):
            return page(call, f"{namespace}/{name}", revision)
    raise Refusal(404, "Sorry, we can't find the page you are looking for.")


def page_repo(call: Call, path: str) -> Repo:
    """The repo at an address outside /api: models have no prefix."""
    kind, _, repo_id = path.partition("/")
    return call.repo(KINDS[kind], repo_id) if kind in ("datasets", "spaces") else call.repo("model", path)


def page(call: Call, repo_id: str, revision: str) -> Reply:
    """What a browser gets of a model's page: the card, as it is written."""
    try:
        repo = call.repo("model", repo_id)
        check_gate(call, repo)
        card = repo.at(revision).files["README.md"]
    except (Refusal, KeyError):
        raise Refusal(404, "Sorry, we can't find the page you are looking for.") from None
    text = {"Content-Type": "text/plain; charset=utf-8"}
    return Reply(200, headers=text, path=call.store.blob(card), length=card.size)


def repo_api(call: Call, repo: Repo, rest: list[str]) -> Reply:
    """Everything under /api/models/{id}, /api/datasets/{id} and /api/spaces/{id}."""
    match (call.method, *rest):
        case ("GET",):
            return catalogue.info(call, repo, "main")
        case ("GET", "revision", *revision):
            return catalogue.info(call, repo, "/".join(revision))
        case ("PUT", "settings"):
            return catalogue.settings(call, repo)
        case ("POST", "duplicate"):
            return catalogue.duplicate(call, repo)
        case ("GET", "tree", *path):
            return files.tree(call, repo, path)
        case ("POST", "paths-info", *revision):
            return files.paths_info(call, repo, "/".join(revision))
        case ("GET", "refs"):
            return refs(call, repo)
        case ("GET", "commits", *revision):
            return commits(call, repo, "/".join(revision))
        case ("GET", "auth-check"):
            check_gate(call, repo)
            return reply_json({})
        case ("GET", "auth-check", "write"):
            call.writer(repo)
            return reply_json({})
        case ("POST", "preupload", *revision):
            return files.preupload(call, repo, "/".join(revision))
        case ("POST", "commit", *revision):
            return files.commit(call, repo, "/".join(revision))
        case (("POST" | "DELETE"), "tag", *name):
            return tag(call, repo, "/".join(name))
        case (("POST" | "DELETE"), "branch", *name):
            return branch(call, repo, "/".join(name))
    raise Refusal(404, "Sorry, we can't find the page you are looking for.")


def whoami(call: Call) -> Reply:
    """Who the token belongs to, and where they may write."""
    user = call.user()
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    return reply_json(
        {
            "type": "user",
            "id": user.name,
            "name": user.name,
            "fullname": user.name,
            "isPro": False,
            "orgs": [
                {"type": "org", "id": name, "name": name, "fullname": name, "roleInOrg": "write"} for name in user.orgs
            ],
            "auth": {"type": "access_token", "accessToken": {"displayName": "token", "role": user.role}},
        }
    )


def validate_yaml(call: Call) -> Reply:
    """Judge a card: in JSON for a commit, as text for `ModelCard.validate`, which quotes it whole."""
    request = call.json()
    errors, warnings = check_card(str(request.get("content", "")), str(request.get("repoType", "model")))
    status = 400 if errors else 200
    if call.headers.get("accept") == "text/plain":
        lines = [f"- Error: {text}\n" for text in errors] + [f"- Warning: {text}\n" for text in warnings]
        return Reply(status, "".join(lines).encode(), {"Content-Type": "text/plain; charset=utf-8"})
    found = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return reply_json(found, status)


def refs(call: Call, repo: Repo) -> Reply:
    """Branches, tags and, when asked for, pull requests."""

    def under(prefix: str) -> list[dict[str, str]]:
        return [
            {"name": name.removeprefix(prefix), "ref": name, "targetCommit": target}
            for name, target in sorted(repo.refs.items())
            if name.startswith(prefix)
        ]

    found = {"branches": under("refs/heads/"), "tags": under("refs/tags/"), "converts": under("refs/convert/")}
    return reply_json(found | ({"pullRequests": under("refs/pr/")} if call.flag("include_prs") else {}))


def commits(call: Call, repo: Repo, revision: str) -> Reply:
    """The history of a revision, last commit first."""
    found = list(repo.log(revision))
    page = call.page(
        [
            {
                "id": commit.id,
                "title": commit.message.partition("\n")[0],
                "message": commit.message.partition("\n")[2].strip(),
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for commit in found
        ]
    )
    return replace(page, headers=page.headers | {"X-Total-Count": str(len(found))})


def tag(call: Call, repo: Repo, name: str) -> Reply:
    """Tag a revision (POST tag/{revision}), or forget a tag (DELETE tag/{tag})."""
    call.writer(repo)
    if call.method == "POST":
        call.store.add_ref(repo, "tags", str(call.json().get("tag", "")), name)
    else:
        call.store.remove_ref(repo, "tags", name)
    return reply_json({})


def branch(call: Call, repo: Repo, name: str) -> Reply:
    """A new branch from `startingPoint` or main, or the end of one."""
    call.writer(repo)
    if call.method == "POST":
        call.store.add_ref(repo, "heads", name, str(call.json().get("startingPoint") or "main"))
    else:
        call.store.remove_ref(repo, "heads", name)
    return reply_json({})
