"""TSV-M, Iso-C, Iso-CTS and WUDI against float64 NumPy written from the papers' formulas, and their identities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from towers import weights, write_tower

import hfcart
from hfcart.errors import UsageError
from hfcart.maths.thin_svd import polar, thin_svd
from hfcart.methods import METHODS
from hfcart.methods.cart.rule import cart
from hfcart.methods.dc_merge.rule import dc_merge
from hfcart.methods.iso_c.rule import iso_c
from hfcart.methods.iso_cts.rule import iso_cts
from hfcart.methods.shared.base import base as keep_base
from hfcart.methods.shared.mean_task_vector import mean_task_vector
from hfcart.methods.tsv_m.rule import tsv_m
from hfcart.methods.wudi.rule import wudi

SHAPES = [(40, 24), (24, 40), (32, 32)]


def towers(seed: int, tasks: int, shape: tuple[int, int], tau: float = 0.02) -> tuple[torch.Tensor, torch.Tensor]:
    """T versions of a matrix, each a power-law task vector of its own away from a base."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    noise = torch.randn(tasks, *shape, generator=generator)
    u, s, vh = torch.linalg.svd(noise, full_matrices=False)
    decay = 1 / torch.arange(1, s.shape[1] + 1)
    return base + tau * (u * (s * decay)[:, None]) @ vh, base


def close(found: torch.Tensor, base: torch.Tensor, update: np.ndarray, tolerance: float = 1e-4) -> None:
    """Equal within what the update's accuracy and float32's storing of base + update allow."""
    start = base.double().numpy()
    error = np.linalg.norm(found.double().numpy() - start - update)
    assert error <= tolerance * np.linalg.norm(update) + 6e-8 * np.linalg.norm(start)


