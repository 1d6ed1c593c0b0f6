"""Adapters from the command line to the Hub and back: one commit, verified, named well, and loaded from there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from card_text import blocks
from fine_tuned import fine_tuned
from running import COMPAT, ROOT, TOKEN, Commands, Run, ended
from safetensors.torch import load_file, save_file
from towers import weights, write_tower
from transformers import CLIPVisionModel

import hfcart
from hfcart.commands.merge import merge_folder
from hfcart.commands.verify import run_verify
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.engine.adapters import residuals
from hfcart.engine.adapters.names import adapter_names
from hfcart.errors import UsageError, VerifyError
from hfcart.maths.low_rank import LowRank
from hfcart.progress import Progress
from hfcart.recipes.finished_merge import read_record
from hfcart.recipes.merge_recipe import make
from hfcart.records.adapters import is_adapter_name
from hfcart.sources.places import pin_all

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def three(hub: EmbeddedHub, tmp_path: Path) -> list[str]:
    for i in (1, 2, 3):
        folder = write_tower(tmp_path / "src" / f"t{i}", i)
        hub.create(f"user/clip-{i}")
        hub.commit(f"user/clip-{i}", {path.name: path for path in folder.iterdir()})
    return [f"user/clip-{i}" for i in (1, 2, 3)]


def test_all_in_one_commit_and_verified(hub: EmbeddedHub, commands: Commands, three: list[str], tmp_path: Path) -> None:
    lines = [
        ["merge", *three, "--adapters", "25%", "--push-to", "user/merged"],
        ["verify", "user/merged"],
        ["push", "merged", "--push-to", "user/merged"],
        ["merge", "--recipe", "user/merged", "--out", "again"],
        ["merge", *three, "--method", "cart", "--push-to", "user/merged", "--out", "cart"],
    ]
    before = len([r for r in hub.requests if r.method == "POST" and "/commit/" in r.path])
    merge, verify, push, again, cart = commands(hub, lines)
    assert [done.returncode for done in (merge, verify, push, again, cart)] == [0] * 5, merge.stderr + cart.stderr
    assert "Identical: all 192 tensors" in verify.stdout and "exactly this already" in push.stderr
    assert len([r for r in hub.requests if r.method == "POST" and "/commit/" in r.path]) == before + 2
    for name in ("clip-1", "clip-2", "clip-3"):
        here = tmp_path / "merged/adapters" / name
        for file in (CONFIG, WEIGHTS):
            assert (tmp_path / "again/adapters" / name / file).read_bytes() == (here / file).read_bytes()
    # A merge without adapters that takes the repo's place takes the old ones away.
    assert not [path for path in hub.files("user/merged", "main") if path.startswith("adapters/")]


def test_the_published_config_names_its_repo(
    hub: EmbeddedHub, commands: Commands, three: list[str], tmp_path: Path
) -> None:
    merged, verified = commands(
        hub, [["merge", *three, "--adapters", "2", "--push-to", "user/merged"], ["verify", "user/merged"]]
    )
    assert merged.returncode == verified.returncode == 0, merged.stderr + verified.stderr
    online = hub.files("user/merged", "main")
    for name in ("clip-1", "clip-2", "clip-3"):
        config = json.loads(online[f"adapters/{name}/{CONFIG}"])
        here = json.loads((tmp_path / "merged/adapters" / name / CONFIG).read_text())
        assert config.pop("base_model_name_or_path") == "user/merged"
        assert here.pop("base_model_name_or_path") is None and here == config
        assert online[f"adapters/{name}/{WEIGHTS}"] == (tmp_path / "merged/adapters" / name / WEIGHTS).read_bytes()
    # One that names another repo's tower is one that peft would add to that.
    config = online[f"adapters/clip-1/{CONFIG}"]
    hub.commit("user/merged", {f"adapters/clip-1/{CONFIG}": config.replace(b"user/merged", b"evil/tower")})
    (verified,) = commands(hub, [["verify", "user/merged"]])
    assert verified.returncode == 1 and "names 'evil/tower' as the base of the adapter" in verified.stderr


@pytest.fixture
def merge(tmp_path: Path) -> Path:
    sources = [str(write_tower(tmp_path / f"t{i}", i)) for i in (1, 2)]
    hfcart.merge(sources, out=str(tmp_path / "m"), adapters=0.25)
    return tmp_path / "m"


def verified(merge: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.chdir(merge.parent)
    return run_verify("m", device="auto", stream=False, progress=Progress())


def test_a_config_that_was_changed_is_named(merge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = merge / "adapters/t2" / CONFIG
    good = path.read_text()
    path.write_text(good.replace('_path": null', '_path": "user/elsewhere"'))
    assert '"base_model_name_or_path": "user/elsewhere"' in path.read_text()
    assert verified(merge, monkeypatch).identical
    for wrong in (
        good.replace('"lora_alpha": 8', '"lora_alpha": 80'),
        good.replace('_path": null', '_path": "a", "auto_mapping": "b"'),
        good + " ",
    ):
        path.write_text(wrong)
        with pytest.raises(VerifyError, match=f"m/adapters/t2/{CONFIG} has sha256"):
            verified(merge, monkeypatch)


def test_an_adapter_that_was_changed_is_named(merge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = merge / "adapters/t2" / WEIGHTS
    tensors = load_file(path)
    name = "base_model.model.encoder.layers.1.mlp.fc2.lora_A.weight"
    tensors[name][0, 0] += 1
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(VerifyError, match=f"m/adapters/t2/{WEIGHTS} has sha256"):
        verified(merge, monkeypatch)
    # The record tells the same story: only making it again shows it.
    record = json.loads((merge / "hfcart.json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record["files"][f"adapters/t2/{WEIGHTS}"] = digest
    next(each for each in record["adapters"] if each["name"] == "t2")["sha256"] = digest
    (merge / "hfcart.json").write_text(json.dumps(record))
    verdict = verified(merge, monkeypatch)
    assert list(verdict.differences) == [f"adapters/t2/{name}"]


def test_an_adapter_too_many_or_too_few_is_named(merge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (merge / "adapters/t2").rename(merge / "adapters/t3")
    with pytest.raises(VerifyError, match=f"m lacks adapters/t2/{CONFIG}"):
        verified(merge, monkeypatch)
    (merge / "adapters/t2").mkdir()
    for file in (CONFIG, WEIGHTS):
        (merge / "adapters/t2" / file).write_bytes((merge / "adapters/t3" / file).read_bytes())
    with pytest.raises(VerifyError, match="m holds adapters/t3/.*, which its record does not list"):
        verified(merge, monkeypatch)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "../t2"}, {"name": "t1"}, {"name": "train"}, {"name": "T2"}, {"source": "t1"}, {"rank": 0},
        {"energy": 1.5}, {"sha256": "0" * 64}, {"size": -1},
    ],
)  # fmt: skip
def test_a_stranger_s_record_says_nothing_wrong_of_adapters(
    merge: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, object]
) -> None:
    record = json.loads((merge / "hfcart.json").read_text())
    next(each for each in record["adapters"] if each["name"] == "t2").update(wrong)
    (merge / "hfcart.json").write_text(json.dumps(record))
    with pytest.raises(VerifyError, match="is not a merge record of hfcart"):
        verified(merge, monkeypatch)


def test_names_are_the_task_else_the_shortest_that_is_its_own(tmp_path: Path) -> None:
    def names(*paths: str) -> dict[str, str]:
        found = []
        for order in (paths, paths[::-1]):
            towers = pin_all([str(tmp_path / path) for path in order], Progress())
            found.append(dict(zip(order, adapter_names(towers), strict=True)))
            for tower in towers:
                tower.close()
        assert found[0] == found[1] and len(set(found[0].values())) == len(paths)
        assert all(map(is_adapter_name, found[0].values()))
        return found[0]

    for i, path in enumerate(["a/clip-cars", "b/clip-cars", "clip-dogs", "train", "Ünï côdé!", "模型", "…", "x" * 200]):
        write_tower(tmp_path / path, i + 1)
    assert names("a/clip-cars", "clip-dogs") == {"a/clip-cars": "clip-cars", "clip-dogs": "clip-dogs"}
    # Two folders of one name: a local source is known by nothing but its name and what it holds.
    same = names("a/clip-cars", "b/clip-cars", "clip-dogs")
    assert same["clip-dogs"] == "clip-dogs"
    assert all(name.startswith("clip-cars-") for path, name in same.items() if path != "clip-dogs")
    odd = names("train", "Ünï côdé!", "模型", "…", "x" * 200)
    assert odd["train"] == "train-tower" and odd["x" * 200] == "x" * 60
    # Names so long that they are cut: what tells them apart is not.
    long = ["a/" + "y" * 100, "b/" + "y" * 100]
    for i, path in enumerate(long):
        write_tower(tmp_path / path, 20 + i)
    assert all(name.startswith("y" * 51) and len(name) <= 61 for name in names(*long).values())


def test_places_in_one_repo_are_told_apart(hub: EmbeddedHub, hfcart: Run, tmp_path: Path) -> None:
    files = {}
    for i, task in enumerate(["Cars", "DTD"]):
        files |= {f"{task}/{p.name}": p for p in write_tower(tmp_path / f"t{i}", i + 1).iterdir()}
    hub.create("user/towers")
    hub.commit("user/towers", files)
    sources = ["user/towers:Cars/model.safetensors", "user/towers:DTD/model.safetensors"]
    done = hfcart("merge", *sources, "--adapters", "1", "--out", "m", hub=hub)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "m/adapters").iterdir()) == ["cars-model", "dtd-model"]


SNIPPETS = """
import json, sys, torch, transformers, warnings
warnings.filterwarnings("error", category=UserWarning, module="peft")  # a missing key
transformers.utils.logging.set_verbosity_error()
found = []
for snippet in json.load(sys.stdin):
    names = {}
    exec(snippet, names)
    model, side = names["model"], 16
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = model(pixel_values=pixels).pooler_output
    found.append([model.active_adapter, sorted(model.peft_config), output.tolist()])
