"""TIES, consensus, breadcrumbs, DARE and DELLA against float64 NumPy written from the papers, and their identities."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from towers import weights, write_tower

import hfcart
from hfcart.clip.architecture import expected_shapes, read_architecture
from hfcart.commands.merge import merge_folder
from hfcart.errors import UsageError
from hfcart.methods import METHODS, function, keywords_of
from hfcart.methods.breadcrumbs.rule import breadcrumbs
from hfcart.methods.consensus.rule import consensus
from hfcart.methods.dare.rule import dare
from hfcart.methods.della.rule import della
from hfcart.methods.task_arithmetic.rule import task_arithmetic
from hfcart.methods.ties.rule import gather, ties
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import make
from hfcart.records import MergeRecord


def stack(seed: int, tasks: int, *shape: int, tau: float = 0.02) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return base + tau * torch.randn(tasks, *shape, generator=generator) ** 3, base


def differences(thetas: torch.Tensor, base: torch.Tensor) -> np.ndarray:
    return thetas.double().numpy() - base.double().numpy()


def close(found: torch.Tensor, base: torch.Tensor, update: np.ndarray) -> None:
    expected = base.double().numpy() + update
    assert np.abs(found.double().numpy() - expected).max() <= 6.1e-8 * np.abs(expected).max()


def learned(groups: list[tuple[torch.Tensor, torch.Tensor]], **given: object) -> dict[str, object]:
    """Run `gather` as the engine does: each pass over all groups, its sum sent back."""
    passes = gather(**given)
    measure = next(passes)
    while True:
        try:
            measure = passes.send(sum(measure(thetas, base) for thetas, base in groups))
        except StopIteration as end:
            return end.value


def paper_ties(
    taus: list[np.ndarray], scale: float, density: float, combine: str = "mean", trim: str = "global"
) -> list[np.ndarray]:
    """The paper's algorithm on a whole tower: a list of (task × entries), one for each tensor."""
    sizes = [tau.shape[1] for tau in taus]
    whole = np.concatenate(taus, 1)
    trimmed = np.zeros_like(whole)
    cuts = [slice(0, sum(sizes))] if trim == "global" else []
    if trim == "tensor":
        ends = np.cumsum(sizes)
        cuts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    for t, row in enumerate(whole):
        for cut in cuts:
            part = np.abs(row[cut]).astype(np.float32)
            keep = max(1, int(density * len(part)))
            least = np.sort(part)[::-1][keep - 1]
            trimmed[t, cut] = np.where(part >= least, row[cut], 0)
    sign = np.sign(trimmed.sum(0))
    sign[sign == 0] = np.sign(sign.sum())
    agree = np.where(np.sign(trimmed) == sign, trimmed, 0)
    total = agree.sum(0)
    merged = scale * (total if combine == "sum" else total / np.maximum((agree != 0).sum(0), 1))
    return np.split(merged, np.cumsum(sizes)[:-1])


@pytest.mark.parametrize("density", [0.2, 0.013, 1.0, 1e-9])
@pytest.mark.parametrize("combine", ["mean", "sum"])
@pytest.mark.parametrize("trim", ["global", "tensor"])
def test_ties(density: float, combine: str, trim: str) -> None:
    groups = [stack(1, 4, 40, 30), stack(2, 4, 25, tau=0.1), stack(3, 4, 300, 250, tau=1e-3)]
    known = learned(groups, density=density, trim=trim)
    expected = paper_ties([differences(*g).reshape(4, -1) for g in groups], 1.2, density, combine, trim)
    for (thetas, base), update in zip(groups, expected, strict=True):
        found = ties(thetas, base=base, scale=1.2, density=density, combine=combine, **known)
        close(found.tensor, base, update.reshape(base.shape))


@given(
    seed=st.integers(0, 999),
    density=st.floats(0.001, 1),
    levels=st.sampled_from([2, 5, 10_000]),
    exponent=st.integers(-120, 120),
)
@settings(deadline=None, max_examples=60)
def test_the_threshold_is_the_exact_kth_largest(seed: int, density: float, levels: int, exponent: int) -> None:
    """Few levels give many equal magnitudes; exponents reach denormal and huge numbers."""
    generator = torch.Generator().manual_seed(seed)
    taus = torch.randint(-levels, levels + 1, (3, 700), generator=generator).float() * 2.0**exponent
    groups = [(part, torch.zeros(part.shape[1])) for part in taus.split([5, 400, 295], 1)]
    known = learned(groups, density=density, trim="global")
    keep = max(1, int(density * 700))
    assert known["thresholds"] == [row.abs().sort(descending=True).values[keep - 1].item() for row in taus]
    json.dumps(known)


