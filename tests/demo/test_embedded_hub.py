"""The embedded Hub, asked by the real clients: each in a process of its own, as HF_ENDPOINT is read at import."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
from hashlib import sha256
from textwrap import dedent
from urllib.parse import urlsplit

import pytest
from running import LIMIT, ended
from towers import write_tower

from hfcart.demo.embedded_hub.hub import EmbeddedHub, Request

PRELUDE = """
import json, os, sys
from pathlib import Path
from huggingface_hub import *

api, out = HfApi(), {}

def refused(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        response = getattr(error, "response", None)
        return [type(error).__name__, None if response is None else response.status_code]
    return "not refused"
"""
WEIGHTS = bytes(range(256)) * 20_000
CARD = b"---\nlicense: mit\ntags: [clip]\nlibrary_name: hfcart\n---\n# A tower\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with EmbeddedHub(tmp_path_factory.mktemp("hub"), page_size=3) as hub:
        hub.add_user("user", token="hf_user", orgs=("org",))
        hub.add_user("reader", token="hf_reader")
        hub.add_user("user", token="hf_user_readonly", role="read")
        yield hub


@pytest.fixture
def hub(served):
    served.clear()
    return served


@pytest.fixture
def client(hub, tmp_path, capfd):
    """Run a script with the real client; what it puts into `out` comes back."""

    def run(script: str, *, token: str | None = "hf_user", prelude: str = PRELUDE, **env: str) -> dict:
        settings = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "HF_HOME": tempfile.mkdtemp(dir=tmp_path),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            **({"HF_TOKEN": token} if token else {}),
            **env,
        }
        code = f"{prelude}\n{dedent(script)}\nprint(json.dumps(out))\n"
        done = ended([sys.executable, "-c", code], env=settings, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in capfd.readouterr().err, "the server failed"
        return json.loads(done.stdout.splitlines()[-1])

    return run


def raw(hub: EmbeddedHub, method: str, path: str, body: bytes | None = None, **headers: str):
    """One request without any client's help: status, headers, body."""
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc)
    connection.request(method, path, body, headers={name.replace("_", "-"): value for name, value in headers.items()})
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply.status, reply.headers, content


def test_reading_a_model_at_every_kind_of_revision(hub, client):
    hub.create("user/read")
    first = hub.commit("user/read", {"model.safetensors": WEIGHTS, "README.md": CARD, "a/b/c.json": b"{}"}, message="1")
    hub.tag("user/read", "v1", first)
    second = hub.commit("user/read", {"model.safetensors": b"new"}, message="2", delete=["a/"])
    assert hub.pull_request("user/read", {"model.safetensors": b"proposed"}) == 1
    hub.commit("user/read", {"model.safetensors": b"developed"}, branch="dev")
    out = client(
        f"""
        info = api.model_info("user/read", files_metadata=True)
        wanted = ("sha", "private", "gated", "tags", "library_name")
        out["info"] = [*(vars(info)[name] for name in wanted), info.card_data.license]
        out["siblings"] = [[s.rfilename, s.size, s.lfs and s.lfs.sha256] for s in info.siblings]
        out["shas"] = [api.model_info("user/read", revision=r).sha for r in ("v1", "{first}", "{first[:8]}", "dev")]
        out["expanded"] = vars(api.model_info("user/read", expand=["sha"]))["siblings"]
        for revision in ("main", "v1", "{first}", "refs/pr/1", "dev"):
            path = Path(hf_hub_download("user/read", "model.safetensors", revision=revision))
            out[revision] = [path.read_bytes()[:9].decode("latin1"), path.parent.name]
        folder = Path(snapshot_download("user/read", revision="v1"))
        out["snapshot"] = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        out["weights"] = (folder / "model.safetensors").read_bytes() == bytes(range(256)) * 20_000
        """
    )
    assert out["info"] == [second, False, False, ["clip"], "hfcart", "mit"]
    assert [name for name, _, _ in out["siblings"]] == [".gitattributes", "README.md", "model.safetensors"]
    assert out["siblings"][1:] == [
        ["README.md", len(CARD), None],
        ["model.safetensors", 3, sha256(b"new").hexdigest()],
    ]
    assert out["shas"] == [first, first, first, hub.head("user/read", "dev")]
    assert out["expanded"] is None
    assert out["main"] == ["new", second]
    assert out["v1"] == out[first] == [WEIGHTS[:9].decode("latin1"), first]
    assert out["refs/pr/1"] == ["proposed", hub.head("user/read", "refs/pr/1")]
    assert out["dev"][0] == "developed"
    assert out["snapshot"] == [".gitattributes", "README.md", "a/b/c.json", "model.safetensors"]
    assert out["weights"]