def svd(a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.linalg.svd(a, full_matrices=False)


def orthogonal(a: np.ndarray) -> np.ndarray:
    p, _, qt = svd(a)
    return p @ qt


def differences(thetas: torch.Tensor, base: torch.Tensor) -> np.ndarray:
    return thetas.double().numpy() - base.double().numpy()


def paper_tsv(taus: np.ndarray) -> np.ndarray:
    k = min(taus.shape[1:]) // len(taus)
    parts = [svd(tau) for tau in taus]
    u = orthogonal(np.concatenate([p[0][:, :k] for p in parts], 1))
    vt = orthogonal(np.concatenate([p[2][:k] for p in parts], 0))
    return u @ np.diag(np.concatenate([p[1][:k] for p in parts])) @ vt


def paper_iso_c(taus: np.ndarray) -> np.ndarray:
    u, s, vt = svd(taus.sum(0))
    return s.mean() * u @ vt


def paper_iso_cts(taus: np.ndarray, fraction: float = 0.8) -> np.ndarray:
    u, s, vt = svd(taus.sum(0))
    tasks, r = len(taus), len(s)
    total = round((r - int(fraction * r)) / tasks) * tasks
    c = r - total
    us, ss, vts = [], [], []
    for tau in taus:
        tu, ts, tvt = svd(tau - u[:, :c] @ u[:, :c].T @ tau)
        n = total // tasks
        us.append(tu[:, :n]), ss.append(ts[:n]), vts.append(tvt[:n])
    us.append(u[:, :c]), ss.append(s[:c]), vts.append(vt[:c])
    return np.concatenate(ss).mean() * orthogonal(np.concatenate(us, 1)) @ orthogonal(np.concatenate(vts, 0))


def paper_dc_merge(taus: np.ndarray, share: float = 0.001) -> np.ndarray:
    tasks, r = len(taus), min(taus.shape[1:])
    k = r // tasks
    parts = [svd(tau) for tau in taus]
    u = orthogonal(np.concatenate([p[0][:, :k] for p in parts], 1))
    vt = orthogonal(np.concatenate([p[2][:k] for p in parts], 0))
    coordinates = np.stack([u.T @ ((p[0][:, :k] * p[1][:k]) @ p[2][:k]) @ vt.T for p in parts])
    for own in coordinates:
        own[np.abs(own) < np.sort(np.abs(own).ravel())[-min(own.size, max(1, int(share * r * r)))]] = 0
    sign = np.sign(coordinates.sum(0))
    agree = (np.sign(coordinates) == sign) & (sign != 0)
    merged = (coordinates * agree).sum(0) / np.maximum(1, agree.sum(0))
    block = np.arange(tasks * k) // k
    return u @ np.where(block[:, None] == block, merged, 0) @ vt


def paper_wudi(taus: torch.Tensor, steps: int, lr: float) -> torch.Tensor:
    """By autograd and torch's own Adam on the loss as the paper writes it."""
    tau = torch.nn.Parameter(taus.sum(0))
    adam = torch.optim.Adam([tau], lr=lr)
    for _ in range(steps):
        adam.zero_grad()
        loss = sum((((tau - own) @ own.T) ** 2).sum() / (own**2).sum() for own in taus)
        loss.backward()
        adam.step()
    return tau.detach()


@pytest.mark.parametrize("tasks", [2, 3, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_tsv_m(shape: tuple[int, int], tasks: int) -> None:
    thetas, base = towers(1, tasks, shape)
    found = tsv_m(thetas, base=base, scale=0.7)
    taus = differences(thetas, base)
    close(found.tensor, base, 0.7 * paper_tsv(taus))
    k = min(shape) // tasks
    energies = [(s[:k] ** 2).sum() / (s**2).sum() for s in (svd(tau)[1] for tau in taus)]
    assert found.rank == k and found.energy == pytest.approx(np.mean(energies), rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_tsv_m_of_one_tower_is_that_tower(shape: tuple[int, int]) -> None:
    thetas, base = towers(2, 1, shape)
    found = tsv_m(thetas, base=base)
    assert found.rank == min(shape) and found.energy == pytest.approx(1.0)
    assert (found.tensor - thetas[0]).abs().max() <= 1e-6 * thetas.abs().max()


def test_tsv_m_where_two_tasks_are_the_same_and_one_did_nothing() -> None:
    """Coinciding directions are counted once: the result is that task's leading part, not noise."""
    thetas, base = towers(3, 1, (24, 24))
    found = tsv_m(torch.stack([thetas[0], thetas[0], base]), base=base).tensor
    u, s, vt = svd(differences(thetas, base)[0])
    close(found, base, (u[:, :8] * s[:8]) @ vt[:8], 1e-5)


@pytest.mark.parametrize("share", [0.001, 0.02, 1.0])
@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_dc_merge(shape: tuple[int, int], tasks: int, share: float) -> None:
    thetas, base = towers(13, tasks, shape)
    found = dc_merge(thetas, base=base, scale=1.2, kept=share)
    close(found.tensor, base, 1.2 * paper_dc_merge(differences(thetas, base), share))
    assert found.rank == min(shape) // tasks


def test_dc_merge_of_one_tower_with_every_coordinate_is_that_tower() -> None:
    thetas, base = towers(14, 1, (40, 24))
    close(dc_merge(thetas, base=base, kept=1.0).tensor, base, differences(thetas, base)[0])


def test_dc_merge_of_more_towers_than_directions_is_the_base() -> None:
    thetas, base = towers(15, 5, (4, 3))
    assert torch.equal(dc_merge(thetas, base=base).tensor, base)


@pytest.mark.parametrize("tasks", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_iso_c_has_a_flat_spectrum(shape: tuple[int, int], tasks: int) -> None:
    thetas, base = towers(4, tasks, shape, tau=1.0)
    found = iso_c(thetas, base=base, scale=1.3).tensor
    close(found, base, 1.3 * paper_iso_c(differences(thetas, base)))
    values = svd(found.double().numpy() - base.double().numpy())[1]
    assert values.max() - values.min() <= 1e-5 * values.max()


def test_iso_c_leaves_the_null_space_alone() -> None:
    base = torch.zeros(6, 6)
    theta = torch.diag(torch.tensor([4.0, 2.0, 0, 0, 0, 0]))
    found = iso_c(theta[None], base=base, scale=1.0).tensor
    assert torch.allclose(found, torch.diag(torch.tensor([1.0, 1, 0, 0, 0, 0])), atol=1e-7)


@pytest.mark.parametrize("tasks", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("common", [0.8, 0.5])
def test_iso_cts(shape: tuple[int, int], tasks: int, common: float) -> None:
    thetas, base = towers(5, tasks, shape)
    found = iso_cts(thetas, base=base, scale=1.1, common=common).tensor
    close(found, base, 1.1 * paper_iso_cts(differences(thetas, base), common))


def test_iso_cts_with_everything_common_is_iso_c() -> None:
    thetas, base = towers(6, 3, (20, 30))
    everything = iso_cts(thetas, base=base, scale=1.0, common=1.0).tensor
    assert torch.allclose(everything, iso_c(thetas, base=base, scale=1.0).tensor, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_wudi_follows_the_papers_loss(shape: tuple[int, int]) -> None:
    thetas, base = (t.double() for t in towers(7, 3, shape))
    expected = paper_wudi(thetas - base, 60, 1e-4)
    moved = torch.linalg.norm(expected - (thetas - base).sum(0))
    assert moved > 0.1 * torch.linalg.norm(expected)  # the comparison means something
    found = wudi(thetas, base=base, steps=60, lr=1e-4).tensor
    assert torch.linalg.norm(found - base - expected) <= 1e-8 * torch.linalg.norm(expected)
    single = wudi(thetas.float(), base=base.float(), steps=60, lr=1e-4).tensor.double()
    assert torch.linalg.norm(single - base - expected) <= 1e-4 * torch.linalg.norm(expected) + 1e-7 * base.norm()


def test_wudi_without_steps_or_movement() -> None:
    thetas, base = towers(8, 2, (12, 9))
    close(wudi(thetas, base=base, steps=0).tensor, base, differences(thetas, base).sum(0), 1e-6)
    assert torch.equal(wudi(torch.stack([base, base]), base=base, steps=3).tensor, base)
    alone = torch.stack([thetas[0], base])
    assert torch.isfinite(wudi(alone, base=base, steps=3).tensor).all()


@pytest.mark.parametrize("method", [tsv_m, iso_c, iso_cts, dc_merge])
@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1e18])
def test_spectral_methods_at_any_scale(method, scale: float) -> None:
    """With no base in the way the update scales with the towers."""
    thetas, _ = towers(9, 3, (16, 12), tau=1.0)
    zero = torch.zeros(16, 12)
    plain, scaled = method(thetas, base=zero).tensor, method(thetas * scale, base=zero).tensor
    assert torch.linalg.norm(scaled / scale - plain) <= 1e-5 * torch.linalg.norm(plain)


@pytest.mark.parametrize("method", [tsv_m, iso_c, iso_cts, dc_merge, wudi, mean_task_vector])
def test_order_and_inputs_do_not_matter(method) -> None:
    thetas, base = towers(10, 4, (18, 12))
    before = thetas.clone(), base.clone()
    one, other = method(thetas, base=base).tensor, method(thetas.flip(0), base=base).tensor
    assert torch.linalg.norm(one - other) <= 1e-4 * torch.linalg.norm(one - base)
    assert torch.equal(thetas, before[0]) and torch.equal(base, before[1])
    # Nothing moved: the base, to the bit.
    assert torch.equal(method(torch.stack([base, base]), base=base).tensor, base)


def test_the_rest() -> None:
    thetas, base = torch.randn(3, 7), torch.randn(7)
    found = mean_task_vector(thetas, base=base, scale=0.4).tensor
    assert torch.allclose(found, base + 0.4 * (thetas.mean(0) - base), atol=1e-6)
    assert keep_base(thetas, base=base).tensor is base


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (3, 7), (150, 200)])
@pytest.mark.parametrize("decay", [0.0, 1.0, 4.0])
def test_thin_svd(shape: tuple[int, int], decay: float) -> None:
    a = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    a = (u * torch.arange(1, len(s) + 1) ** -decay) @ vh
    for k in {1, (len(s) + 1) // 2, len(s)}:
        found = thin_svd(a, k)
        exact = torch.linalg.svdvals(a)
        assert torch.allclose(found.values, exact[:k], rtol=1e-9)
        assert found.energy == pytest.approx(((exact[:k] ** 2).sum() / (exact**2).sum()).item())
        for side in (found.left, found.right):
            assert (side.T @ side - torch.eye(k)).abs().max() <= 1e-8
        rest = torch.linalg.norm(a - (found.left * found.values) @ found.right.T)
        assert rest <= exact[k:].square().sum().sqrt() * (1 + 1e-9) + 1e-9 * exact[0]


def test_thin_svd_knows_what_is_not_there() -> None:
    a = torch.outer(torch.arange(1.0, 6), torch.ones(4))
    found = thin_svd(a)
    assert found.values[0] > 1 and not found.values[1:].any()
    assert not found.left[:, 1:].any() and not found.right[:, 1:].any()
    assert not thin_svd(torch.zeros(3, 4)).left.any()
    with pytest.raises(ValueError, match="rank 5"):
        thin_svd(a, 5)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or Inf"):
            thin_svd(torch.full((2, 2), bad))


def test_polar_of_an_ill_conditioned_matrix() -> None:
    u, _, vh = torch.linalg.svd(torch.randn(30, 20, dtype=torch.float64), full_matrices=False)
    found = polar((u * torch.logspace(0, -6, 20, dtype=torch.float64)) @ vh)
    assert (found.matrix() - u @ vh).abs().max() <= 1e-8


# Through the merge


@pytest.mark.parametrize(
    ("method", "paper", "fields"),
    [
        ("tsv_m", paper_tsv, {"scale": 0.9}),
        ("iso_c", paper_iso_c, {"scale": 1.3}),
        ("iso_cts", paper_iso_cts, {"scale": 1.5, "common": 0.8}),
        ("dc_merge", paper_dc_merge, {"scale": 1.1}),
    ],
)
@pytest.mark.parametrize("qkv", ["split", "fused"])
def test_whole_towers(tmp_path: Path, method: str, paper, fields: dict, qkv: str) -> None:
    sources = [str(write_tower(tmp_path / f"t{i}", i)) for i in (1, 2, 3)]
    base = str(write_tower(tmp_path / "base", 0))
    record = hfcart.merge(sources, method=method, base=base, qkv=qkv, out=str(tmp_path / "m"), **fields)
    found = load_file(tmp_path / "m" / "model.safetensors")
    assert {"method": method, **fields}.items() <= record.recipe.items()
    zero, others = weights(0), [weights(i) for i in (1, 2, 3)]
    layer = "vision_model.encoder.layers.1."
    units = [[f"{layer}mlp.fc1.weight"], [f"{layer}self_attn.out_proj.weight"]]
    attention = [f"{layer}self_attn.{x}_proj.weight" for x in "qkv"]
    units += [attention] if qkv == "fused" else [[name] for name in attention]
    for names in units:
        start = torch.cat([zero[n] for n in names])
        taus = differences(torch.stack([torch.cat([o[n] for n in names]) for o in others]), start)
        close(torch.cat([found[n] for n in names]), start, fields["scale"] * paper(taus))
    for name in (f"{layer}mlp.fc1.bias", "vision_model.embeddings.position_embedding.weight"):
        tau = sum(o[name].double() - zero[name].double() for o in others).numpy() / 3
        close(found[name], zero[name], fields["scale"] * tau, 1e-6)
    again = hfcart.merge(sources[::-1], method=method, base=base, qkv=qkv, out=str(tmp_path / "r"), workers=3, **fields)
    assert again == record


@pytest.mark.parametrize(("method", "paper", "projection"), [("tsv_m", paper_tsv, True), ("iso_c", paper_iso_c, False)])
def test_every_matrix_on_request(tmp_path: Path, method: str, paper, projection: bool) -> None:
    """As in the authors' code: whatever has two dimensions, the position embedding and the projection too."""
    sources = [str(write_tower(tmp_path / f"t{i}", i, projection=projection)) for i in (1, 2, 3)]
    base = str(write_tower(tmp_path / "base", 0, projection=projection))
    fields = {"method": method, "base": base, "with_projection": projection, "scale": 0.9}
    record = hfcart.merge(sources, **fields, matrices="all-2d", out=str(tmp_path / "m"))
    hfcart.merge(sources, **fields, out=str(tmp_path / "blocks"))
    assert record.recipe["matrices"] == "all-2d"
    found, plain = (load_file(tmp_path / folder / "model.safetensors") for folder in ("m", "blocks"))
    zero, others = weights(0, projection=projection), [weights(i, projection=projection) for i in (1, 2, 3)]
    more = {"vision_model.embeddings.position_embedding.weight"} | (
        {"visual_projection.weight"} if projection else set()
    )
    assert {name for name in found if not torch.equal(found[name], plain[name])} == more
    for name in more:
        close(found[name], zero[name], 0.9 * paper(differences(torch.stack([o[name] for o in others]), zero[name])))
        tau = sum(o[name].double() - zero[name].double() for o in others).numpy() / 3
        close(plain[name], zero[name], 0.9 * tau, 1e-6)
    also = "the position embedding and the projection" if projection else "the position embedding"
    card, usual = ((tmp_path / folder / "README.md").read_text() for folder in ("m", "blocks"))
    assert f"The attention and MLP weights, and the other matrices ({also}), get the base plus" in card
    assert f"every other tensor, {also} among them, gets the base plus" in usual
    again = hfcart.merge(sources[::-1], **fields, matrices="all-2d", out=str(tmp_path / "r"), workers=1)
    assert again == record


@pytest.mark.parametrize(
    ("method", "paper"), [("tsv_m", paper_tsv), ("iso_c", paper_iso_c), ("iso_cts", paper_iso_cts)]
)
def test_the_projection_is_merged_as_the_authors_models_hold_it(tmp_path: Path, method: str, paper) -> None:
    """OpenCLIP's visual.proj is width × dim, the transpose of ours: what is done to the left side is its width's."""
    sources = [str(write_tower(tmp_path / f"t{i}", i, projection=True)) for i in (1, 2, 3)]
    base = str(write_tower(tmp_path / "base", 0, projection=True))
    fields = {"method": method, "base": base, "with_projection": True, "scale": 0.9, "matrices": "all-2d"}
    hfcart.merge(sources, **fields, out=str(tmp_path / "m"))
    found = load_file(tmp_path / "m" / "model.safetensors")
    zero, others = weights(0, projection=True), [weights(i, projection=True) for i in (1, 2, 3)]
    for name, side in (("visual_projection.weight", "T"), ("vision_model.embeddings.position_embedding.weight", "")):
        taus = differences(torch.stack([o[name] for o in others]), zero[name])
        expected, other = paper(taus.transpose(0, 2, 1)).T, paper(taus)
        close(found[name], zero[name], 0.9 * (expected if side else other))
        # Only Iso-CTS has sides; for it, the wrong one is far away.
        distance = np.linalg.norm(expected - other) / np.linalg.norm(other)
        assert distance > 0.1 if method == "iso_cts" and side else distance < 1e-9


@pytest.mark.parametrize("rule", [cart, tsv_m, iso_c])
@pytest.mark.parametrize("shape", SHAPES)
def test_only_iso_cts_has_sides(rule, shape: tuple[int, int]) -> None:
    """The others give the transpose of what they make of the transpose, and need not be told which way round."""
    thetas, base = towers(11, 3, shape)
    keywords, turned = ({}, {}) if rule is cart else ({"base": base}, {"base": base.T.contiguous()})
    one, other = rule(thetas, **keywords).tensor, rule(thetas.transpose(1, 2).contiguous(), **turned).tensor
    assert torch.linalg.norm(one - other.T) <= 1e-4 * torch.linalg.norm(one - base) + 1e-7 * torch.linalg.norm(base)
    assert {m.name for m in METHODS.values() if m.any_matrix} == {"cart", "tsv_m", "iso_c", "iso_cts", "dc_merge"}


def test_wudi_on_whole_towers(tmp_path: Path) -> None:
    sources = [str(write_tower(tmp_path / f"t{i}", i)) for i in (1, 2, 3)]
    base = str(write_tower(tmp_path / "base", 0))
    hfcart.merge(sources, method="wudi", base=base, out=str(tmp_path / "m"), steps=40, lr=1e-4)
    found, zero = load_file(tmp_path / "m" / "model.safetensors"), weights(0)
    name = "vision_model.encoder.layers.0.mlp.fc2.weight"
    taus = torch.stack([weights(i)[name].double() - zero[name].double() for i in (1, 2, 3)])
    close(found[name], zero[name], paper_wudi(taus, 40, 1e-4).numpy())
    for other in ("vision_model.encoder.layers.0.mlp.fc2.bias", "vision_model.embeddings.patch_embedding.weight"):
        assert torch.equal(found[other], zero[other])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "iso_cts", "common": 0.0}, "common: 0.0 is not above 0"),
        ({"method": "iso_cts", "common": 1.5}, "common: 1.5 is above 1"),
        ({"method": "wudi", "steps": -1}, "steps: -1 is below 0"),
        ({"method": "wudi", "lr": float("nan")}, "lr: nan is not a finite number"),
        ({"method": "wudi", "steps": 2.5}, "steps: "),
        ({"method": "wudi", "scale": 1.0}, "wudi has no scale: it takes lr, steps"),
        (
            {"method": "wudi", "matrices": "all-2d"},
            "all-2d goes with cart, dc_merge, iso_c, iso_cts, tsv_m, not with wudi",
        ),
        ({"method": "cart", "common": 0.8}, "cart has no common: it takes rank, scale"),
    ],
)
def test_parameters_out_of_place(fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        hfcart.merge(["a", "b"], **fields)