def test_a_zero_sum_takes_the_majoritys_sign() -> None:
    base = torch.zeros(4)
    thetas = torch.tensor([[1.0, 2, 3, -1], [-1.0, 2, 3, -1]])
    known = learned([(thetas, base)], density=1.0, trim="tensor")
    assert known == {"thresholds": None, "majority": 1}
    assert ties(thetas, base=base, density=1.0, trim="tensor", **known).tensor.tolist() == [1, 2, 3, -1]
    assert ties(thetas, None, -1, base=base, density=1.0).tensor.tolist() == [-1, 2, 3, -1]
    assert ties(thetas, None, 0, base=base, density=1.0).tensor.tolist() == [0, 2, 3, -1]


def test_the_majority_is_of_the_whole_tower() -> None:
    """The tensor with the tie votes plus, all the rest minus."""
    tie = torch.tensor([[1.0, 5.0], [-1.0, 5.0]]), torch.zeros(2)
    rest = -torch.ones(2, 9), torch.zeros(9)
    for trim in ("global", "tensor"):
        known = learned([tie, rest], density=1.0, trim=trim)
        assert known["majority"] == -1
        assert ties(tie[0], base=tie[1], density=1.0, **known).tensor.tolist() == [-1, 5]


def test_ties_at_density_one_with_agreeing_signs_is_the_mean() -> None:
    generator = torch.Generator().manual_seed(4)
    base = torch.randn(30, 20, generator=generator)
    thetas = base + torch.rand(5, 30, 20, generator=generator) * torch.randn(30, 20, generator=generator).sign()
    known = learned([(thetas, base)], density=1.0, trim="global")
    found = ties(thetas, base=base, density=1.0, **known).tensor
    assert torch.allclose(found, thetas.double().mean(0).float(), atol=3e-7)


def test_ties_of_identical_towers() -> None:
    """At full density that tower; at 20 % not."""
    thetas, base = stack(5, 1, 12, 10)
    same = thetas.repeat(3, 1, 1)
    for density, equal in ((1.0, True), (0.2, False)):
        known = learned([(same, base)], density=density, trim="global")
        found = ties(same, base=base, density=density, **known).tensor
        assert torch.allclose(found, thetas[0], atol=3e-7) == equal


@pytest.mark.parametrize(("threshold", "agree"), [(0.4, 2), (1.5, 1), (0.6, 3), ((0.1, 0.9, 0.4, 2.0), 2)])
def test_consensus(threshold: float | tuple[float, ...], agree: int) -> None:
    thetas, base = stack(6, 4, 300, 250)
    taus = differences(thetas, base)
    multi = base.double().numpy() + taus.sum(0)
    towers = thetas.double().numpy()
    each = threshold if isinstance(threshold, tuple) else (threshold,) * 4
    start = base.double().numpy()
    masks = [np.abs(start - theta) > own * np.abs(multi - theta) for theta, own in zip(towers, each, strict=True)]
    keep = np.sum(masks, 0) >= agree
    assert 0.01 < keep.mean() < 0.99
    found = consensus(thetas, base=base, scale=0.5, threshold=threshold, agree=agree).tensor
    close(found, base, 0.5 * taus.sum(0) * keep)


def test_consensus_of_one_tower_is_the_base() -> None:
    thetas, base = stack(7, 1, 6, 5)
    assert torch.equal(consensus(thetas, base=base).tensor, base)


@pytest.mark.parametrize(("beta", "gamma"), [(0.85, 0.993), (0.0, 1.0), (0.5, 0.6), (0.0, 0.9)])
@pytest.mark.parametrize("shape", [(300, 250), (37,)])
def test_breadcrumbs(beta: float, gamma: float, shape: tuple[int, ...]) -> None:
    thetas, base = stack(8, 3, *shape)
    total = np.zeros(shape)
    for tau in differences(thetas, base):
        order = np.argsort(np.abs(tau).reshape(-1))
        n = len(order)
        kept = order[int(np.floor(beta * n)) : int(np.ceil(gamma * n))]
        mask = np.zeros(n)
        mask[kept] = 1
        total += tau * mask.reshape(shape)
    close(breadcrumbs(thetas, base=base, scale=0.7, beta=beta, gamma=gamma).tensor, base, 0.7 * total)


