"""Without a network: what is pinned by a commit and in the cache needs no request, and the rest is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from clips import write_clip, write_images
from running import TOKEN, Commands, ended
from transformers import CLIPModel

from hfcart.demo.embedded_hub.hub import EmbeddedHub

NOWHERE = "http://127.0.0.1:9"  # nothing listens there
NAMES = ["red", "green", "blue"]


@pytest.fixture
def world(hub: EmbeddedHub, tmp_path: Path) -> dict[str, str]:
    """Three towers, the CLIP model they come from, and images with a task card; refs at the commit, by short names."""
    clip = write_clip(tmp_path / "src" / "clip", 1)
    model = CLIPModel.from_pretrained(clip).vision_model
    for i in (1, 2, 3):
        folder = tmp_path / "src" / f"t{i}"
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
        model.save_pretrained(folder)
        (folder / "README.md").write_text(f"---\nlicense: mit\nbase_model: user/clip\n---\n# {i}\n")
    refs = {}
    for folder in sorted((tmp_path / "src").iterdir()):
        hub.create(f"user/{folder.name}")
        commit = hub.commit(f"user/{folder.name}", {path.name: path for path in folder.iterdir()})
        refs[folder.name] = f"user/{folder.name}@{commit}"
    hub.create("user/images", "dataset")
    files = {f"data/{split}-00000-of-00001.parquet": write_images(n, 3, n, names=NAMES) for split, n in
             (("test", 12), ("train", 40))}  # fmt: skip
    hub.commit("user/images", files | {"README.md": b"# Images\n"}, repo_type="dataset")
    task = {"id": "images", "title": "Images", "dataset": {"repo": "user/images", "train_split": "train"}}
    task |= {"templates": ["a {}."], "classnames": NAMES}
    (tmp_path / "images.yaml").write_text(json.dumps(task))
    return refs


def kept(folder: Path) -> dict[str, bytes]:
    """What a command wrote, but for its journals."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".log", ".jsonl")]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    assert found
    return found


def test_the_same_bytes_without_a_request(
    hub: EmbeddedHub, world: dict[str, str], commands: Commands, tmp_path: Path
) -> None:
    towers, measure = [world["t1"], world["t2"], world["t3"]], ["--tasks", "images.yaml", "--no-streaming"]

    def lines(to: str) -> list[list[str]]:
        return [
            ["merge", *towers, "--base", world["clip"], "--method", "ties", "--out", f"{to}/merge"],
            ["merge", *towers, "--stream", "--out", f"{to}/stream"],
            ["verify", "online/merge"],
            ["eval", world["t1"], "--base", world["clip"], *measure, "--out", f"{to}/eval"],
            ["sweep", *towers, "--base", world["clip"], *measure, "--rank", "0.5", "--scale", "1",
             "--out", f"{to}/sweep"],
            ["finetune", world["clip"], "--task", "images.yaml", "--steps", "2", "--batch-size", "4", "--warmup", "0",
             "--out", f"{to}/finetune"],
        ]  # fmt: skip

    online = commands(hub, lines("online"))
    assert [done.returncode for done in online] == [0] * len(online), [done.stderr for done in online]
    hub.clear()
    offline = commands(hub, lines("offline"), HF_HUB_OFFLINE="1")
    away = commands(hub, lines("away")[1:4], HF_ENDPOINT=NOWHERE)
    assert [done.returncode for done in (*offline, *away)] == [0] * 9, [d.stderr for d in (*offline, *away)]
    assert not hub.requests
    for name in ("merge", "stream", "eval", "sweep", "finetune"):
        assert kept(tmp_path / "offline" / name) == kept(tmp_path / "online" / name), name
        if name in ("stream", "eval"):
            assert kept(tmp_path / "away" / name) == kept(tmp_path / "online" / name), name
    # A card names a branch: what it meant last is taken, and that is said.
    assert all("user/images is taken at" in " ".join(done.stderr.split()) for done in (*offline[3:], away[2]))
    assert all("trying again" not in done.stderr for done in away[:2])  # no request, hence no waiting


def test_what_is_not_there_is_named(hub: EmbeddedHub, world: dict[str, str], commands: Commands) -> None:
    first = world["t1"].partition("@")[2]
    assert commands(hub, [["merge", world["t1"], world["t2"], "--method", "average", "--dry-run"]])[0].returncode == 0
    hub.clear()
    measure = ["--base", world["clip"], "--tasks", "images.yaml"]
    lines = [
        ["merge", "user/t1", world["t2"], "--method", "average"],
        ["merge", world["t1"], world["t3"], "--method", "average"],
        ["merge", world["t1"], world["t2"], "--method", "average"],
        ["eval", world["t1"], *measure, "--no-streaming"],
    ]
    done = commands(hub, lines, HF_HUB_OFFLINE="1")
    assert [one.returncode for one in done] == [1] * 4 and not hub.requests
    said = [" ".join(one.stderr.split()) for one in done]
    assert f"user/t1@{first}" in said[0] and "HF_HUB_OFFLINE is set" in said[0]
    assert f"hf download user/t3 --revision {world['t3'].partition('@')[2]}" in said[1]
    assert all(f"hf download user/t1 model.safetensors --revision {first}" in text for text in said[2:])
    assert all("Traceback" not in text for text in said)


# Root may write whatever the mode says, but for this: PR_CAPBSET_DROP of CAP_DAC_OVERRIDE, for the program run next.
WITHOUT_RIGHTS = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 1)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="rights of root are taken away in Linux's way")
def test_what_hf_download_left_is_enough_and_need_not_be_writable(
    hub: EmbeddedHub, world: dict[str, str], clean_env: dict[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "hf-home"
    env = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN}
    hf = str(Path(sys.executable).with_name("hf"))
    for name in ("t1", "t2"):
        repo, _, commit = world[name].partition("@")
        done = ended(
            [hf, "download", repo, "--revision", commit, "-q"],
            env=env,
        )
        assert done.returncode == 0, done.stderr
    hub.clear()
    spoilt = next((home / "hub" / "models--user--t2").glob("snapshots/*/config.json")).resolve()
    code = f"""
import json, os, sys
from hfcart import hub
from hfcart.commands.merge import merge_folder
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import make
assert not os.access({str(home)!r}, os.W_OK)
towers = {[world["t1"], world["t2"]]!r}
notes = []
class Heard(Progress):
    def note(self, text):
        notes.append(text)
merge_folder(make({{"sources": towers, "method": "average", "out": sys.argv[1]}}), Heard())
print(json.dumps([hub.read_small(hub.resolve(towers[1]), "config.json").decode(), notes]))
"""

    def run(out: str, **more: str) -> list:
        command = [sys.executable, "-c", WITHOUT_RIGHTS, "-c", code, out]
        done = ended(command, cwd=tmp_path, env=env | more)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    try:
        ended(["chmod", "-R", "a-w", home])
        assert run("m", HF_HUB_OFFLINE="1")[1] == [] and not hub.requests
        ended(["chmod", "-R", "u+w", home])
        good = spoilt.read_bytes()
        spoilt.write_bytes(good[:-1] + b" ")
        ended(["chmod", "-R", "a-w", home])
        config, notes = run("n")  # the spoilt file can neither be dropped nor replaced: a good one serves this run
        assert config.encode() == good and spoilt.read_bytes() != good
        assert "config.json of user/t2 is kept for this run only" in " ".join(notes)
    finally:
        ended(["chmod", "-R", "u+w", home])
    assert kept(tmp_path / "m") == kept(tmp_path / "n")