def test_listing_trees_refs_and_commits(hub, client):
    hub.create("user/tree")
    files = {f"deep/er/{i}.txt": b"%d" % i for i in range(5)} | {"top.bin": WEIGHTS}
    first = hub.commit("user/tree", files, message="files")
    second = hub.commit("user/tree", {"deep/er/0.txt": b"changed"}, message="change\n\nand why")
    hub.tag("user/tree", "v1", first)
    hub.pull_request("user/tree", {"x": b"y"})
    out = client(
        """
        def listed(*args, **kwargs):
            return [[e.path, type(e).__name__] for e in api.list_repo_tree("user/tree", *args, **kwargs)]
        out["root"], out["deep"] = listed(), listed("deep", revision="v1")
        out["all"] = [path for path, kind in listed(recursive=True)]
        out["below"] = [path for path, kind in listed("deep/er", recursive=True)]
        out["gone"] = refused(listed, "nowhere")
        expanded = {e.path: e.last_commit for e in api.list_repo_tree("user/tree", recursive=True, expand=True)}
        out["last"] = {path: commit.oid for path, commit in expanded.items()}
        weights, folder = api.get_paths_info("user/tree", ["top.bin", "deep", "none"])
        out["paths"] = [weights.lfs.sha256, weights.lfs.size, weights.blob_id, folder.path]
        refs = api.list_repo_refs("user/tree", include_pull_requests=True)
        out["refs"] = {r.ref: r.target_commit for r in refs.branches + refs.tags + refs.pull_requests}
        out["commits"] = [[c.commit_id, c.title, c.message] for c in api.list_repo_commits("user/tree")]
        """
    )
    names = [f"deep/er/{i}.txt" for i in range(5)]
    assert out["root"] == [[".gitattributes", "RepoFile"], ["deep", "RepoFolder"], ["top.bin", "RepoFile"]]
    assert out["deep"] == [["deep/er", "RepoFolder"]]
    assert out["all"] == [".gitattributes", "deep", "deep/er", *names, "top.bin"]
    assert out["below"] == names
    assert [r.path for r in hub.requests if "recursive=true&expand=false" in r.path and "cursor=" in r.path], "one page"
    assert out["gone"] == ["RemoteEntryNotFoundError", 404]
    assert out["last"]["deep"] == out["last"]["deep/er/0.txt"] == second
    assert out["last"]["deep/er/1.txt"] == out["last"]["top.bin"] == first
    digest = sha256(WEIGHTS).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(WEIGHTS)}\n".encode()
    git = subprocess.run(
        ["git", "hash-object", "--stdin"], input=pointer, capture_output=True, check=True, timeout=LIMIT
    )
    assert out["paths"] == [digest, len(WEIGHTS), git.stdout.decode().strip(), "deep"]
    proposed = hub.head("user/tree", "refs/pr/1")
    assert out["refs"] == {"refs/heads/main": second, "refs/tags/v1": first, "refs/pr/1": proposed}
    assert [row[1:] for row in out["commits"]] == [["change", "and why"], ["files", ""], ["initial commit", ""]]
    assert [row[0] for row in out["commits"]] == [commit for commit, _ in hub.commits("user/tree")]


def test_ranges(hub, client):
    hub.create("user/ranges")
    hub.commit("user/ranges", {"model.safetensors": WEIGHTS, "empty.txt": b""})
    out = client(
        """
        with HfFileSystem().open("user/ranges/model.safetensors", block_size=1 << 16, cache_type="none") as file:
            out["head"] = file.read(8).hex()
            file.seek(1_000_001)
            out["middle"] = file.read(100).hex()
        """
    )
    assert out == {"head": WEIGHTS[:8].hex(), "middle": WEIGHTS[1_000_001:1_000_101].hex()}
    assert [r.range for r in hub.requests if r.range] == ["bytes=0-7", "bytes=1000001-1000100"]

    path, size = "/user/ranges/resolve/main/model.safetensors", len(WEIGHTS)
    for asked, (start, end) in {
        "bytes=5-": (5, size),
        "bytes=-7": (size - 7, size),
        f"bytes=10-{size + 99}": (10, size),
        f"bytes={size - 1}-": (size - 1, size),
    }.items():
        status, headers, body = raw(hub, "GET", path, Range=asked)
        assert (status, headers["Content-Range"]) == (206, f"bytes {start}-{end - 1}/{size}")
        assert body == WEIGHTS[start:end]
    for asked in (f"bytes={size}-", "bytes=9-3", "bytes=-0"):
        status, headers, body = raw(hub, "GET", path, Range=asked)
        assert (status, headers["Content-Range"], body) == (416, f"bytes */{size}", b"")
    for asked in ("bytes=0-1,5-6", "bytes=-", "lines=1-2"):
        assert raw(hub, "GET", path, Range=asked)[::2] == (200, WEIGHTS)
    assert raw(hub, "GET", "/user/ranges/resolve/main/empty.txt")[::2] == (200, b"")

    status, headers, body = raw(hub, "HEAD", path)
    assert (status, int(headers["Content-Length"]), body) == (200, size, b"")
    digest = sha256(WEIGHTS).hexdigest()
    assert headers["ETag"] == headers["X-Linked-Etag"] == f'"{digest}"'
    assert int(headers["X-Linked-Size"]) == size
    assert headers["X-Repo-Commit"] == hub.head("user/ranges")
    assert "X-Linked-Etag" not in raw(hub, "HEAD", "/user/ranges/resolve/main/empty.txt")[1]