def test_breadcrumbs_of_nothing_is_the_base() -> None:
    thetas, base = stack(9, 2, 20)
    assert torch.equal(breadcrumbs(thetas, base=base, beta=0.9, gamma=0.5).tensor, base)


def test_dare_keeps_a_random_share_and_rescales_it() -> None:
    thetas, base = stack(10, 1, 300, 250)
    tau = differences(thetas, base)[0]
    found = dare(thetas, "name", base=base, scale=1.0, density=0.25, seed=3).tensor.double().numpy()
    update = found - base.double().numpy()
    kept = np.abs(update) > 0
    assert abs(kept.mean() - 0.25) < 0.01  # six standard deviations
    assert np.abs(update - 4 * tau)[kept].max() <= 3e-7 * np.abs(found).max()
    left, right = kept[:, :125].mean(), kept[:, 125:].mean()
    assert abs(left - right) < 0.02


def test_dares_masks_differ_between_towers_names_and_seeds_only() -> None:
    thetas, base = stack(11, 1, 2000)
    two = thetas.repeat(2, 1)
    alone = dare(thetas, "a", base=base, scale=1.0, density=0.5).tensor
    assert torch.equal(alone, dare(thetas, "a", base=base, scale=1.0, density=0.5).tensor)
    assert not torch.equal(alone, dare(thetas, "b", base=base, scale=1.0, density=0.5).tensor)
    assert not torch.equal(alone, dare(thetas, "a", base=base, scale=1.0, density=0.5, seed=1).tensor)
    # The second of two equal towers has a mask of its own: some entries are there once, some twice.
    times = ((dare(two, "a", base=base, scale=1.0, density=0.5).tensor - base) / (thetas[0] - base) / 2).round()
    assert {0.0, 1.0, 2.0} == set(times[(thetas[0] - base).abs() > 1e-3].tolist())


@pytest.mark.parametrize("method", [dare, della])
def test_without_dropping_the_random_methods_are_the_plain_ones(method: Callable) -> None:
    thetas, base = stack(12, 3, 40, 30)
    full = {"density": 1.0} | ({"epsilon": 0.0} if method is della else {})
    found = method(thetas, "x", base=base, scale=0.4, **full).tensor
    if method is dare:
        assert torch.allclose(found, task_arithmetic(thetas, base=base, scale=0.4).tensor, atol=3e-7)
    else:
        taus = differences(thetas, base)
        agree = np.where(np.sign(taus) == np.sign(taus.sum(0)), taus, 0)
        close(found, base, 0.4 * agree.sum(0) / np.maximum((agree != 0).sum(0), 1))


def test_della_drops_by_rank_and_rescales() -> None:
    """One tower of 400 equal rows: how often each column stays is its rank's probability."""
    columns = 50
    row = torch.linspace(0.1, 1, columns)[torch.randperm(columns, generator=torch.Generator().manual_seed(1))]
    base = torch.zeros(4000, columns)
    found = della(row.expand(1, 4000, columns), "x", base=base, scale=1.0, density=0.5, epsilon=0.6).tensor
    rank = np.argsort(np.argsort(-row.numpy()))
    stay = 1 - (0.5 - 0.6 / 2 + 0.6 * rank / columns)
    share = (found != 0).double().mean(0).numpy()
    assert np.abs(share - stay).max() < 5 * np.sqrt(0.25 / 4000)
    for column in range(columns):
        values = found[:, column][found[:, column] != 0]
        assert torch.allclose(values, row[column] / torch.tensor(stay[column]).float(), rtol=1e-6)


def test_della_elects_signs_and_averages_what_agrees() -> None:
    thetas, base = stack(13, 4, 30, 20)
    singles = []
    for t in range(4):  # each tower's own mask, seen alone in its place
        alone = torch.stack([thetas[s] if s == t else base for s in range(4)])
        singles.append(della(alone, "x", base=base, scale=1.0).tensor.double().numpy() - base.double().numpy())
    pruned = np.array(singles)
    agree = np.where(np.sign(pruned) == np.sign(pruned.sum(0)), pruned, 0)
    expected = agree.sum(0) / np.maximum((agree != 0).sum(0), 1)
    found = della(thetas, "x", base=base, scale=1.0).tensor.double().numpy() - base.double().numpy()
    assert np.abs(found - expected).max() <= 1e-6


def test_probabilities_end_at_zero_and_one() -> None:
    thetas, base = stack(14, 2, 10, 30)
    for density in (1.0, 0.01):
        assert torch.isfinite(della(thetas, "x", base=base, density=density, epsilon=1.0).tensor).all()