print(json.dumps([transformers.__version__, found]))
"""


@pytest.mark.parametrize(("release", "path"), [("5.", ""), ("4.57.", f"{COMPAT}{os.pathsep}")])
def test_the_card_s_snippets_load_them_from_the_hub(
    hub: EmbeddedHub, hfcart: Run, three: list[str], tmp_path: Path, clean_env: dict[str, str], release: str, path: str
) -> None:
    done = hfcart("merge", *three, "--adapters", "100%", "--push-to", "user/merged", hub=hub)
    assert done.returncode == 0, done.stderr
    assert "in merged/adapters, for peft" in done.stdout
    card = hub.files("user/merged", "main")["README.md"].decode()
    snippets = [block for block in blocks(card, "python") if "peft" in block]
    assert len(snippets) == 2 and "(Eq. 5 of [CART's paper]" in card and "choi2024revisiting" in card
    if release == "4.57.":  # what the card says of it
        assert 'pass `key_mapping={"^": "vision_model."}` to `from_pretrained` and `load_adapter`' in card
        more = ', key_mapping={"^": "vision_model."}'
        told = [re.sub(r'(subfolder="[^"]*")', rf"\1{more}", snippet) for snippet in snippets]
        assert [text.count("key_mapping") for text in told] == [1, 2]
        snippets = told
    env = {**clean_env, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    ran = ended(
        [sys.executable, "-c", SNIPPETS], input=json.dumps(snippets), warm=True,
        env={**env, "PYTHONPATH": path + str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    version, found = json.loads(ran.stdout.splitlines()[-1])
    assert version.startswith(release)
    names = [each["name"] for each in json.loads((tmp_path / "merged/hfcart.json").read_text())["adapters"]]
    assert [each[:2] for each in found] == [["default", ["default"]], [names[1], sorted(names[:2])]]
    for name, (_, _, output) in zip(names, found, strict=False):
        source = CLIPVisionModel.from_pretrained(tmp_path / "src" / f"t{name[-1]}")
        pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = source(pixel_values=pixels).pooler_output
        assert torch.allclose(torch.tensor(output), expected, atol=1e-5)


def test_the_plan_says_what_is_written(hfcart: Run, tmp_path: Path) -> None:
    for i in (1, 2):
        write_tower(tmp_path / f"t{i}", i)
    line = ["merge", "t1", "t2", "--adapters", "25%", "--out", "m"]
    shown, told = hfcart(*line, "--dry-run"), hfcart(*line, "--dry-run", "--json")
    assert shown.returncode == told.returncode == 0, shown.stderr
    assert re.search(
        r"adapters +2 of rank 8, with biases, norms and embeddings, [\d.]+ kB each: t[12], t[12]", shown.stdout
    )
    assert re.search(r"through the SVD +12 matrices of each source", shown.stdout)
    plan = json.loads(told.stdout)
    assert plan["method"] == "average" and not (tmp_path / "m").exists()
    assert hfcart(*line).returncode == 0
    files = {path.parent.name: path.stat().st_size for path in (tmp_path / "m/adapters").glob(f"*/{WEIGHTS}")}
    assert {each["name"]: each["bytes"] for each in plan["adapters"]} == files
    assert plan["output_bytes"] == sum(files.values()) + (tmp_path / "m/model.safetensors").stat().st_size


def test_an_adapter_is_a_source_again(hub: EmbeddedHub, commands: Commands, three: list[str], tmp_path: Path) -> None:
    of = "user/merged:adapters/clip-{}"
    one, two = commands(
        hub,
        [
            ["merge", *three, "--adapters", "100%", "--push-to", "user/merged"],
            ["merge", of.format(1), of.format(3), "--adapters", "3", "--out", "two"],
        ],
    )
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert sorted(path.name for path in (tmp_path / "two/adapters").iterdir()) == ["clip-1", "clip-3"]
    found = load_file(tmp_path / "two/model.safetensors")
    for name, tensor in found.items():
        mean = (weights(1)[name].double() + weights(3)[name].double()) / 2
        assert torch.allclose(tensor.double(), mean, rtol=0, atol=1e-7), name


def test_what_hfcart_fine_tuned_is_called_after_its_task(tmp_path: Path) -> None:
    hfcart.merge([str(write_tower(tmp_path / "t1", 1))], method="average", out=str(tmp_path / "m"))
    tuned = [fine_tuned(tmp_path / "m", tmp_path / name, task) for name, task in
             [("run-7", "digits"), ("run-8", "oxford_flowers102"), ("x", "svhn"), ("y", "svhn")]]  # fmt: skip
    record = json.loads((tmp_path / "y/hfcart.json").read_text())
    lie = write_tower(tmp_path / "lie", 2)
    (lie / "hfcart.json").write_text(json.dumps({**record, "tasks": [{**record["tasks"][0], "task": "../../x"}]}))
    towers = pin_all([str(path) for path in (*tuned, lie)], Progress())
    # Of two for one task neither has its name; a record that no training leaves names nothing.
    assert adapter_names(towers) == ("digits", "oxford_flowers102", "x", "y", "lie")


def test_a_recipe_file_asks_for_them_as_the_command_line_does(tmp_path: Path, hfcart: Run) -> None:
    sources = [str(write_tower(tmp_path / f"t{i}", i)) for i in (1, 2)]
    (tmp_path / "r.yaml").write_text(f"sources: {sources}\nadapters: 10%\nadapters_carry: matrices\nout: m\n")
    done = hfcart("merge", "--recipe", "r.yaml")
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "m/recipe.yaml").read_text()
    assert "method: average\n" in told and "adapters: 0.1\nadapters_carry: matrices\n" in told


@pytest.mark.parametrize(
    "more",
    [
        {"rank": 0.08},
        {"density": 0.2},
        {"adapt": "8", "adapt_ranks": 1.0},
        {"adapt": "8"},
        {"adapt_ranks": 1.0},
        {"lines": 0.5},
        {"svc": 1.0},
        {"matrices": "all-2d"},
        {"tasks": "8"},
    ],
    ids=str,
)
def test_what_the_average_does_not_take_is_answered_with_a_method_that_does(more: dict) -> None:
    """Nobody who asks for adapters alone has asked for the average."""
    asked = {"sources": ("a", "b"), "adapters": 0.08, **more}
    with pytest.raises(UsageError) as refused:
        make(asked)
    assert "; where adapters are asked for and no method, it is the average: add `--method " in refused.value.message
    method = refused.value.message.partition("--method ")[2].partition("`")[0]
    if set(more) == {"adapt_ranks"}:  # and to adapt, as is said next
        more["adapt"] = "8"
    make({**asked, **more, "method": method})


def test_where_the_solver_gave_up_is_recorded_of_an_adapter_as_of_a_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plainly, told = residuals.truncated_svd, list[str]()

    class Heard(Progress):
        def warn(self, text: str) -> None:
            told.append(text)

    def given_up(a: torch.Tensor, k: int, **how: object) -> LowRank:
        gives_up = a.shape == (64, 32) and bool(a[0, 0] > 0)
        return dataclasses.replace(plainly(a, k, **how), fallback=gives_up)

    monkeypatch.setattr(residuals, "truncated_svd", given_up)
    sources = [str(write_tower(tmp_path / f"t{i}", i)) for i in (1, 2)]
    merge_folder(make({"sources": tuple(sources), "out": str(tmp_path / "m"), "adapters": 0.25}), Heard())
    record = read_record((tmp_path / "m" / "hfcart.json").read_bytes(), "m")
    given = [name for each in record.adapters for name in each.fallbacks]
    # Of two towers' differences from their average one is the other's negative.
    assert sorted(given) == [f"vision_model.encoder.layers.{i}.mlp.fc1.weight" for i in (0, 1)]
    assert not any(tensor.fallback for tensor in record.tensors)
    assert told == [f"The solver did not converge on 2 matrices ({sorted(given)[0]}, …): float64 LAPACK took over."]
    card = (tmp_path / "m" / "README.md").read_text()
    assert card.count("the solver did not converge and LAPACK in float64 took over: `vision") == sum(
        bool(each.fallbacks) for each in record.adapters
    )
