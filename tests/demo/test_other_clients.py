"""The embedded Hub, asked by clients that hfcart does not use itself: `hf`, and the JavaScript client."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, TOKEN, ended
from safetensors.torch import load
from towers import write_tower

from hfcart.demo.embedded_hub.hub import EmbeddedHub

NPM, NPM_CLIENT = ROOT / "tests" / "npm", ROOT / ".npm-client"
CARD = b"---\nlicense: mit\ntags: [clip]\npipeline_tag: image-feature-extraction\n---\n# A tower\n"
Hf = Callable[..., str]


@pytest.fixture
def hub(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[EmbeddedHub]:
    """A Hub with repos of every kind, and listings of two entries a page."""
    with EmbeddedHub(tmp_path / "content", page_size=2) as served:
        served.add_user("user", token=TOKEN, orgs=("org",))
        served.create("user/read")
        tower = write_tower(tmp_path / "tower", 1)
        files: dict[str, Any] = {path.name: path for path in tower.iterdir()}
        first = served.commit("user/read", files | {"README.md": CARD, "deep/a.txt": b"a"}, message="tower")
        served.tag("user/read", "v1", first)
        served.commit("user/read", {"deep/a.txt": b"changed"}, message="change")
        for name in ("user/plain", "org/theirs", "other/theirs", "user/hidden", "other/hidden"):
            served.create(name, private=name.endswith("hidden"))
        served.create("user/images", repo_type="dataset")
        served.create("user/space", repo_type="space")
        served.clear()
        yield served
    assert "Traceback" not in capfd.readouterr().err, "the server failed"


@pytest.fixture
def hf(hub: EmbeddedHub, clean_env: dict[str, str], tmp_path: Path) -> Hf:
    """`hf`, as it is installed; stdout comes back."""
    env = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN, "NO_COLOR": "1"}
    env |= {"HF_HUB_DISABLE_UPDATE_CHECK": "1", "COLUMNS": "400"}

    def run(*args: str | Path, fails: str = "") -> str:
        command = [Path(sys.executable).with_name("hf"), *map(str, args)]
        done = ended(command, cwd=tmp_path, env=env)
        assert (fails in done.stderr + done.stdout) if fails else done.returncode == 0, done.stderr + done.stdout
        assert bool(done.returncode) == bool(fails)
        return done.stdout

    return run


def test_hf_reads(hub: EmbeddedHub, hf: Hf, tmp_path: Path) -> None:
    assert "user" in hf("auth", "whoami") and "org" in hf("auth", "whoami")
    listed = json.loads(hf("models", "ls", "--format", "json"))
    assert [model["id"] for model in listed] == ["org/theirs", "other/theirs", "user/hidden", "user/plain", "user/read"]
    assert [r for r in hub.requests if "/api/models?" in r.path and "cursor=" in r.path], "one page"
    for search in (["--search", "READ"], ["--filter", "clip"], ["--pipeline-tag", "image-feature-extraction"]):
        found = json.loads(hf("models", "ls", "--author", "user", *search, "--format", "json"))
        assert [model["id"] for model in found] == ["user/read"], search
    assert json.loads(hf("models", "ls", "--apps", "vllm", "--format", "json")) == []
    assert json.loads(hf("datasets", "ls", "--format", "json"))[0]["id"] == "user/images"
    assert json.loads(hf("spaces", "ls", "--format", "json"))[0]["id"] == "user/space"
    info = json.loads(hf("models", "info", "user/read", "--format", "json"))
    assert info["sha"] == hub.head("user/read") and "deep/a.txt" in json.dumps(info)
    assert "deep/a.txt" in hf("models", "ls", "user/read", "-R") and "# A tower" in hf("models", "card", "user/read")
    hf("models", "info", "user/none", fails="not found")
    repos = json.loads(hf("repos", "ls", "--format", "json"))
    assert {repo["id"] for repo in repos} >= {"user/read", "user/images", "user/space"}
    hf("download", "user/read", "config.json")
    assert "user/read" in hf("cache", "ls")
    hf("cache", "verify", "user/read")
    hf("download", "user/read", "--local-dir", "here", "--revision", "v1")
    assert (tmp_path / "here" / "deep" / "a.txt").read_bytes() == b"a"
    hf("cp", "hf://user/read/deep/a.txt", "copy.txt")
    assert (tmp_path / "copy.txt").read_bytes() == b"changed"


def test_hf_writes_and_takes_away(hub: EmbeddedHub, hf: Hf, tmp_path: Path) -> None:
    hf("repos", "create", "user/made", "--private")
    assert hub.store.repos["model", "user/made"].private
    hf("repos", "create", "user/made", fails="409")
    (tmp_path / "folder").mkdir()
    for name, content in (("a.txt", b"a"), ("b.bin", bytes(1000)), ("c.json", b"{}")):
        (tmp_path / "folder" / name).write_bytes(content)
    hf("upload", "user/made", "folder", ".", "--commit-message", "all of it")
    hf("upload", "user/made", "folder/a.txt", "deep/a.txt")
    assert sorted(hub.files("user/made")) == [".gitattributes", "a.txt", "b.bin", "c.json", "deep/a.txt"]
    hf("repos", "branch", "create", "user/made", "dev")
    hf("repos", "tag", "create", "user/made", "v1")
    assert "v1" in hf("repos", "tag", "list", "user/made")
    hf("repos", "tag", "delete", "user/made", "v1", "--yes")
    hf("repos", "branch", "delete", "user/made", "dev")
    assert list(hub.store.repos["model", "user/made"].refs) == ["refs/heads/main"]
    hf("repos", "delete-files", "user/made", "*.json", "deep/")
    assert sorted(hub.files("user/made")) == [".gitattributes", "a.txt", "b.bin"]
    hf("repos", "settings", "user/made", "--public", "--gated", "auto")
    assert (hub.store.repos["model", "user/made"].private, hub.store.repos["model", "user/made"].gated) == (
        False,
        "auto",
    )
    hf("repos", "duplicate", "user/made", "org/copy")
    assert hub.files("org/copy") == hub.files("user/made")
    hf("repos", "move", "user/made", "org/moved")
    assert not hub.exists("user/made") and hub.files("org/moved") == hub.files("org/copy")
    hf("download", "user/made", "a.txt")  # the old name leads there
    hf("repos", "delete", "org/moved", "--yes")
    assert not hub.exists("org/moved")
    hf("repos", "delete", "other/theirs", "--yes", fails="403")
    hf("repos", "delete", "other/hidden", "--yes", fails="Repository not found")
    assert hub.exists("other/theirs") and hub.exists("other/hidden")


@pytest.mark.skipif(shutil.which("node") is None and not os.environ.get("CI"), reason="there is no node here")
def test_the_javascript_client(hub: EmbeddedHub, tmp_path: Path) -> None:
    modules = NPM_CLIENT / "node_modules"
    assert modules.is_dir(), "set it up with: make .npm-client/.ready"
    (tmp_path / "node_modules").symlink_to(modules)
    shutil.copy(NPM / "calls.mjs", tmp_path)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    env["TMPDIR"] = str(tmp_path)
    done = ended(["node", "calls.mjs"], cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout.splitlines()[-1])  # the client prints what it downloads
    weights = hub.files("user/read")["model.safetensors"]
    digest, head, first = sha256(weights).hexdigest(), hub.head("user/read"), hub.head("user/read", "v1")
    visible = ["org/theirs", "other/theirs", "user/hidden", "user/plain", "user/read"]
    assert out["whoami"] == ["user", "user"] and out["models"] == visible and not out["anonymous"]
    assert out["searched"] == ["user/read"] and out["tagged"] == [["user/read", "user", head, False]]
    assert (out["first"], out["served"]) == (1, 0)
    assert (out["datasets"], out["spaces"], out["dataset"]) == (["user/images"], ["user/space"], "user/images")
    files = sorted(hub.files("user/read"))
    assert out["info"] == ["user/read", head, files, "mit"] and out["older"] == first != head
    assert out["exists"] == [True, False] and out["access"] == ["not refused", 401]
    assert [row[0] for row in out["files"] if row[1] == "file"] == files
    assert ["deep", "directory", 0] in out["files"] and ["model.safetensors", "file", len(weights)] in out["files"]
    assert out["folder"] == [["deep/a.txt", "change"]]
    assert out["commits"] == [["change", "user"], ["tower", "user"], ["initial commit", "user"]] and out["count"] == 3
    assert out["there"] == [True, False] and out["missing"] is None
    assert out["weights"] == [len(weights), f'"{digest}"', True] and out["hash"] == digest
    assert out["pointer"][1:3] == [f"oid sha256:{digest}", f"size {len(weights)}"]
    assert json.loads(out["config"])["model_type"] == "clip_vision_model"
    assert out["paths"] == [["model.safetensors", "file", digest, "tower"], ["deep", "directory", None, "change"]]
    assert out["parsed"] == [False, {"F32": sum(t.numel() for t in load(weights).values())}]
    assert out["snapshot"] == "changed"
    assert [r.method for r in hub.requests if "/raw/main/config.json" in r.path] == ["HEAD"]
    assert [r for r in hub.requests if "/revision/HEAD" in r.path]

    made = hub.store.repos["model", "user/made"]
    assert out["created"] == {"repoUrl": f"{hub.url}/user/made", "id": "user/made"} and made.private
    assert out["taken"] == 409 and out["foreign"] == [403, 403]
    assert out["left"] == [".gitattributes", "b", "b/c.txt", "first.txt", "w.safetensors"]
    assert made.at("main").files["w.safetensors"].lfs and "refs/heads/gone" not in made.refs
    assert out["committed"] == hub.head("user/made", "dev") and "a.txt" not in hub.files("user/made", "dev")
    assert out["pulled"] == f"{hub.url}/user/made/discussions/1"
    assert hub.files("user/made", "dev")["e.txt"] == b"e"
    assert out["data"] == "1,2" and out["deleted"] is False and not hub.exists("user/made-data", repo_type="dataset")