def test_commits(hub, client):
    out = client(
        """
        out["url"] = api.create_repo("user/made")
        out["again"] = [refused(api.create_repo, "user/made"), api.create_repo("user/made", exist_ok=True)]
        weights, start = bytes(range(256)) * 20_000, api.model_info("user/made").sha
        Path("model.safetensors").write_bytes(weights)

        def commit(*operations, **kwargs):
            return api.create_commit("user/made", list(operations), commit_message="message", **kwargs)

        files = [CommitOperationAdd("model.safetensors", "model.safetensors"), CommitOperationAdd("a/b.bin", b"b")]
        card = b"---\\nlicense: mit\\n---\\n# Card"
        made = commit(*files, CommitOperationAdd("README.md", card), CommitOperationAdd("c.txt", b"c"),
                      parent_commit=start, commit_description="and why")
        out["made"] = [made.oid, made.commit_url]
        out["moved"] = refused(commit, CommitOperationAdd("d.txt", b"d"), parent_commit=start)
        out["unchanged"] = commit(CommitOperationAdd("model.safetensors", weights)).oid
        out["missing"] = refused(commit, CommitOperationDelete("nowhere"))
        out["nobranch"] = refused(commit, CommitOperationAdd("d.txt", b"d"), revision="nowhere")
        out["readme"] = refused(commit, CommitOperationAdd("README.md", b"---\\nlicense: mine\\n---\\n"))
        commit(CommitOperationAdd("e.txt", b"e"), CommitOperationDelete("a/"), CommitOperationDelete("c.txt"),
               parent_commit=made.oid)
        api.create_branch("user/made", branch="dev", revision=made.oid)
        api.create_tag("user/made", tag="v1", revision="dev")
        out["taken"] = refused(api.create_tag, "user/made", tag="v1")
        commit(CommitOperationAdd("copy.bin", weights), revision="dev")
        api.create_tag("user/made", tag="gone")
        api.delete_tag("user/made", tag="gone")
        """
    )
    assert out["url"] == f"{hub.url}/user/made"
    assert out["again"] == [["HfHubHTTPError", 409], out["url"]]
    made = hub.head("user/made", "v1")
    assert out["made"] == [made, f"{hub.url}/user/made/commit/{made}"]
    assert out["moved"] == ["HfHubHTTPError", 412]
    assert out["unchanged"] == made
    assert out["missing"] == ["RemoteEntryNotFoundError", 404]
    assert out["nobranch"] == ["RevisionNotFoundError", 404]
    assert out["readme"] == ["ValueError", None]
    assert out["taken"] == ["HfHubHTTPError", 409]
    card = b"---\nlicense: mit\n---\n# Card"
    expected = {"model.safetensors": WEIGHTS, "a/b.bin": b"b", "README.md": card, "c.txt": b"c"}
    attributes = {".gitattributes": hub.files("user/made")[".gitattributes"]}
    assert hub.files("user/made", made) == expected | attributes
    assert hub.files("user/made", "dev") == expected | attributes | {"copy.bin": WEIGHTS}
    assert hub.files("user/made") == {"model.safetensors": WEIGHTS, "README.md": card, "e.txt": b"e"} | attributes
    assert [message for _, message in hub.commits("user/made")] == ["message", "message\n\nand why", "initial commit"]
    assert sum(r.method == "PUT" for r in hub.requests) == 2, "the same content again is not uploaded again"


def test_pull_requests(hub, client):
    hub.create("user/pulled")
    hub.commit("user/pulled", {"old.bin": WEIGHTS})
    out = client(
        """
        def commit(**kwargs):
            operations = [CommitOperationAdd("new.bin", os.urandom(1000)), CommitOperationDelete("old.bin")]
            return api.create_commit("user/pulled", operations, commit_message="proposal", **kwargs)

        out["direct"] = refused(commit)
        pulled = commit(create_pr=True)
        out["pulled"] = [pulled.pr_url, pulled.pr_num, pulled.pr_revision, pulled.oid]
        more = [CommitOperationAdd("more.txt", b"more")]
        api.create_commit("user/pulled", more, commit_message="more", revision=pulled.pr_revision)
        out["second"] = commit(create_pr=True).pr_num
        """,
        token="hf_reader",
    )
    assert out["direct"] == ["HfHubHTTPError", 403]
    assert out["pulled"][:3] == [f"{hub.url}/user/pulled/discussions/1", 1, "refs/pr/1"]
    assert out["second"] == 2
    assert [commit for commit, _ in hub.commits("user/pulled", "refs/pr/1")][1] == out["pulled"][3]
    assert sorted(hub.files("user/pulled", "refs/pr/1")) == [".gitattributes", "more.txt", "new.bin"]
    assert sorted(hub.files("user/pulled")) == [".gitattributes", "old.bin"]
    assert sorted(hub.files("user/pulled", "refs/pr/2")) == [".gitattributes", "new.bin"]


ACCESS = """
import tempfile

def checked(token):
    api, cache = HfApi(token=token), tempfile.mkdtemp()
    found = {"whoami": refused(api.whoami), "create": refused(api.create_repo, "user/fresh")}
    for repo in ("open", "private", "gated", "none"):
        name, file = f"user/{repo}", CommitOperationAdd("a.txt", os.urandom(9))
        found[repo] = {
            "info": refused(api.model_info, name),
            "tree": refused(lambda: list(api.list_repo_tree(name))),
            "file": refused(hf_hub_download, name, "a.txt", token=token, cache_dir=cache),
            "read": refused(api.auth_check, name),
            "write": refused(api.auth_check, name, write=True),
            "commit": refused(api.create_commit, name, [file], commit_message="m"),
        }
    return found
"""


