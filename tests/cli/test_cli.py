"""Every command as a user runs it: a real process, a real server; what is printed where, and the exit code."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from running import TOKEN, Run, ended
from safetensors.torch import load_file, save_file
from towers import TINY, weights, write_tower

from hfcart import __version__
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.methods import METHODS

COMMANDS = ("merge", "eval", "sweep", "compare", "finetune", "tasks", "push", "verify", "methods", "demo")


def upload(hub: EmbeddedHub, repo: str, folder: Path, **kwargs: object) -> str:
    if repo not in getattr(hub, "_made", set()):
        hub.create(repo, **kwargs)
    return hub.commit(repo, {p.name: p for p in sorted(folder.iterdir())})


@pytest.fixture
def three(hub: EmbeddedHub, tmp_path: Path) -> list[str]:
    """Three towers on the Hub, in the three forms."""
    for i, form in enumerate(("prefixed", "flat", "full"), start=1):
        card = f"---\nlicense: mit\nbase_model: user/base\ndatasets: [user/data{i}]\n---\n"
        upload(hub, f"user/t{i}", write_tower(tmp_path / "src" / f"t{i}", i, form=form, card=card))
    return ["user/t1", "user/t2", "user/t3"]


def fails(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """A good failure: the code, the sentence, a next step, no traceback, no token, nothing on stdout."""
    text = " ".join(done.stderr.split())
    assert done.returncode == code, done.stderr
    assert "Error: " in text and "Traceback" not in text
    assert TOKEN not in done.stderr + done.stdout
    for part in parts:
        assert part in text, text
    assert "→ " in text, text


# The whole way


def test_merge_push_verify_and_load(hub: EmbeddedHub, hfcart: Run, three: list[str], tmp_path: Path) -> None:
    pinned = hub.head("user/t1")
    hub.tag("user/t1", "v1", pinned)
    upload_later = write_tower(tmp_path / "later", 9)
    hub.commit("user/t1", {"model.safetensors": upload_later / "model.safetensors"})
    hub.clear()
    done = hfcart("merge", "user/t1@v1", *three[1:], "--rank", "3", "--push-to", "user/merged", hub=hub)
    assert done.returncode == 0, done.stderr
    assert "verify   hfcart verify user/merged" in done.stdout and f"online   {hub.url}/user/merged" in done.stdout
    posts = [r.path for r in hub.requests if r.method == "POST" and "/commit/" in r.path]
    assert len(posts) == 1
    resolved = [r.path for r in hub.requests if re.search(r"/api/models/user/t1(/revision/v1)?(\?|$)", r.path)]
    assert len(resolved) == 1  # once; everything after uses the commit

    record = json.loads((tmp_path / "merged" / "hfcart.json").read_text())
    commits = {s["repo"]: s["commit"] for s in record["sources"]}
    assert commits == {"user/t1": pinned, "user/t2": hub.head("user/t2"), "user/t3": hub.head("user/t3")}
    online = hub.files("user/merged", "main")
    local = {
        str(p.relative_to(tmp_path / "merged")): p.read_bytes() for p in (tmp_path / "merged").rglob("*") if p.is_file()
    }
    assert {k: v for k, v in online.items() if k != ".gitattributes"} == local
    matter = yaml.safe_load(local["README.md"].decode().split("---")[1])
    assert matter["base_model"] == [s["repo"] for s in record["sources"]]
    assert matter["license"] == "mit" and matter["datasets"] == ["user/data1", "user/data2", "user/data3"]

    checked = hfcart("verify", "user/merged", hub=hub)
    assert checked.returncode == 0, checked.stderr
    assert "Identical: all 39 tensors of user/merged" in checked.stdout

    expected = hfcart("merge", "src/t1", "src/t2", "src/t3", "--rank", "3", "--out", "local", hub=hub)
    assert expected.returncode == 0, expected.stderr
    assert (tmp_path / "local" / "model.safetensors").read_bytes() == local["model.safetensors"]


def test_stream_gives_the_same_bytes_and_keeps_no_copy(
    hub: EmbeddedHub, hfcart: Run, three: list[str], tmp_path: Path
) -> None:
    assert hfcart("merge", *three, "--out", "plain", hub=hub).returncode == 0
    home = {"HF_HUB_CACHE": str(tmp_path / "other-cache")}
    hub.clear()
    done = hfcart("merge", *three, "--stream", "--out", "streamed", hub=hub, **home)
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "hfcart.json", "recipe.yaml", "README.md"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "streamed" / name).read_bytes()
    kept = [p for p in (tmp_path / "other-cache").rglob("*") if p.is_file() and p.stat().st_size > 20_000]
    assert not kept
    assert all(r.range for r in hub.requests if r.method == "GET" and r.path.endswith(".safetensors"))


def test_nothing_of_the_weights_is_read_before_the_check(
    hub: EmbeddedHub, hfcart: Run, three: list[str], tmp_path: Path
) -> None:
    large = {**TINY, "hidden_size": 128, "intermediate_size": 512}
    upload(hub, "user/wide", write_tower(tmp_path / "src" / "wide", 4, large))
    hub.clear()
    done = hfcart("merge", *three, "user/wide", hub=hub)
    fails(done, 1, "1 of 4 towers differ from the rest in architecture: user/wide", "Nothing was downloaded")
    assert "user/wide config.json: hidden_size 32 128" in " ".join(done.stderr.split())
    # Of each file its length field and its header were read, twice, and not one byte behind them.
    ranges: dict[str, list[str | None]] = {}
    for request in hub.requests:
        if request.method == "GET" and request.path.endswith(".safetensors"):
            ranges.setdefault(request.path.split("/")[2], []).append(request.range)
    assert sorted(ranges) == ["t1", "t2", "t3", "wide"]
    for name, asked in ranges.items():
        length = int.from_bytes((tmp_path / "src" / name / "model.safetensors").read_bytes()[:8], "little")
        assert asked == ["bytes=0-7", f"bytes=8-{7 + length}", f"bytes=0-{7 + length}"]


def test_dry_run_shows_the_plan_and_writes_nothing(
    hub: EmbeddedHub, hfcart: Run, three: list[str], tmp_path: Path
) -> None:
    before = {p.name for p in tmp_path.iterdir()}
    done = hfcart("merge", *three, "--dry-run", "--rank", "0.1", hub=hub)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for part in (f"user/t1 {hub.head('user/t1')[:12]} model.safetensors F32", "39 (23,552 parameters)",
                 "12 matrices of each source", "to download", "98.5 kB in merged"):  # fmt: skip
        assert part in text
    assert {p.name for p in tmp_path.iterdir()} - before <= {"hf-home"}


def test_base_is_taken_from_the_cards(hub: EmbeddedHub, hfcart: Run, three: list[str], tmp_path: Path) -> None:
    upload(hub, "user/base", write_tower(tmp_path / "src" / "base", 0))
    done = hfcart("merge", *three, "--method", "task_arithmetic", "--out", "m", hub=hub)
    assert done.returncode == 0, done.stderr
    assert "Base model: user/base" in done.stderr
    recipe = yaml.safe_load((tmp_path / "m" / "recipe.yaml").read_text())
    assert recipe["base"] == f"user/base@{hub.head('user/base')}"
    zero, found = weights(0), load_file(tmp_path / "m" / "model.safetensors")
    name = "vision_model.pre_layrnorm.bias"
    expected = zero[name] + 0.3 * sum(weights(i)[name] - zero[name] for i in (1, 2, 3))
    assert torch.allclose(found[name], expected, atol=1e-6)


def test_json_is_alone_on_stdout(hfcart: Run, tmp_path: Path) -> None:
    for i in (1, 2):
        write_tower(tmp_path / f"t{i}", i)
    done = hfcart("merge", "t1", "t2", "--json")
    assert done.stdout == (tmp_path / "merged" / "hfcart.json").read_text()
    assert "Reading headers" in done.stderr


def test_quiet_prints_one_line(hfcart: Run, tmp_path: Path) -> None:
    for i in (1, 2, 3):
        write_tower(tmp_path / f"t{i}", i)
    done = hfcart("merge", "t1", "t2", "t3", "--quiet")
    assert (done.stdout, done.stderr) == ("merged\n", "")


def test_a_recipe_and_the_command_line(hfcart: Run, tmp_path: Path) -> None:
    for i in (1, 2):
        write_tower(tmp_path / f"t{i}", i)
    (tmp_path / "r.yaml").write_text("sources: [t1, t2]\nrank: 0.5\nscale: 2\nout: from-recipe\n")
    assert hfcart("merge", "--recipe", "r.yaml", "--rank", "1", "--quiet").returncode == 0
    written = yaml.safe_load((tmp_path / "from-recipe" / "recipe.yaml").read_text())
    assert (written["rank"], written["scale"]) == (1, 2.0) and isinstance(written["rank"], int)
    (tmp_path / "r.yaml").write_text("sources: [t1, t2]\nrnak: 0.5\n")
    fails(hfcart("merge", "--recipe", "r.yaml"), 2, "unknown field 'rnak'")
    (tmp_path / "r.yaml").write_text("sources: [t1\n")
    fails_without_hint = hfcart("merge", "--recipe", "r.yaml")
    assert fails_without_hint.returncode == 2 and "not valid YAML at line 2" in fails_without_hint.stderr


def test_rank_one_and_rank_one_point_zero(hfcart: Run, tmp_path: Path) -> None:
    for i in (1, 2):
        write_tower(tmp_path / f"t{i}", i)
    for text, kept in (("1", 1), ("1.0", 32)):
        done = hfcart("merge", "t1", "t2", "--rank", text, "--out", f"m{text}", "--json")
        assert {t["rank"] for t in json.loads(done.stdout)["tensors"]} == {None, kept}


# Refusals by the Hub


def test_sources_that_cannot_be_had(hub: EmbeddedHub, hfcart: Run, three: list[str], tmp_path: Path) -> None:
    tower = write_tower(tmp_path / "src" / "x", 5)
    upload(hub, "user/secret", tower, private=True)
    upload(hub, "user/gated", tower, gated=True)
    hub.create("user/bert")
    hub.commit("user/bert", {"config.json": b'{"model_type": "bert"}'})
    fails(hfcart("merge", "user/t1", "user/nope", hub=hub), 1, "user/nope")
    fails(hfcart("merge", "user/t1", "user/secret", hub=hub, token=None), 1, "user/secret", "hf auth login")
    fails(hfcart("merge", "user/t1", "user/gated", hub=hub, token=None), 1, "user/gated", "gated")
    fails(hfcart("merge", "user/t1", "user/t2", hub=hub, token="hf_wrong"), 1, "token")
    fails(hfcart("merge", "user/t1@nope", hub=hub), 1, "user/t1", "nope")
    fails(hfcart("merge", "user/t1", "user/bert", hub=hub), 1, "user/bert is not a CLIP tower", "'bert'")
    assert not list(tmp_path.glob("merged*/*.safetensors"))


def test_a_hub_that_is_down_slow_or_failing(hub: EmbeddedHub, hfcart: Run, three: list[str], tmp_path: Path) -> None:
    fails(hfcart("merge", *three), 1, "cannot connect to 127.0.0.1", "run the same command again")
    hub.fail(r"GET /user/t2/resolve/.*safetensors", status=503, times=2)
    hub.fail(r"GET /api/models/user/t3", status=429, headers={"Retry-After": "0"}, times=1)
    hub.fail(r"GET /user/t1/resolve/.*safetensors", drop_after=300, first=2, times=1)
    hub.fail(r"GET /api/models/user/t1", delay=0.3, times=1)
    done = hfcart("merge", *three, "--out", "m", hub=hub)
    assert done.returncode == 0, done.stderr
    hub.fail(r"GET /user/t2/resolve/.*safetensors", status=500, times=1000)
    cache = {"HF_HUB_CACHE": str(tmp_path / "empty-cache")}
    fails(hfcart("merge", *three, "--out", "n", hub=hub, **cache), 1, "user/t2")
    assert not (tmp_path / "n").exists()


def test_write_access_is_checked_before_the_work(
    hub: EmbeddedHub, hfcart: Run, three: list[str], tmp_path: Path
) -> None:
    hub.create("other/model")
    for target, token in (("other/model", TOKEN), ("other/new", TOKEN), ("user/new", None), ("user/new", "hf_wrong")):
        hub.clear()
        done = hfcart("merge", *three, "--push-to", target, hub=hub, token=token)
        fails(done, 1)
        assert not [r for r in hub.requests if "/resolve/" in r.path]
    upload(hub, "user/mine", write_tower(tmp_path / "src" / "mine", 7))
    fails(hfcart("merge", *three, "--push-to", "user/mine", hub=hub), 1, "--overwrite")


def test_a_failed_push_leaves_the_folder_and_says_how_to_go_on(
    hub: EmbeddedHub, hfcart: Run, three: list[str], tmp_path: Path
) -> None:
    hub.fail(r"POST /api/models/user/merged/commit/", status=500, times=100)
    done = hfcart("merge", *three, "--push-to", "user/merged", hub=hub)
    fails(done, 1, "hfcart push merged --push-to user/merged")
    assert "same command" not in done.stderr  # it would find the folder there
    assert (tmp_path / "merged" / "hfcart.json").exists()
    hub.fail(r"POST /nothing", status=500)
    with_hub_up = EmbeddedHub(tmp_path / "second-hub")
    with with_hub_up as second:
        second.add_user("user", token=TOKEN)
        pushed = hfcart("push", "merged", "--to", "user/merged", hub=second)
        assert pushed.returncode == 0, pushed.stderr
        again = hfcart("push", "merged", "--to", "user/merged", hub=second)
        assert again.returncode == 0, again.stderr
        assert len([c for c in second.commits("user/merged") if "Merge 3 CLIP" in c[1]]) == 1
        weights_file = tmp_path / "merged" / "model.safetensors"
        weights_file.write_bytes(weights_file.read_bytes()[:-4] + b"\0\0\0\0")
        fails(hfcart("push", "merged", "--to", "user/merged", hub=second), 1, "was changed after it was made")
    fails(hfcart("push", "src", "--to", "user/merged"), 1, "not a finished tower")


def test_the_command_that_a_failed_push_prints_works(
    hub: EmbeddedHub, hfcart: Run, three: list[str], tmp_path: Path
) -> None:
    upload(hub, "user/old", write_tower(tmp_path / "src" / "old", 7))
    hub.fail(r"POST /api/models/user/old/commit/", status=500, times=100)
    args = ["--out", "deep/er x", "--push-to", "user/old", "--overwrite"]
    (tmp_path / "deep").mkdir()
    done = hfcart("merge", *three, *args, hub=hub)
    fails(done, 1, "hfcart push 'deep/er x' --push-to user/old --overwrite")
    hub.clear()
    command = shlex.split(next(line for line in done.stderr.splitlines() if "hfcart push" in line).split("hfcart ")[-1])
    again = hfcart(*command, hub=hub)
    assert again.returncode == 0, again.stderr


def test_push_names_the_repo_on_the_card_and_sends_nothing_else(
    hub: EmbeddedHub, hfcart: Run, three: list[str], tmp_path: Path
) -> None:
    assert hfcart("merge", *three, "--out", "m", hub=hub).returncode == 0
    assert 'tower = "."' in (tmp_path / "m" / "README.md").read_text()
    (tmp_path / "m" / "secrets.txt").write_text("mine")
    done = hfcart("push", "m", "--to", "user/pub", hub=hub)
    assert done.returncode == 0, done.stderr
    assert "Not published, for hfcart did not write it: secrets.txt." in done.stderr
    online = hub.files("user/pub", "main")
    assert b'tower = "user/pub"' in online["README.md"] and "secrets.txt" not in online
    assert {"figures/energy.png", "figures/similarity.png", "hfcart.json", "recipe.yaml"} <= set(online)


def test_publishing_over_an_old_model_leaves_no_old_weights(
    hub: EmbeddedHub, hfcart: Run, three: list[str], tmp_path: Path
) -> None:
    upload(hub, "user/old", write_tower(tmp_path / "src" / "old", 7))
    done = hfcart("merge", *three, "--push-to", "user/old", "--overwrite", "--max-shard-size", "40KB", hub=hub)
    assert done.returncode == 0, done.stderr
    online = hub.files("user/old", "main")
    assert "model.safetensors" not in online and "model.safetensors.index.json" in online


def test_pull_request(hub: EmbeddedHub, hfcart: Run, three: list[str]) -> None:
    hub.create("user/merged")
    done = hfcart("merge", *three, "--push-to", "user/merged", "--create-pr", "--commit-message", "My merge", hub=hub)
    assert done.returncode == 0, done.stderr
    assert "/discussions/1" in done.stdout
    assert "model.safetensors" in hub.files("user/merged", "refs/pr/1")
    assert "model.safetensors" not in hub.files("user/merged", "main")


# Verify


def test_verify_notices_what_is_wrong(hub: EmbeddedHub, hfcart: Run, three: list[str], tmp_path: Path) -> None:
    assert hfcart("merge", *three, "--out", "m", hub=hub).returncode == 0
    # A record that tells another story than the weights: consistent in itself, and wrong.
    record = json.loads((tmp_path / "m" / "hfcart.json").read_text())
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    tensors[name][0, 0] += 1.0
    save_file(tensors, path, {"format": "pt"})
    fails(hfcart("verify", "m", hub=hub), 1, "m/model.safetensors has sha256")
    record["files"]["model.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
    for tensor in record["tensors"]:
        if tensor["name"] == name:
            tensor["sha256"] = hashlib.sha256(tensors[name].numpy().tobytes()).hexdigest()
    (tmp_path / "m" / "hfcart.json").write_text(json.dumps(record))
    done = hfcart("verify", "m", hub=hub)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Not identical: 1 of 39 tensors differ" in done.stdout
    assert name in done.stdout


def test_verify_never_publishes_and_takes_no_path_from_a_stranger(
    hub: EmbeddedHub, hfcart: Run, three: list[str], tmp_path: Path
) -> None:
    assert hfcart("merge", *three, "--out", "m", hub=hub).returncode == 0
    upload(hub, "user/precious", write_tower(tmp_path / "src" / "precious", 7))
    before = hub.head("user/precious")
    record = json.loads((tmp_path / "m" / "hfcart.json").read_text())
    for change in (
        {"push_to": "user/precious", "overwrite": True},
        {"out": str(tmp_path / "elsewhere")},
        {"sources": [str(tmp_path / "src" / "t1")]},
        {"sources": [{"path": "../src/t1", "sha256": "0" * 64}]},
        {"sources": ["user/t1"]},  # not pinned
        {"base": "/etc"},
    ):
        forged = {**record, "recipe": {**record["recipe"], **change}}
        (tmp_path / "m" / "hfcart.json").write_text(json.dumps(forged))
        fails(hfcart("verify", "m", hub=hub), 1, "m/hfcart.json holds a recipe that cannot be run")
    assert hub.head("user/precious") == before


@pytest.mark.parametrize("told", [True, False])
def test_verify_notices_another_config(hfcart: Run, tmp_path: Path, told: bool) -> None:
    for i in (1, 2):
        write_tower(tmp_path / f"t{i}", i)
    assert hfcart("merge", "t1", "t2", "--out", "m").returncode == 0
    path, record_path = tmp_path / "m" / "config.json", tmp_path / "m" / "hfcart.json"
    path.write_text(path.read_text().replace("quick_gelu", "gelu"))
    record = json.loads(record_path.read_text())
    if told:
        record["files"]["config.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
    else:
        del record["files"]["config.json"]
    record_path.write_text(json.dumps(record))
    done = hfcart("verify", "m")
    assert done.returncode == 1
    assert "config.json" in done.stdout + done.stderr


def test_verify_notices_a_false_story(hfcart: Run, tmp_path: Path) -> None:
    for i in (1, 2):
        write_tower(tmp_path / f"t{i}", i)
    assert hfcart("merge", "t1", "t2", "--out", "m").returncode == 0
    record = json.loads((tmp_path / "m" / "hfcart.json").read_text())
    record["sources"][0]["facts"]["license"] = "mit"
    record["tensors"][8]["energy"] = 0.99
    (tmp_path / "m" / "hfcart.json").write_text(json.dumps(record))
    done = hfcart("verify", "m")
    assert done.returncode == 1
    assert "sources in hfcart.json, tensors in hfcart.json should read otherwise" in done.stdout


def test_verify_when_a_source_has_another_shape(hfcart: Run, tmp_path: Path) -> None:
    for i in (1, 2):
        write_tower(tmp_path / f"t{i}", i)
    assert hfcart("merge", "t1", "t2", "--out", "m").returncode == 0
    write_tower(tmp_path / "t1", 1, {**TINY, "hidden_act": "gelu"})
    fails(hfcart("verify", "m"), 1, "The merge cannot be repeated. 1 of 2 towers differ")


def test_verify_says_which_source_is_gone(hub: EmbeddedHub, hfcart: Run, three: list[str], tmp_path: Path) -> None:
    assert hfcart("merge", *three, "--out", "m", hub=hub).returncode == 0
    with EmbeddedHub(tmp_path / "another") as empty:
        done = hfcart("verify", "m", hub=empty, HF_HUB_CACHE=str(tmp_path / "none"))
        fails(done, 1, "The merge cannot be repeated", "user/t")
    fails(hfcart("verify", "src/t1", hub=hub), 1, "has no hfcart.json")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 1, "recipe": 3}', '{"a": 1, "a": 2}', "[" * 50_000]
)  # fmt: skip
def test_hostile_records(hfcart: Run, tmp_path: Path, text: str) -> None:
    folder = write_tower(tmp_path / "m", 1)
    (folder / "hfcart.json").write_text(text)
    fails(hfcart("verify", "m"), 1, "m/hfcart.json is not a merge record")


# Usage and modes


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["merge"], ["nothing to merge"]),
        (["merge", "a", "--method", "magic"], ["unknown method 'magic'"]),
        (["merge", "a", "--method", "average", "--rank", "0.1"], ["average has no rank"]),
        (["merge", "a", "--rank", "0"], ["at least 1"]),
        (["merge", "a", "--qkv", "both"], ["qkv"]),
        (["merge", "a", "--dtype", "int8"], ["dtype"]),
        (["merge", "a", "--max-shard-size", "big"], ["not a size"]),
        (["merge", "a", "--device", "tpu"], ["unknown device 'tpu'"]),
        (["merge", "a", "--push-to", "https://x/y"], ["not a Hub repo"]),
        (["merge", "a", "--workers", "0"], ["workers"]),
    ],
)
def test_wrong_usage_is_exit_2(hfcart: Run, args: list[str], parts: list[str]) -> None:
    fails(hfcart(*args), 2, *parts)


@pytest.mark.parametrize("args", [["merge", "a", "--rank", "x"], ["merge", "--nope"], ["nope"], ["push", "x"]])
def test_typers_own_usage_errors(hfcart: Run, args: list[str]) -> None:
    done = hfcart(*args)
    assert done.returncode == 2 and "Usage" in done.stderr and "Traceback" not in done.stderr


def test_debug_shows_the_traceback(hfcart: Run) -> None:
    done = hfcart("merge", "./nowhere", "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr
    plain = hfcart("merge", "./nowhere")
    fails(plain, 1, "There is no folder ./nowhere")


def test_terminal_escapes_of_strangers_are_not_obeyed(hfcart: Run, tmp_path: Path) -> None:
    folder = write_tower(tmp_path / "t", 1)
    save_file({"\x1b[2Jevil\u202e": torch.zeros(1), **weights(1)}, folder / "model.safetensors")
    done = hfcart("merge", "t")
    assert done.returncode == 1 and "evil" in done.stderr
    assert "\x1b" not in done.stderr and "\u202e" not in done.stderr


def test_version_and_help(hfcart: Run) -> None:
    assert hfcart("--version").stdout == f"hfcart {__version__}\n"
    bare = hfcart()
    assert all(command in bare.stdout + bare.stderr for command in COMMANDS)
    for command in COMMANDS:
        shown = hfcart(command, "--help")
        assert shown.returncode == 0 and "Usage" in shown.stdout


def test_methods_lists_all(hfcart: Run) -> None:
    listed = json.loads(hfcart("methods", "--json").stdout)
    assert [m["name"] for m in listed] == list(METHODS)
    text = hfcart("methods").stdout
    assert all(m["name"] in text and m["arxiv"] in text for m in listed)


def test_one_method_in_full(hfcart: Run) -> None:
    shown = hfcart("methods", "iso_cts")
    assert shown.returncode == 0, shown.stderr
    method, text = METHODS["iso_cts"], " ".join(shown.stdout.split())
    assert (
        method.title in text
        and "needs base model" in text
        and "goes with --lines BETA, --svc ALPHA, --matrices all-2d" in text
    )
    assert "--common 0.8 a number, above 0, at most 1" in text and method.citation in shown.stdout
    assert "every other tensor gets the base plus" in text and "marczak2025no" in text
    assert json.loads(hfcart("methods", "ties", "--json").stdout)["parameters"]["trim"]["choices"] == [
        "global",
        "tensor",
    ]
    assert "CART++" in hfcart("methods", "cart++").stdout  # what cart becomes with --adapt
    unknown = hfcart("methods", "tie")
    assert unknown.returncode == 2 and "no method 'tie'. Did you mean ties?" in unknown.stderr


@pytest.mark.parametrize("args", [["--help"], ["merge", "--help"], ["methods"], ["methods", "ties"]])
def test_help_imports_nothing_heavy(clean_env: dict[str, str], args: list[str]) -> None:
    code = (
        "import sys\nfrom hfcart.cli import main\n"
        f"sys.argv = ['hfcart', *{args!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'numpy', 'scipy', 'matplotlib'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = ended([sys.executable, "-c", code], env=clean_env)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr
