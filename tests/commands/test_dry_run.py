"""--dry-run says what the run would say before its first byte: the same warnings, the same refusals, and no more."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from clips import write_clip
from plans import fetched_plan
from running import Commands
from safetensors.torch import load_file, save_file
from towers import write_tower

from hfcart.cli._shared.merge_output import show_plan
from hfcart.cli._shared.output import Output
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.methods import METHODS
from hfcart.sources.preprocessor import clip_default
from hfcart.system import device

# What is merged, and the words of what is said; each with an --out of its own.
SAID = [
    (["user/t1", "--out", "a"], "Only one source"),
    (["user/t1", "t2", "--out", "b"], "plain average"),
    (["user/t1", "copy", "t2", "--out", "c"], "copy and user/t1 hold the same weights"),
    (["user/t1", "t2", "odd", "--out", "d"], "image preprocessing differs"),
    (["user/t1", "again/t2", "t2", "--out", "e"], "2 local sources are called t2"),
    (["clip", "own", "--full-clip", "--base", "clip", "--method", "average", "--out", "f"], "visual projection of own"),
    (["user/t1", "t2", "odd", "--out", "there"], "exists already"),
    (["user/t1", "t2", "odd", "--out", "begun"], "unfinished work with other sources"),
    (["user/t1", "t2", "odd", "--out", "foreign"], "no unfinished work of hfcart's"),
    (["user/t1", "made", "--out", "made", "--overwrite"], "would replace the source made"),
    (["user/t1", "t2", "--push-to", "user/foreign"], "hfcart did not make"),
    (["user/t1", "t2", "--eval", "nothing", "--out", "g"], "no task 'nothing'"),
    (["user/t1", "t2", "t3", "--adapt", "nothing", "--out", "h"], "no task 'nothing'"),
    (["user/t1", "t2", "--device", "cuda:99", "--out", "i"], "no device cuda:99"),
    (["user/t1", "t2", "--out", "file/j"], "Not a directory"),
    (["user/t1", "t2", "--method", "task_arithmetic", "--out", "k"], "needs the base model"),
    (["user/t1", "t2", "--push-to", "user/t1", "--overwrite", "--out", "l"], "is one of the sources"),
]


@pytest.fixture
def towers(hub: EmbeddedHub, tmp_path: Path) -> EmbeddedHub:
    for i in (1, 2, 3):
        write_tower(tmp_path / f"t{i}", i)
    write_tower(tmp_path / "again" / "t2", 4)
    write_tower(tmp_path / "copy", 1)
    own = clip_default(16) | {"image_mean": [0.2, 0.5, 0.6]}
    write_tower(tmp_path / "odd", 5).joinpath("preprocessor_config.json").write_text(json.dumps(own))
    write_tower(tmp_path / "made", 6).joinpath("hfcart.json").write_text("{}")
    (tmp_path / "t2" / "preprocessor_config.json").write_text(json.dumps(clip_default(16)))
    write_clip(tmp_path / "clip", 0)
    shutil.copytree(tmp_path / "clip", tmp_path / "own")
    tensors = load_file(tmp_path / "own" / "model.safetensors")
    tensors["visual_projection.weight"] += 0.1
    save_file(tensors, tmp_path / "own" / "model.safetensors", metadata={"format": "pt"})
    for folder in ("there", "begun.partial", "foreign.partial"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes.txt").write_text("mine")
    (tmp_path / "begun.partial" / "journal.jsonl").write_text('{"fingerprint": "of another"}\n')
    (tmp_path / "file").write_text("")
    hub.create("user/t1")
    hub.commit("user/t1", {path.name: path for path in (tmp_path / "t1").iterdir()})
    hub.create("user/foreign")
    hub.commit("user/foreign", {"weights.bin": b"somebody's"})
    return hub


def listing(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and "hf-home" not in path.parts]
    return {str(path): path.read_bytes() for path in paths if "hub-content" not in path.parts}


def said(stderr: str) -> list[str]:
    """Warnings, errors and hints, each once."""
    return sorted({line for line in stderr.splitlines() if line.startswith(("Warning:", "Error:", "→"))})


def test_what_the_run_says_and_no_more(towers: EmbeddedHub, commands: Commands, tmp_path: Path) -> None:
    before, head = listing(tmp_path), towers.head("user/t1")
    dry = commands(towers, [["merge", *args, "--dry-run"] for args, _ in SAID])
    assert listing(tmp_path) == before and towers.head("user/t1") == head
    fetched = [r for r in towers.requests if r.method == "GET" and "model.safetensors" in r.path and not r.range]
    assert not fetched  # of the weights the headers, and a projection
    real = commands(towers, [["merge", *args] for args, _ in SAID])
    for (args, words), rehearsed, done in zip(SAID, dry, real, strict=True):
        assert words in rehearsed.stderr, (args, rehearsed.stderr)
        assert rehearsed.returncode == done.returncode, (args, rehearsed.stderr, done.stderr)
        assert said(rehearsed.stderr) == said(done.stderr), args


def test_the_plan_as_json(towers: EmbeddedHub, commands: Commands, tmp_path: Path) -> None:
    (shown, plan) = commands(
        towers,
        [
            ["merge", "user/t1", "t2", "--dry-run", *rest, "--push-to", "user/new", "--rank", "4"]
            for rest in ([], ["--json"])
        ],
    )
    assert shown.returncode == plan.returncode == 0, plan.stderr
    found = json.loads(plan.stdout)
    assert {source["label"]: source["commit"] for source in found["sources"]} == {
        "t2": None,
        "user/t1": towers.head("user/t1"),
    }
    assert [source["sha256"] for source in found["sources"]] == sorted(s["sha256"] for s in found["sources"])
    assert found["parameters"] == {"rank": 4, "scale": 1.0} and found["method"] == "cart" and found["base"] is None
    assert found["tensors"] == 39 and found["elements"] == 23_552 and found["decomposed"] == 12
    assert found["download_bytes"] == (tmp_path / "t1" / "model.safetensors").stat().st_size
    assert found["out"] == "new" and found["push_to"] == "user/new" and "in user/new" in shown.stdout
    assert found["device"] == "cpu" and found["batch"] is None
    assert [f"Warning: {text}" for text in found["warnings"]] == said(plan.stderr)


@pytest.mark.parametrize(
    ("method", "memory", "told"),
    [
        # 64 × 32 and 32 × 64 are the largest: 8 · (2 · 2048 + 5 · 1024) bytes each; a quarter of the memory is theirs.
        ("cart", 10**6, "cuda, 3 matrices at once in 221.2 kB of the 250.0 kB that a batch may take"),
        ("cart", 6 * 10**5, "cuda, 2 matrices at once in 147.5 kB of the 150.0 kB that a batch may take"),
        ("tsv_m", 10**6, "cuda, 3 matrices at once in 221.2 kB of the 250.0 kB that a batch may take"),
        ("iso_c", 10**6, "cuda"),  # the towers' sum alone
    ],
)
def test_the_plan_says_what_a_batch_takes_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    method: str, memory: int, told: str,
) -> None:  # fmt: skip
    towers = [write_tower(tmp_path / f"t{i}", i) for i in (1, 2, 3)]
    base = {"base": str(write_tower(tmp_path / "t0", 0))} if METHODS[method].needs_base else {}
    monkeypatch.setattr(device, "choose_device", lambda _: torch.device("cuda"))
    there = SimpleNamespace(total_memory=memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: there)
    with closing(fetched_plan(towers, method=method, **base)) as plan:
        show_plan(plan, Output())
        show_plan(plan, Output(json=True))
    text, _, plain = capsys.readouterr().out.partition("{")
    assert re.search(r"^device +(.*?) *$", text, re.MULTILINE)[1] == told
    found = json.loads("{" + plain)
    assert found["device"] == "cuda" and (found["batch"] is None) == (method == "iso_c")
    if batch := found["batch"]:
        assert batch["bytes"] == 73_728 * batch["matrices"] and batch["most_bytes"] == memory // 4