def test_access(hub, client):
    for name, settings in {"open": {}, "private": {"private": True}, "gated": {"gated": True}}.items():
        hub.create(f"user/{name}", **settings)
        hub.commit(f"user/{name}", {"a.txt": b"a"})
    fine, forbidden, hidden = "not refused", ["HfHubHTTPError", 403], ["RepositoryNotFoundError", 404]
    anonymous = ["RepositoryNotFoundError", 401]

    out = client(f'{ACCESS}\nout = {{"nobody": checked(None), "reader": checked("hf_reader")}}', token=None)
    nobody, reader = out["nobody"], out["reader"]
    assert nobody["whoami"] == ["LocalTokenNotFoundError", None]
    assert nobody["create"] == ["HfHubHTTPError", 401]
    assert nobody["private"] == nobody["none"] == dict.fromkeys(nobody["none"], anonymous)
    assert [nobody["open"][key] for key in ("info", "tree", "file", "read")] == [fine] * 4
    assert [nobody["open"][key] for key in ("write", "commit")] == [anonymous] * 2
    assert [nobody["gated"][key] for key in ("info", "tree")] == [fine] * 2
    assert [nobody["gated"][key] for key in ("file", "read")] == [["GatedRepoError", 401]] * 2
    assert reader["whoami"] == fine
    assert reader["create"] == forbidden
    assert reader["private"] == reader["none"] == dict.fromkeys(reader["none"], hidden)
    assert [reader["gated"][key] for key in ("info", "tree")] == [fine] * 2
    assert [reader["gated"][key] for key in ("file", "read")] == [["GatedRepoError", 403]] * 2
    assert [reader["open"][key] for key in ("info", "tree", "file", "read")] == [fine] * 4
    assert [reader["open"][key] for key in ("write", "commit")] == [forbidden] * 2

    hub.grant("user/gated", "reader")
    hub.grant("user/private", "reader")
    tail = """
for token in ("hf_reader", "hf_unknown", "hf_user_readonly", "hf_user"):
    out[token] = checked(token)
me = api.whoami()
out["me"] = [me["name"], [org["name"] for org in me["orgs"]], me["auth"]["accessToken"]["role"]]
out["org"] = api.create_repo("org/shared", private=True)
api.auth_check("org/shared", write=True)
out["elsewhere"] = refused(api.create_repo, "reader/mine")
out["flags"] = [api.model_info("user/private").private, api.model_info("user/gated").gated]
"""
    out = client(ACCESS + tail)
    assert out["hf_reader"]["gated"] == out["hf_reader"]["private"] == reader["open"]
    stale = out["hf_unknown"]
    assert stale["whoami"] == ["HfHubHTTPError", 401]
    assert stale["open"] == stale["none"] == dict.fromkeys(stale["open"], ["HfHubHTTPError", 401])
    readonly = out["hf_user_readonly"]
    assert [readonly["private"][key] for key in ("read", "write", "commit")] == [fine, forbidden, forbidden]
    assert readonly["create"] == forbidden
    owner = out["hf_user"]
    for repo in ("open", "private", "gated"):
        assert owner[repo] == dict.fromkeys(owner[repo], fine)
    assert owner["none"] == dict.fromkeys(owner["none"], hidden)
    assert owner["create"] == fine
    assert out["me"] == ["user", ["org"], "write"]
    assert out["org"] == f"{hub.url}/org/shared"
    assert out["elsewhere"] == forbidden
    assert out["flags"] == [True, "manual"]


def test_what_is_not_there(hub, client):
    hub.create("user/bare")
    out = client(
        """
        def download(*args, **kwargs):
            try:
                hf_hub_download("user/bare", *args, **kwargs)
            except Exception as error:
                return [type(error).__name__, error.response.headers.get("X-Repo-Commit")]
        out["file"] = download("nothing.txt")
        out["folder"] = download("a/b")
        out["revision"] = download("a.txt", revision="nothing")
        out["sha"] = refused(api.model_info, "user/bare", revision="0" * 40)
        out["dataset"] = refused(api.dataset_info, "user/bare")
        """
    )
    assert out["file"] == out["folder"] == ["RemoteEntryNotFoundError", hub.head("user/bare")]
    assert out["revision"] == ["RevisionNotFoundError", None]
    assert out["sha"] == ["RevisionNotFoundError", 404]
    assert out["dataset"] == ["RepositoryNotFoundError", 404]
    assert raw(hub, "GET", "/api/agent-harnesses")[0] == 404
    assert raw(hub, "GET", "/api/models/user/bare/jobs")[0] == 404


def test_datasets(hub, client):
    hub.create("org/images", "dataset")
    first = hub.commit("org/images", {"data/test.parquet": WEIGHTS, "README.md": CARD}, repo_type="dataset")
    out = client(
        """
        info = api.dataset_info("org/images", revision="main")
        out["info"] = [info.id, info.sha, info.card_data.license, [s.rfilename for s in info.siblings]]
        path = hf_hub_download("org/images", "data/test.parquet", repo_type="dataset")
        out["whole"] = Path(path).read_bytes() == bytes(range(256)) * 20_000
        with HfFileSystem().open("datasets/org/images/data/test.parquet", cache_type="none") as file:
            file.seek(300)
            out["part"] = file.read(4).hex()
        out["url"] = api.create_repo("user/data", repo_type="dataset")
        operations = [CommitOperationAdd("test.parquet", b"parquet"), CommitOperationAdd("README.md", b"# Data")]
        made = api.create_commit("user/data", operations, commit_message="m", repo_type="dataset")
        out["made"] = made.commit_url
        pulled = api.create_commit("user/data", [CommitOperationAdd("b.parquet", b"b")], commit_message="m",
                                   repo_type="dataset", create_pr=True)
        out["pulled"] = pulled.pr_url
        """
    )
    assert out["info"] == ["org/images", first, "mit", [".gitattributes", "README.md", "data/test.parquet"]]
    assert out["whole"]
    assert out["part"] == WEIGHTS[300:304].hex()
    assert out["url"] == f"{hub.url}/datasets/user/data"
    head = hub.head("user/data", repo_type="dataset")
    assert out["made"] == f"{hub.url}/datasets/user/data/commit/{head}"
    assert out["pulled"] == f"{hub.url}/datasets/user/data/discussions/1"
    assert hub.files("user/data", repo_type="dataset")["test.parquet"] == b"parquet"
    assert not hub.exists("user/data")