SPARSE = ("ties", "consensus", "breadcrumbs", "dare", "della")


@pytest.mark.parametrize("name", SPARSE)
def test_inputs_stay_and_where_nothing_moved_is_the_base(name: str) -> None:
    rule = METHODS[name].load()[0]
    thetas, base = stack(15, 3, 9, 8)
    base[0, 0] = -0.0
    more = keywords_of(rule, {"key": "x", "thresholds": [0.0] * 3, "majority": 1})
    before = thetas.clone(), base.clone()
    rule(thetas, base=base, **more)
    assert torch.equal(thetas, before[0]) and torch.equal(base, before[1])
    still = rule(torch.stack([base] * 3), base=base, **more).tensor
    assert torch.equal(still, base) and torch.signbit(still[0, 0])


# Through the merge


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    return [str(write_tower(tmp_path / f"t{i}", i)) for i in (1, 2, 3)]


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(write_tower(tmp_path / "base", 0))


def merged(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def in_order(record: MergeRecord) -> list[dict[str, torch.Tensor]]:
    """The towers in the record's canonical order."""
    return [weights(int(source.label[1:])) for source in record.sources]


@pytest.mark.parametrize("trim", ["global", "tensor"])
def test_ties_on_whole_towers(tmp_path: Path, sources: list[str], base: str, trim: str) -> None:
    record = hfcart.merge(sources, method="ties", base=base, trim=trim, scale=1.1, out=str(tmp_path / "m"))
    assert {"trim": trim, "combine": "mean", "density": 0.2, "scale": 1.1}.items() <= record.recipe.items()
    found, zero, towers = merged(tmp_path / "m"), weights(0), in_order(record)
    taus = [differences(torch.stack([t[n] for t in towers]), zero[n]).reshape(3, -1) for n in found]
    expected = paper_ties(taus, 1.1, 0.2, trim=trim)
    for name, update in zip(found, expected, strict=True):
        close(found[name], zero[name], update.reshape(zero[name].shape))


@pytest.mark.parametrize("name", ["ties", "consensus"])
def test_entrywise_methods_do_not_care_how_qkv_are_grouped(
    tmp_path: Path, sources: list[str], base: str, name: str
) -> None:
    for qkv in ("split", "fused"):
        hfcart.merge(sources, method=name, base=base, qkv=qkv, out=str(tmp_path / qkv))
    split, fused = merged(tmp_path / "split"), merged(tmp_path / "fused")
    assert all(torch.equal(split[n], fused[n]) for n in split)


def test_the_seed_is_part_of_the_recipe(tmp_path: Path, sources: list[str], base: str) -> None:
    one = hfcart.merge(sources, method="dare", base=base, out=str(tmp_path / "a"))
    two = hfcart.merge(sources, method="dare", base=base, seed=1, out=str(tmp_path / "b"))
    assert (one.recipe["seed"], two.recipe["seed"]) == (0, 1)
    assert not torch.equal(*(next(iter(merged(tmp_path / x).values())) for x in "ab"))


def test_a_fit_is_journalled_and_not_gathered_again(tmp_path: Path, sources: list[str], base: str) -> None:
    """Killed after the statistics and one group: the journal's are used, and the bytes are the same."""

    class Stop(Progress):
        def __init__(self, after: int) -> None:
            self.stages: list[str] = []
            self.after, self.groups = after, 0

        def start(self, label: str, total: int, unit: str) -> None:
            self.stages.append(label)

        def advance(self, amount: int) -> None:
            if self.stages[-1] == "Merging" and amount:
                self.groups += 1
                if self.groups == self.after:
                    raise KeyboardInterrupt

    def recipe(out: str):
        return make({"sources": sources, "method": "ties", "base": base, "out": str(tmp_path / out), "workers": 1})

    whole, killed = Stop(0), Stop(3)
    expected = merge_folder(recipe("whole"), whole)
    assert whole.stages[:3] == [f"Measuring for TIES-Merging, pass {number}" for number in (1, 2, 3)]
    with pytest.raises(KeyboardInterrupt):
        merge_folder(recipe("m"), killed)
    lines = [json.loads(line) for line in (tmp_path / "m.partial" / "journal.jsonl").read_text().splitlines()]
    assert sum("fit" in line for line in lines) == 1 and len(lines) > 3
    resumed = Stop(0)
    assert merge_folder(recipe("m"), resumed) == expected
    assert not any("Measuring" in stage for stage in resumed.stages)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "ties", "trim": "layer"}, "trim: 'layer' is none of global, tensor"),
        ({"method": "ties", "density": 0.0}, "density: 0.0 is not above 0"),
        ({"method": "ties", "density": 1.1}, "density: 1.1 is above 1"),
        ({"method": "dare", "seed": -1}, "seed: -1 is below 0"),
        ({"method": "dare", "seed": True}, "seed: "),
        ({"method": "cart", "lines": 0.5}, "lines scales what a method adds to the base, which cart does not do"),
        ({"method": "ties", "lines": 0.5, "scale": 1.0}, "leave scale out"),
        ({"method": "ties", "lines": float("inf")}, "lines: inf is not a finite number"),
        ({"method": "cart", "svc": 1.0}, "svc calibrates what a method adds to the base, which cart does not do"),
        ({"method": "ties", "svc": 1.0, "adapt": ["mnist"]}, "svc changes the directions that adapt scales"),
        ({"method": "ties", "svc": 1.0, "coefficients": {"x": [1.0, 1.0]}}, "directions that coefficients scales"),
        ({"method": "ties", "svc": 0.0}, "svc: 0.0 is not a finite number above 0"),
        ({"method": "ties", "svc": float("nan")}, "svc: nan is not a finite number above 0"),
        ({"method": "ties", "seed": 1}, "ties has no seed"),
        ({"method": "consensus", "agree": 0}, "agree: 0 is below 1"),
        ({"method": "consensus", "threshold": [0.4]}, "threshold: 1 number for 2 sources"),
        ({"method": "consensus", "threshold": [0.4, -0.1]}, "threshold: -0.1 is below 0"),
    ],
)
def test_parameters_out_of_place(fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        hfcart.merge(["a", "b"], **fields)


def test_thresholds_go_with_their_sources(tmp_path: Path, sources: list[str], base: str) -> None:
    one = hfcart.merge(sources, method="consensus", base=base, threshold=[0.1, 0.4, 3.0], out=str(tmp_path / "a"))
    order, own = [int(source.label[1:]) for source in one.sources], {1: 0.1, 2: 0.4, 3: 3.0}
    assert one.recipe["threshold"] == [own[i] for i in order]
    other = hfcart.merge(
        sources[::-1], method="consensus", base=base, threshold=[3.0, 0.4, 0.1], out=str(tmp_path / "b")
    )
    assert one == other
    swapped = hfcart.merge(sources, method="consensus", base=base, threshold=[3.0, 0.4, 0.1], out=str(tmp_path / "c"))
    assert swapped.files["model.safetensors"] != one.files["model.safetensors"]
    same = hfcart.merge(sources, method="consensus", base=base, threshold=[0.4] * 3, out=str(tmp_path / "d"))
    plain = hfcart.merge(sources, method="consensus", base=base, out=str(tmp_path / "e"))
    assert same.files["model.safetensors"] == plain.files["model.safetensors"]
    assert make(one.recipe).parameters["threshold"] == tuple(one.recipe["threshold"])


def test_every_fit_gives_what_its_rules_need() -> None:
    for method in METHODS.values():
        if method.fit and not method.statistics:
            defaults = {p.name: p.default for p in method.parameters}
            known = learned([stack(1, 2, 5)], **keywords_of(function(method.fit), defaults))
            assert set(known) == set(keywords_of(method.load()[0], known))


@pytest.mark.parametrize(
    ("name", "d", "layers", "patch", "text"), [("B/32", 768, 12, 32, 512), ("L/14", 1024, 24, 14, 768)]
)
def test_the_density_of_the_authors_on_the_tower_alone(name: str, d: int, layers: int, patch: int, text: int) -> None:
    """Their encoder has no text transformer left, but its embeddings, norm and projection: 20 % of it all is kept."""
    vision = {"hidden_size": d, "intermediate_size": 4 * d, "num_hidden_layers": layers, "patch_size": patch}
    config = {"model_type": "clip_vision_model", "num_attention_heads": d // 64, "projection_dim": text, **vision}
    arch = read_architecture(config, "x")
    tower, projected = (
        sum(math.prod(shape) for shape in expected_shapes(arch, projection=kept).values()) for kept in (False, True)
    )
    unused = (49408 + 77 + text + 2) * text + 1  # token and position embeddings, projection, norm; logit scale
    assert f"{0.2 * (projected + unused) / tower:.3f} for ViT-{name}" in METHODS["ties"].note
