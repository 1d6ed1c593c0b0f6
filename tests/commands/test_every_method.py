"""What a merge promises, for every method: dtypes, kills, streaming, LiNeS, the card; and where identities end."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from merging import Stop
from running import TOKEN, ended
from safetensors.torch import load_file
from towers import TINY, weights, write_tower

import hfcart
from hfcart.clip.tensor_names import groups
from hfcart.commands.merge import merge_folder
from hfcart.commands.verify import run_verify
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.methods import METHODS, function, keywords_of
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import make

SMALL = {**TINY, "num_hidden_layers": 1}
# The others need images as well: their statistics have tests of their own.
ALONE = [name for name, method in METHODS.items() if method.statistics is None]


def learned(method: str, settings: dict[str, Any], groups: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, Any]:
    """What a method's rules must know of the whole towers."""
    where = METHODS[method].fit
    if where is None:
        return {}
    passes = function(where)(**keywords_of(function(where), settings))
    measure = next(passes)
    while True:
        try:
            measure = passes.send(sum(measure(thetas, base) for thetas, base in groups))
        except StopIteration as end:
            return end.value


def by_rules(
    name: str, cfg: dict[str, Any], order: list[int], dtypes: dict[int, torch.dtype], qkv: str, **changed: float
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a method's rules make of towers read as float32: (merged, all towers stacked, base), by tensor."""
    method = METHODS[name]
    towers = [{n: v.to(dtypes[i]).float() for n, v in weights(i, cfg).items()} for i in order]
    base = {n: v.to(dtypes[0]).float() for n, v in weights(0, cfg).items()}
    stacks = {n: torch.stack([tower[n] for tower in towers]) for n in base}
    units = [  # a group's tensors one below the other
        (group, torch.cat([stacks[n] for n in group.names], 1), torch.cat([base[n] for n in group.names]))
        for group in groups(base, qkv)
    ]
    settings = {p.name: p.default for p in method.parameters if p.default is not None} | changed
    known = learned(name, settings, [(thetas, start) for _, thetas, start in units])
    merged, rules = {}, method.load()
    for group, thetas, start in units:
        rule = rules[0] if group.matrix else rules[1]
        offered = {**settings, **known, "key": group.key, "base": start}
        whole = rule(thetas, **keywords_of(rule, offered)).tensor
        merged |= dict(zip(group.names, whole.split([len(base[n]) for n in group.names]), strict=True))
    return merged, stacks, base


def check_tensors(folder: Path, name: str, dtypes: dict[int, torch.dtype], qkv: str) -> None:
    record = json.loads((folder / "hfcart.json").read_text())
    defaults = {p.name: p.default for p in METHODS[name].parameters if p.default is not None}
    assert record["method"]["parameters"] == defaults
    order = [int(source["label"][-1]) for source in record["sources"]]
    expected, _, _ = by_rules(name, SMALL, order, dtypes, qkv)
    found = load_file(folder / "model.safetensors")
    assert set(found) == set(expected)
    for tensor, value in found.items():
        close = 1e-6 * float(expected[tensor].abs().max())
        assert torch.allclose(value, expected[tensor], rtol=0, atol=close), tensor


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("name", ALONE)
def test_a_merge_keeps_its_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Towers of three dtypes; killed, then resumed in another order with more workers: as if nothing had happened."""
    monkeypatch.chdir(tmp_path)
    method = METHODS[name]
    dtypes = {0: torch.bfloat16, 1: torch.float16, 2: torch.float32, 3: torch.bfloat16}
    for i, dtype in dtypes.items():
        write_tower(tmp_path / f"t{i}", i, SMALL, dtype=dtype)
    sources = ["t1", "t2", "t3"][: method.exactly or 3]

    def recipe(names: list[str], workers: int) -> Any:
        return make({"sources": names, "method": name, "base": "t0", "workers": workers, "out": "m", "qkv": "fused"})

    with pytest.raises(KeyboardInterrupt):
        merge_folder(recipe(sources[::-1], 1), Stop(4))
    assert Path("m.partial").is_dir() and not Path("m").exists()
    merge_folder(recipe(sources, 3), Progress())
    check_tensors(Path("m"), name, dtypes, "fused")
    assert run_verify("m", device="cpu", stream=False, progress=Progress()).identical
    card = Path("m/README.md").read_text()
    assert method.citation in card and f"https://arxiv.org/abs/{method.arxiv}" in card


def test_streamed_from_the_hub_it_is_the_same(tmp_path: Path, hub: EmbeddedHub, clean_env: dict[str, str]) -> None:
    """With a base, and after a first pass over everything; tests/cli/test_cli.py has one without."""
    for i in range(4):
        folder = write_tower(tmp_path / f"t{i}", i, SMALL)
        hub.create(f"user/t{i}")
        hub.commit(f"user/t{i}", {p.name: p.read_bytes() for p in folder.iterdir()})
    script = """
import sys, hfcart
for name in sys.argv[1:]:
    hfcart.merge(["user/t1", "user/t2", "user/t3"], method=name, base="user/t0", stream=True, out=name)
"""
    env = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf-home"), "HF_TOKEN": TOKEN}
    names = ["tsv_m", "ties"]
    command = [sys.executable, "-c", script, *names]
    done = ended(command, warm=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    for name in names:
        check_tensors(tmp_path / name, name, dict.fromkeys(range(4), torch.float32), "split")
    kept = [p for p in (tmp_path / "hf-home").rglob("*") if p.is_file() and p.stat().st_size > 20_000]
    assert not kept  # nothing of the weights


@pytest.mark.parametrize("name", [name for name in ALONE if METHODS[name].task_vectors])
def test_lines_over_it(tmp_path: Path, name: str) -> None:
    """LiNeS restated: α by the whole towers' L1 norms, β · l/(L − 1) more in block l, on the update at scale 1."""
    sources = [str(write_tower(tmp_path / f"t{i}", i)) for i in (1, 2, 3)]
    base = str(write_tower(tmp_path / "t0", 0))
    record = hfcart.merge(sources, method=name, base=base, lines=0.5, out=str(tmp_path / "m"), workers=3)
    assert record.recipe["lines"] == 0.5 and "scale" not in record.recipe
    assert "LiNeS" in record.method.title and "wang2025lines" in record.method.citation
    at_one = {"scale": 1.0} if METHODS[name].parameter("scale") else {}
    order = [int(source.label[-1]) for source in record.sources]
    plain, stacks, zero = by_rules(name, TINY, order, dict.fromkeys(range(4), torch.float32), "split", **at_one)
    above = sum(float((stacks[n].double() - zero[n].double()).sum(0).abs().sum()) for n in zero)
    below = sum(float((plain[n].double() - zero[n].double()).abs().sum()) for n in zero)
    alpha = above / below / 3
    if name == "task_arithmetic":
        assert alpha == pytest.approx(1 / 3, rel=1e-6)
    for tensor, value in load_file(tmp_path / "m" / "model.safetensors").items():
        block = next((int(part) for part in tensor.split(".") if part.isdigit()), None)
        by = alpha + (0.5 * block / 1 if block is not None else 0)  # two blocks: L − 1 is 1
        start = zero[tensor].double()
        error = (value.double() - start - by * (plain[tensor].double() - start)).abs().max()
        assert error <= 1e-6 * max(1.0, by) * start.abs().max(), tensor
    if name in ("ties", "dare"):  # with a first pass, and with masks that depend on the order: both hold still
        again = hfcart.merge(sources[::-1], method=name, base=base, lines=0.5, out=str(tmp_path / "r"), workers=1)
        assert again == record


@pytest.mark.parametrize("name", [name for name in ALONE if METHODS[name].task_vectors])
def test_svc_over_it(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SVC restated on what the method's own rules make: matrices calibrated, everything else as it was."""
    monkeypatch.chdir(tmp_path)
    for i in range(4):
        write_tower(tmp_path / f"t{i}", i)
    record = hfcart.merge(["t1", "t2", "t3"], method=name, base="t0", svc=0.9, out="m", workers=3)
    assert record.recipe["svc"] == 0.9 and record.method.parameters["svc"] == 0.9
    assert "with SVC" in record.method.title and "li2026shared" in record.method.citation
    order = [int(source.label[-1]) for source in record.sources]
    plain, stacks, zero = by_rules(name, TINY, order, dict.fromkeys(range(4), torch.float32), "split")
    matrices = 0
    for tensor, value in load_file(tmp_path / "m" / "model.safetensors").items():
        if not re.search(r"\.layers\.\d\.(self_attn|mlp)\..*\.weight", tensor):
            assert torch.equal(value, plain[tensor]), tensor
            continue
        matrices += 1
        start = zero[tensor].double()
        u, s, vt = np.linalg.svd((plain[tensor].double() - start).numpy(), full_matrices=False)
        taus = (stacks[tensor].double() - start).numpy()
        counted = np.zeros(len(s))
        for tau in taus:
            own = u.T @ tau
            counted += np.maximum(0.9, ((s[:, None] * vt) * own).sum(1) / (own**2).sum(1))
        expected = (u * (s * 3 / counted)) @ vt
        if name != "model_stock":  # which takes towers that share nothing back to the base
            assert np.linalg.norm(expected - (u * s) @ vt) > 1e-3 * np.linalg.norm(expected)
        error = np.linalg.norm((value.double() - start).numpy() - expected)
        assert error <= 1e-4 * np.linalg.norm(expected), tensor
    assert matrices == 12
    assert hfcart.verify("m")


@pytest.mark.parametrize(
    "name", ["task_arithmetic", "tsv_m", "iso_c", "iso_cts", "dc_merge", "consensus", "breadcrumbs"]
)
def test_identical_towers_do_not_give_that_tower(name: str) -> None:
    """These sum over tasks, or keep a share: three times the same is not the same."""
    rule = METHODS[name].load()[0]
    base, theta = (weights(i)["vision_model.encoder.layers.0.mlp.fc1.weight"] for i in (0, 1))
    found = rule(theta.repeat(3, 1, 1), base=base).tensor
    assert torch.linalg.norm(found - theta) > 0.05 * torch.linalg.norm(theta - base)


@pytest.mark.parametrize("name", [name for name in ALONE if METHODS[name].needs_base])
def test_a_tower_that_learned_nothing_spoils_nothing(name: str) -> None:
    """A task vector of zeros: finite everywhere, and where no tower moved the base stays to the bit."""
    method = METHODS[name]
    for tensor, rule in zip(("mlp.fc1.weight", "mlp.fc1.bias"), method.load(), strict=True):
        base, one, two = (weights(i)[f"vision_model.encoder.layers.0.{tensor}"].clone() for i in (0, 1, 2))
        offered = {"key": tensor, "thresholds": None, "majority": 1}
        found = rule(torch.stack([one, base, two]), base=base, **keywords_of(rule, offered)).tensor
        assert torch.isfinite(found).all()
        still = rule(torch.stack([base, base, base]), base=base, **keywords_of(rule, offered)).tensor
        assert torch.equal(still, base)