def test_the_page_of_a_model_is_its_card(hub):
    hub.create("user/shown")
    first = hub.commit("user/shown", {"README.md": CARD})
    hub.commit("user/shown", {"README.md": b"# Newer"})
    status, _, body = raw(hub, "GET", "/user/shown")
    assert (status, body) == (200, b"# Newer")
    assert raw(hub, "GET", f"/user/shown/tree/{first}")[2] == CARD
    assert raw(hub, "GET", "/user/missing")[0] == 404


def test_spaces_are_created_filled_and_read(client, hub):
    """Made with the SDK that they run on, and with a first card that says so."""
    out = client("""
        out["without"] = refused(api.create_repo, "user/app", repo_type="space")
        out["url"] = api.create_repo("user/app", repo_type="space", space_sdk="gradio")
        out["first"] = api.list_repo_files("user/app", repo_type="space")
        api.auth_check("user/app", repo_type="space", write=True)
        operations = [CommitOperationAdd("app.py", b"print()"), CommitOperationAdd("m.safetensors", b"weights")]
        made = api.create_commit("user/app", operations, commit_message="m", repo_type="space")
        info = api.space_info("user/app")
        out["info"] = [info.sha == made.oid, info.sdk, info.private]
        path = hf_hub_download("user/app", "app.py", repo_type="space", revision=made.oid)
        out["app"] = Path(path).read_text()
        out["refs"] = len(api.list_repo_refs("user/app", repo_type="space").branches)
        card = "---\\nsdk: gradio\\ncolorFrom: teal\\nshort_description: " + 61 * "x" + "\\nmodels: one\\n---\\n"
        try:
            RepoCard(card).validate(repo_type="space")
        except ValueError as error:
            out["complaints"] = str(error)
        out["model"] = refused(api.model_info, "user/app")
    """)
    assert out["without"] == ["ValueError", None] and out["first"] == [".gitattributes", "README.md"]
    assert out["url"] == f"{hub.url}/spaces/user/app" and out["info"] == [True, "gradio", False]
    assert out["app"] == "print()" and out["refs"] == 1 and out["model"] == ["RepositoryNotFoundError", 404]
    assert all(word in out["complaints"] for word in ("colorFrom", "short_description", "models"))
    assert b"sdk: gradio" in hub.files("user/app", repo_type="space")["README.md"]


GOOD_CARD = """\
license: other
license_name: mixed-1.0
license_link: https://example.org/license
language: [en, no]
tags: [hfcart, merge]
datasets: [tanganke/sun397, cifar10]
base_model: [openai/clip-vit-base-patch32, user/tower]
base_model_relation: merge
library_name: transformers
pipeline_tag: image-feature-extraction
unknown: {fields: are taken}
model-index:
- name: tower
  results:
  - task: {type: image-classification, name: Image classification}
    dataset: {type: cifar10, name: CIFAR-10, split: test, revision: "0123456", args: {anything: [1]}}
    metrics: [{type: accuracy, value: 0.5, name: Top-1, verified: false, args: {k: 1}}]
    source: {url: "https://example.org", name: hfcart}
"""
RESULT = "model-index: [{{name: m, results: [{{task: {{type: t}}, dataset: {{type: d, name: D{}}}, metrics: {}}}]}}]"
BAD_CARDS = {
    "license: my-own": '"license" must be one of [apache-2.0, mit,',
    "license: [mit, Apache-2.0]": '"license[1]" must be one of [',
    "license: MIT": '"license" must be one of [',
    "license: 3": '"license" must be a string',
    'license: ""': '"license" is not allowed to be empty',
    "license: other\nlicense_name: My License": '"license_name" with value "My License" is not valid',
    "license: other\nlicense_link: COPYING.pdf": '"license_link" with value "COPYING.pdf" is not valid',
    "base_model: /home/me/tower": '"base_model" with value "/home/me/tower" is not valid. Use a model id from',
    "base_model: [user/a, user/b/c]": '"base_model[1]" with value "user/b/c" is not valid',
    "base_model: a tower of mine": '"base_model" with value "a tower of mine" is not valid',
    "base_model: [[user/a]]": '"base_model[0]" must be a string',
    "base_model_relation: merged": '"base_model_relation" must be one of [adapter, merge',
    "datasets: [../data]": '"datasets[0]" with value "../data" is not valid',
    "tags: merge": '"tags" must be an array',
    "tags: [merge, 3]": '"tags[1]" must be a string',
    "tags: [merge, ]\nlanguage: English": '"language" with value "English" is not valid',
    "language: [true]": '"language[0]" must be a string',
    "library_name: [hfcart]": '"library_name" must be a string',
    "model-index: {name: m}": '"model-index" must be an array',
    "model-index: [{name: m}]": '"model-index[0].results" must be an array',
    "model-index: [{results: []}]": '"model-index[0].name" is required',
    "model-index: [{name: m, results: [3]}]": '"model-index[0].results[0]" must be of type object',
    "model-index: [{name: m, results: [{metrics: []}]}]": '"model-index[0].results[0].dataset" is required',
    RESULT.format("", "{type: a}"): '"model-index[0].results[0].metrics" must be an array',
    RESULT.format("", "[{type: a}]"): '"model-index[0].results[0].metrics[0].value" is required',
    RESULT.format("", "[{value: 1}]"): '"model-index[0].results[0].metrics[0].type" is required',
    RESULT.format("", "[{type: a, value: 1, verified: 1}]"): 'metrics[0].verified" must be a boolean',
    RESULT.format(", revision: 1234567", "[]"): '"model-index[0].results[0].dataset.revision" must be a string',
    "license: mit\nlicense: apache-2.0": "Invalid YAML in README.md: duplicated mapping key",
    "license: [mit": "Invalid YAML in README.md: ",
    "a: &a [1]\nb: *a": "Invalid YAML in README.md: ",
    "a: " + "[" * 5000: "Invalid YAML in README.md: ",
    "- license: mit": '"value" must be of type object',
    "just words": "The YAML metadata of your README.md is invalid.",
}


