"""linear, slerp, karcher, model_stock and sce against float64 NumPy from their formulas, and their identities."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from running import Run
from safetensors.torch import load_file
from towers import weights, write_tower

import hfcart
from hfcart.errors import UsageError
from hfcart.methods import METHODS, Parameter
from hfcart.methods.average.rule import average
from hfcart.methods.karcher.rule import karcher
from hfcart.methods.linear.rule import linear
from hfcart.methods.model_stock.rule import model_stock
from hfcart.methods.sce.rule import sce
from hfcart.methods.slerp.rule import slerp
from hfcart.recipes.merge_recipe import Recipe
from hfcart.recipes.parameter_fields import PARAMETERS


def stack(seed: int, tasks: int, *shape: int, tau: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return base + tau * torch.randn(tasks, *shape, generator=generator), base


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    assert np.abs(found.double().numpy() - expected).max() <= 6.1e-8 * np.abs(expected).max()


def test_linear() -> None:
    thetas, _ = stack(1, 3, 300, 250)
    close(linear(thetas, weights=(1, 2, 0.5)).tensor, np.tensordot([1, 2, 0.5], thetas.double().numpy(), 1) / 3.5)
    assert torch.equal(linear(thetas).tensor, average(thetas).tensor)
    assert torch.equal(linear(thetas, weights=(0, 7, 0)).tensor, thetas[1])


@pytest.mark.parametrize("tau", [3.0, 0.3, 1e-3])
@pytest.mark.parametrize("t", [0.5, 0.2, 0.0, 1.0])
def test_slerp(tau: float, t: float) -> None:
    thetas, _ = stack(2, 2, 300, 250, tau=tau)
    a, b = thetas.double().numpy().reshape(2, -1)
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    expected = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    found = slerp(thetas, weights=(1 - t, t)).tensor
    close(found, expected.reshape(300, 250))
    assert torch.equal(slerp(thetas.flip(0), weights=(t, 1 - t)).tensor, found)


def test_slerp_where_there_is_no_arc() -> None:
    theta = stack(3, 1, 40)[0][0]
    for other, expected in ((theta, theta), (-theta, theta / 2), (torch.zeros(40), theta * 0.75), (2 * theta, None)):
        found = slerp(torch.stack([theta, other]), weights=(3, 1)).tensor
        assert torch.allclose(found, 1.25 * theta if expected is None else expected, atol=1e-6)


@pytest.mark.parametrize("tau", [3.0, 0.3, 1e-3])
@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_karcher_is_where_the_pulls_cancel(tasks: int, tau: float) -> None:
    """The tangent vectors to all towers add up to nothing, which makes it the mean; its norm is their mean norm."""
    thetas, _ = stack(4, tasks, 60, 50, tau=tau)
    rows = thetas.double().numpy().reshape(tasks, -1)
    norms = np.linalg.norm(rows, axis=1)
    found = karcher(thetas.double()).tensor.numpy().reshape(-1)
    assert np.linalg.norm(found) == pytest.approx(norms.mean(), rel=1e-12)
    u = found / np.linalg.norm(found)
    pull = 0
    for x in rows / norms[:, None]:
        along = x - (x @ u) * u
        pull = pull + np.arccos(x @ u) * along / np.linalg.norm(along)
    assert np.linalg.norm(pull) <= 1e-9 * tasks
    close(karcher(thetas).tensor, found.reshape(60, 50))


def test_karcher_of_two_is_the_middle_of_their_arc() -> None:
    thetas, _ = stack(5, 2, 30, 20)
    thetas[1] *= thetas[0].norm() / thetas[1].norm()
    assert torch.allclose(karcher(thetas).tensor, slerp(thetas).tensor, atol=1e-6)


def test_karcher_where_there_are_no_directions() -> None:
    theta = stack(6, 1, 30)[0][0]
    zero = torch.zeros(30)
    assert torch.equal(karcher(torch.stack([zero, zero])).tensor, zero)
    assert torch.allclose(karcher(torch.stack([zero, theta])).tensor, theta, atol=1e-6)
    assert torch.isfinite(karcher(torch.stack([theta, -theta])).tensor).all()


@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_model_stock(tasks: int) -> None:
    thetas, base = stack(7, tasks, 300, 250)
    thetas = thetas + 0.2  # the task vectors share a direction
    taus = (thetas.double() - base.double()).numpy().reshape(tasks, -1)
    pairs = [
        taus[i] @ taus[j] / np.linalg.norm(taus[i]) / np.linalg.norm(taus[j])
        for i in range(tasks)
        for j in range(i + 1, tasks)
    ]
    cosine = np.mean(pairs)
    assert 0.1 < cosine < 0.9
    t = tasks * cosine / (1 + (tasks - 1) * cosine)
    close(
        model_stock(thetas, base=base).tensor,
        t * thetas.double().numpy().mean(0) + (1 - t) * base.double().numpy(),
    )


def test_model_stock_at_its_ends() -> None:
    theta, base = stack(8, 1, 20, 10)
    assert torch.equal(model_stock(theta, base=base).tensor, theta[0])
    apart = torch.stack([theta[0], base - (theta[0] - base)])
    assert torch.equal(model_stock(apart, base=base).tensor, base)


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_sce(density: float) -> None:
    thetas, base = stack(9, 4, 300, 250)
    taus = (thetas.double() - base.double()).numpy()
    variance = taus.var(0)
    keep = np.sort(variance, axis=None)[::-1][max(1, int(density * variance.size)) - 1]
    kept = taus * (variance >= keep)
    energy = (kept**2).sum((1, 2))
    share = energy / energy.sum()
    majority = np.where(kept.sum(0) >= 0, 1, -1)
    mask = (np.sign(kept) == majority) * share[:, None, None]
    update = (kept * mask).sum(0) / np.where(mask.sum(0) > 0, mask.sum(0), 1)
    close(sce(thetas, base=base, density=density).tensor, base.double().numpy() + update)


def test_sce_where_nothing_varies() -> None:
    """Identical towers vary nowhere: nothing is selected; with everything selected they come back."""
    theta, base = stack(10, 1, 12)
    same = theta.repeat(3, 1)
    assert torch.equal(sce(same, base=base, density=0.5).tensor, base)
    assert torch.allclose(sce(same, base=base, density=1.0).tensor, theta[0], atol=1e-6)
    assert torch.equal(sce(torch.stack([base, base]), base=base).tensor, base)


@pytest.mark.parametrize("name", ["linear", "karcher", "model_stock"])
def test_identical_towers_give_that_tower(name: str) -> None:
    rule = METHODS[name].load()[0]
    theta, base = stack(11, 1, 40, 30)
    options = {"base": base} if METHODS[name].needs_base else {}
    for tasks in (1, 2, 5):
        found = rule(theta.repeat(tasks, 1, 1), **options).tensor
        assert (found - theta[0]).abs().max() <= 3e-7, tasks
    assert torch.equal(slerp(theta.repeat(2, 1, 1)).tensor, theta[0])


@pytest.mark.parametrize("name", ["linear", "slerp", "karcher", "model_stock", "sce"])
def test_order_and_inputs(name: str) -> None:
    rule = METHODS[name].load()[0]
    thetas, base = stack(12, 2, 20, 15)
    options = {"base": base} if METHODS[name].needs_base else {}
    before = thetas.clone()
    one, other = rule(thetas, **options).tensor, rule(thetas.flip(0), **options).tensor
    assert torch.allclose(one, other, atol=1e-6) and torch.equal(thetas, before)


# Through the merge


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_weights_go_with_their_sources(tmp_path: Path, method: str) -> None:
    sources = [str(write_tower(tmp_path / f"t{i}", i)) for i in (1, 2)]
    one = hfcart.merge(sources, method=method, weights=[3, 1], out=str(tmp_path / "a"))
    other = hfcart.merge(sources[::-1], method=method, weights=(1, 3), out=str(tmp_path / "b"))
    assert one == other
    found = load_file(tmp_path / "a" / "model.safetensors")
    bias = "vision_model.encoder.layers.0.mlp.fc1.bias"
    rule = METHODS[method].load()[0]
    assert torch.equal(found[bias], rule(torch.stack([weights(1)[bias], weights(2)[bias]]), weights=(3.0, 1.0)).tensor)
    # The recorded recipe names sources and weights in one order, and gives the same again.
    recorded = yaml.safe_load((tmp_path / "a" / "recipe.yaml").read_text())
    places = {source["path"]: weight for source, weight in zip(recorded["sources"], recorded["weights"], strict=True)}
    assert places == {"t1": 3.0, "t2": 1.0}
    again = [str(tmp_path / source["path"]) for source in recorded["sources"]]
    assert one == hfcart.merge(again, method=method, weights=recorded["weights"], out=str(tmp_path / "c"))


@pytest.mark.parametrize(
    ("sources", "fields", "message"),
    [
        (["a", "b", "c"], {"method": "slerp"}, "slerp merges 2 sources, not 3"),
        (["a", "b"], {"method": "linear", "weights": [1.0]}, "weights: 1 number for 2 sources"),
        (["a", "b"], {"method": "linear", "weights": [1.0, -1.0]}, "weights: -1.0 is below 0"),
        (["a", "b"], {"method": "slerp", "weights": [0, 0]}, "weights: they are all zero"),
        (["a", "b"], {"method": "slerp", "weights": ["x", 1]}, "weights: "),
        (["a", "b"], {"method": "karcher", "weights": [1, 1]}, "karcher has no weights: it takes no parameters"),
    ],
)
def test_parameters_out_of_place(sources: list[str], fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        hfcart.merge(sources, **fields)


# The registry, the recipe and the command line


def test_every_parameter_is_a_field_of_the_recipe_and_takes_its_default() -> None:
    assert set(PARAMETERS) <= set(Recipe.model_fields)
    for method in METHODS.values():
        for parameter in method.parameters:
            if parameter.default is None:
                continue
            parameter.check(parameter.default)
            fields = {"sources": ("a", "b"), "method": method.name, parameter.name: parameter.default}
            fields |= {"tasks": "8"} if method.statistics else {}
            assert Recipe(**fields).parameters[parameter.name] == parameter.default


def test_one_name_is_one_kind() -> None:
    kinds: dict[str, Parameter] = {}
    for method in METHODS.values():
        for parameter in method.parameters:
            assert kinds.setdefault(parameter.name, parameter).kind == parameter.kind
            assert kinds[parameter.name].choices == parameter.choices


def test_the_command_line_takes_every_parameter(hfcart: Run, tmp_path: Path) -> None:
    for name, seed in (("t1", 1), ("t2", 2), ("base", 0)):
        write_tower(tmp_path / name, seed)
    options = ["--method", "linear", "--weights", "1,0.5", "--quiet", "--out", "a"]
    done = hfcart("merge", "t1", "t2", *options)
    assert done.returncode == 0, done.stderr
    assert sorted(yaml.safe_load((tmp_path / "a" / "recipe.yaml").read_text())["weights"]) == [0.5, 1.0]
    options = ["--method", "ties", "--density", "0.3", "--trim", "tensor", "--combine", "sum", "--base", "base"]
    done = hfcart("merge", "t1", "t2", *options, "--lines", "0.5", "--json", "--out", "b")
    assert done.returncode == 0, done.stderr
    recipe = json.loads(done.stdout)["recipe"]
    assert {"density": 0.3, "trim": "tensor", "combine": "sum", "lines": 0.5}.items() <= recipe.items()
    done = hfcart("verify", "b")
    assert done.returncode == 0 and "Identical" in done.stdout, done.stderr
    for wrong, words in ((["--weights", "1,x"], "'x' is not a number"), (["--agree", "1.5"], "--agree")):
        done = hfcart("merge", "t1", "t2", *wrong)
        assert done.returncode == 2 and words in " ".join(done.stderr.split()) and "Traceback" not in done.stderr


def test_another_method_than_the_recipes_leaves_its_parameters_out(hfcart: Run, tmp_path: Path) -> None:
    for name, seed in (("t1", 1), ("t2", 2), ("base", 0)):
        write_tower(tmp_path / name, seed)
    recipe = {"sources": ["t1", "t2"], "method": "ties", "base": "base", "density": 0.3, "lines": 0.5, "out": "m"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    done = hfcart("merge", "--recipe", "r.yaml", "--method", "cart")
    assert done.returncode == 0, done.stderr
    assert "cart takes no density: the one in r.yaml is left out." in done.stderr
    assert "cart takes no lines: the one in r.yaml is left out." in done.stderr