def test_cards(hub, client, tmp_path):
    (tmp_path / "cards.json").write_text(json.dumps(["base_model: user/a", GOOD_CARD, *BAD_CARDS]))
    out = client(
        """
        class Text(ModelCard):
            # The card as written: ModelCard itself would refuse or repair some before they are sent.
            def __init__(self, content):
                self._content = content
            content = property(lambda self: self._content)
            def __str__(self):
                return self._content

        for front in json.loads(Path("cards.json").read_text()):
            try:
                Text(f"---\\n{front}\\n---\\n# Card\\n").validate()
            except ValueError as error:
                out[front] = str(error)
        good = json.loads(Path("cards.json").read_text())[1].replace("no]", "'no']")  # bare, the client reads a boolean
        out["real"] = ModelCard(f"---\\n{good}\\n---\\n# Card\\n").validate()
        out["dataset"] = refused(DatasetCard("---\\nlicense: mine\\n---\\n").validate)
        DatasetCard("---\\nbase_model: not a model at all\\n---\\n").validate()

        import warnings
        api.create_repo("user/carded")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            card = CommitOperationAdd("README.md", b"# No metadata")
            api.create_commit("user/carded", [card], commit_message="m")
        out["warned"] = [str(warning.message) for warning in caught]
        try:
            card = CommitOperationAdd("README.md", b"---\\nlicense: mine\\ntags: x\\n---\\n")
            api.create_commit("user/carded", [card], commit_message="m")
        except ValueError as error:
            out["commit"] = str(error)
        """
    )
    assert out.pop("real") is None
    assert out.pop("dataset") == ["ValueError", None]
    assert out.pop("warned") == [
        "Warnings while validating metadata in README.md:\n- empty or missing yaml metadata in repo card"
    ]
    commit = out.pop("commit")
    assert '- "license" must be one of [' in commit
    assert '- "tags" must be an array' in commit
    assert out.keys() == BAD_CARDS.keys()
    for front, complaint in BAD_CARDS.items():
        assert complaint in out[front], front


def test_a_hostile_card_does_not_hide_the_model(hub):
    hub.create("user/odd")
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    for front in (bomb, "2020-01-01: day", "? [a]\n: b", "a: " + "[" * 5000, "!!python/object:os.system {}", "\x00"):
        hub.commit("user/odd", {"README.md": f"---\n{front}\n---\n".encode()})
        status, _, body = raw(hub, "GET", "/api/models/user/odd")
        assert (status, json.loads(body)["cardData"]) == (200, {})
    hub.commit("user/odd", {"README.md": b"---\ndate: 2020-01-01\nlicense: mit\n---\n"})
    card = json.loads(raw(hub, "GET", "/api/models/user/odd")[2])["cardData"]
    assert card == {"date": "2020-01-01", "license": "mit"}


def test_failures(hub, client):
    hub.create("user/failing")
    big = WEIGHTS * 4
    hub.commit("user/failing", {"model.safetensors": big, "a.txt": b"a", "b.txt": b"b"})
    hub.fail("GET /api/models/user/failing$", status=503, first=2, times=2)
    hub.fail("GET .*/model.safetensors$", drop_after=12_000_000)
    hub.fail("GET .*/a.txt$", status=429, headers={"Retry-After": "0"})
    hub.fail("HEAD .*/b.txt$", drop_after=0)
    hub.fail("GET .*/b.txt$", status=500)
    hub.fail("/auth-check$", delay=60)
    hub.fail("PUT ", drop_after=1_000_000)
    hub.fail("POST .*/commit/main$", drop_after=10, first=2)
    hub.fail("POST .*/commit/main$", drop_request=True, first=3)
    hub.fail("tree", status=404, times=None)
    out = client(
        """
        out["info"] = [refused(api.model_info, "user/failing") for _ in range(4)]
        path = Path(hf_hub_download("user/failing", "model.safetensors"))
        out["resumed"] = path.read_bytes() == bytes(range(256)) * 80_000
        out["limited"] = Path(hf_hub_download("user/failing", "a.txt")).read_text()
        out["head"] = refused(hf_hub_download, "user/failing", "b.txt")
        out["get"] = [refused(hf_hub_download, "user/failing", "b.txt") for _ in range(2)]

        import httpx2
        try:
            httpx2.get(f"{api.endpoint}/api/models/user/failing/auth-check", timeout=0.5)
        except httpx2.ReadTimeout:
            out["slow"] = True

        def commit(name):
            return api.create_commit("user/failing", [CommitOperationAdd(name, name.encode())], commit_message=name)
        out["commits"] = [refused(commit, name) for name in ("c.txt", "d.txt", "e.txt", "f.txt")]
        api.create_commit("user/failing", [CommitOperationAdd("g.bin", os.urandom(5_000_000))], commit_message="g")
        out["tree"] = [refused(lambda: list(api.list_repo_tree("user/failing"))) for _ in range(2)]
        """
    )
    dropped = ["RemoteProtocolError", None]
    fine = "not refused"
    assert out["info"] == [fine, ["HfHubHTTPError", 503], ["HfHubHTTPError", 503], fine]
    assert out["resumed"]
    assert [r.range for r in hub.requests if r.method == "GET" and "safetensors" in r.path] == [None, "bytes=10485760-"]
    assert out["limited"] == "a"
    assert out["head"] == dropped
    assert out["get"] == [["HfHubHTTPError", 500], fine]
    assert out["slow"]
    assert out["commits"] == [fine, dropped, dropped, fine]
    assert [message for _, message in hub.commits("user/failing")][:4] == ["g", "f.txt", "d.txt", "c.txt"]
    assert sum(r.method == "PUT" for r in hub.requests) == 2
    assert out["tree"] == [["HfHubHTTPError", 404]] * 2

    hub.clear()
    assert hub.requests == []
    assert raw(hub, "GET", "/api/models/user/failing/tree/main?recursive=1")[0] == 200
    assert hub.requests == [Request("GET", "/api/models/user/failing/tree/main?recursive=1", None)]


def operation(key: str, **value: object) -> bytes:
    return json.dumps({"key": key, "value": value}).encode() + b"\n"


def test_hostile_requests_change_nothing(hub):
    hub.create("user/safe")
    commits = hub.commits("user/safe")
    known = {path.name for path in hub.store.blobs.iterdir()} | {sha256(b"x").hexdigest()}
    header, auth = operation("header", summary="m"), {"Authorization": "Bearer hf_user"}

    def commit(*lines: bytes) -> int:
        return raw(hub, "POST", "/api/models/user/safe/commit/main", header + b"".join(lines), **auth)[0]

    for path in (
        "../x",
        "/etc/x",
        "a/../../x",
        "a//x",
        ".git/config",
        "a/.git/x",
        "a\\..\\x",
        "x\n",
        "",
        ".",
        "x" * 2000,
    ):
        assert commit(operation("file", path=path, content="eA==", encoding="base64")) == 400, path
    for line in (
        operation("file", path="x", content="not base64!"),
        operation("lfsFile", path="x.bin", oid="0" * 64, size=1),
        operation("lfsFile", path="x.bin", oid="../../x"),
        operation("symlink", path="x"),
        b"not json\n",
        b"[]\n",
    ):
        assert commit(line) == 400, line
    assert raw(hub, "POST", "/api/models/user/safe/commit/main", b"", **auth)[0] == 400
    half = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=30)
    half.putrequest("POST", "/api/models/user/safe/commit/main")
    for name, value in {**auth, "Content-Length": "1000"}.items():
        half.putheader(name, value)
    half.endheaders(header + operation("file", path="x", content="eA==", encoding="base64"))
    half.sock.shutdown(socket.SHUT_WR)
    assert half.sock.recv(1) == b"", "an upload that breaks off between two lines is no commit"
    half.close()
    for name in ("../up/x", "user/..", "user/a/b", "user/.git", "user/x.git", "user/a--b"):
        namespace, _, repo = name.partition("/")
        body = json.dumps({"name": repo, "organization": namespace if namespace == "user" else None}).encode()
        assert raw(hub, "POST", "/api/repos/create", body, **auth)[0] == 400, name
    for path in ("..%2F..%2Fetc%2Fpasswd", "../../../../etc/passwd", "%2Fetc%2Fpasswd", "blobs"):
        assert raw(hub, "GET", f"/user/safe/resolve/main/{path}")[0] == 404
    assert raw(hub, "GET", "/../../etc/passwd")[0] == raw(hub, "GET", "//etc/passwd")[0] == 404

    def batch(oid: str):
        body = json.dumps({"objects": [{"oid": oid, "size": 3}], "ref": {"name": "main"}}).encode()
        return raw(hub, "POST", "/user/safe.git/info/lfs/objects/batch", body, **auth)

    assert batch("../../x")[0] == 422
    oid = sha256(b"abc").hexdigest()
    href = urlsplit(json.loads(batch(oid)[2])["objects"][0]["actions"]["upload"]["href"]).path
    assert raw(hub, "PUT", "/lfs-upload/made-up", b"abc")[0] == 403
    for wrong in (b"abd", b"ab", b""):
        assert raw(hub, "PUT", href, wrong)[0] == 400
    verify = json.dumps({"oid": oid, "size": 3}).encode()
    assert raw(hub, "POST", "/user/safe.git/info/lfs/verify", verify, **auth)[0] == 404
    assert hub.commits("user/safe") == commits
    assert hub.files("user/safe").keys() == {".gitattributes"}
    assert {path.name for path in hub.store.blobs.iterdir()} <= known
    assert not list(hub.store.incoming.iterdir())
    assert {path.name for path in hub.store.blobs.parent.iterdir()} == {"blobs", "incoming"}


def test_one_connection_carries_many_requests(hub):
    hub.create("user/alive")
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc)
    auth = {"Authorization": "Bearer hf_user"}

    def ask(method: str, path: str, body: object = None) -> tuple[int, bytes]:
        connection.request(method, path, body, headers=auth)
        reply = connection.getresponse()
        return reply.status, reply.read()

    # Refused before anybody reads the body: it must not be taken for the next request.
    assert ask("POST", "/api/models/user/none/commit/main", b"GET / HTTP/1.1\r\n\r\n" * 100_000)[0] == 404
    used = connection.sock
    assert ask("GET", "/api/whoami-v2")[0] == 200
    lines = [operation("header", summary="m"), operation("file", path="x", content="eHl6", encoding="base64")]
    pieces = b"".join(lines)
    assert (
        ask("POST", "/api/models/user/alive/commit/main", (pieces[i : i + 7] for i in range(0, len(pieces), 7)))[0]
        == 200
    )
    assert ask("POST", "/api/models/user/none/commit/main", iter([b"abc", b"defg"]))[0] == 404
    assert ask("HEAD", "/user/alive/resolve/main/x") == (200, b"")
    assert ask("GET", "/user/alive/resolve/main/x") == (200, b"xyz")
    assert connection.sock is used
    connection.close()


def test_large_files_are_never_held_in_memory(hub, tmp_path):
    hub.create("user/large")
    content = os.urandom(1 << 20) * 64
    (tmp_path / "large.bin").write_bytes(content)
    size, oid = len(content), sha256(content).hexdigest()
    del content
    tracemalloc.start()
    hub.commit("user/large", {"direct.bin": tmp_path / "large.bin"})
    hub.store.repos["model", "user/large"].uploaded.clear()
    body = json.dumps({"objects": [{"oid": oid, "size": size}], "ref": {"name": "main"}}).encode()
    batch = raw(hub, "POST", "/user/large.git/info/lfs/objects/batch", body, Authorization="Bearer hf_user")[2]
    href = urlsplit(json.loads(batch)["objects"][0]["actions"]["upload"]["href"]).path
    with (tmp_path / "large.bin").open("rb") as file:
        assert raw(hub, "PUT", href, file, Content_Length=str(size))[0] == 200
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc)
    connection.request("GET", "/user/large/resolve/main/direct.bin")
    reply, digest = connection.getresponse(), sha256()
    while piece := reply.read(1 << 16):
        digest.update(piece)
    connection.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert digest.hexdigest() == oid
    assert peak < 8 << 20


def test_only_the_loopback_interface_and_only_while_it_runs(tmp_path):
    with EmbeddedHub(tmp_path) as hub:
        hub.create("user/there")
        hub.fail("GET .*/commits/main$", delay=3600)
        port = urlsplit(hub.url).port
        with pytest.raises(ConnectionRefusedError):
            http.client.HTTPConnection("127.0.0.2", port).connect()
        idle, waiting = (http.client.HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(2))
        idle.request("GET", "/api/models/user/there")
        assert idle.getresponse().read()
        waiting.request("GET", "/api/models/user/there/commits/main")
        while len(hub.requests) < 2:
            time.sleep(0.01)
    assert idle.sock.recv(1) == b""
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        waiting.getresponse()
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", port).connect()
    idle.close()
    waiting.close()


def test_the_same_history_has_the_same_commits(tmp_path):
    heads = []
    for name in ("a", "b"):
        with EmbeddedHub(tmp_path / name) as hub:
            hub.create("user/same")
            hub.commit("user/same", {"x": b"1", "y.bin": b"2"})
            heads.append(hub.commits("user/same"))
            assert hub.commit("user/same", {"x": b"other"}) != hub.commit("user/same", {"x": b"other"})
    assert heads[0] == heads[1]


def test_transformers_loads_from_it_and_pushes_to_it(hub, client, tmp_path):
    hub.create("user/tower")
    folder = write_tower(tmp_path / "tower", 1)
    commit = hub.commit("user/tower", {path.name: path for path in folder.iterdir()})
    hub.commit("user/tower", {"model.safetensors": b"broken"})
    out = client(
        f"""
        model = CLIPVisionModel.from_pretrained("user/tower", revision="{commit}")
        model.push_to_hub("user/pushed", private=True)
        again = CLIPVisionModel.from_pretrained("user/pushed")
        same = zip(model.parameters(), again.parameters(), strict=True)
        out = {{"same": all((a == b).all().item() for a, b in same), "size": model.config.hidden_size}}
        """,
        prelude="import json\nfrom transformers import CLIPVisionModel",
    )
    assert out == {"same": True, "size": 32}
    assert {"config.json", "model.safetensors"} <= hub.files("user/pushed").keys()
