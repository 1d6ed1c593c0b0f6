"""Fisher merging and RegMean: the rules, the statistics against plain autograd, and the real command."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_evaluate import COLOURS, TOWERS, _own_cache, card, clip, zoo  # noqa: F401 (fixtures)
from transformers import CLIPModel

from hfcart.demo.hub import EmbeddedHub
from hfcart.methods.fisher import fisher
from hfcart.methods.regmean import regmean
from hfcart.names import is_matrix
from hfcart.progress import Progress
from hfcart.statistics import _fisher, _gram
from hfcart.statistics._store import opened, write
from hfcart.towers import load_tower

Zoo = tuple[EmbeddedHub, Path]


def stack(seed: int, tasks: int, *shape: int, tau: float = 0.02) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) + tau * torch.randn(tasks, *shape, generator=generator)


def gram_of(seed: int, tasks: int, rows: int, n: int) -> torch.Tensor:
    x = torch.randn(tasks, rows, n, generator=torch.Generator().manual_seed(seed))
    return x.mT @ x


def squares(seed: int, tasks: int, *shape: int) -> torch.Tensor:
    return torch.rand(tasks, *shape, generator=torch.Generator().manual_seed(seed)) ** 8 * 1e-3


# --- the rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (20, 30), (300, 500)])
def test_fisher_is_its_formula(shape: tuple[int, ...]) -> None:
    thetas, f, norms = stack(1, 4, *shape), squares(2, 4, *shape), [0.5, 2.0, 1.0, 0.1]
    found = fisher(thetas, f, norms, floor=1e-6).tensor.double().numpy()
    w = np.maximum(f.double().numpy(), 1e-6) / np.array(norms).reshape(4, *[1] * len(shape))
    expected = (w * thetas.double().numpy()).sum(0) / w.sum(0)
    mean = thetas.double().numpy().mean(0)
    assert np.linalg.norm(expected - mean) > 1e-3 * np.linalg.norm(mean)
    assert np.linalg.norm(found - expected) <= 6e-8 * np.linalg.norm(expected)
    assert (f < 1e-6).any() and (f > 1e-6).any()  # the floor matters, and not everywhere


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(9, 12), (40, 24)])
def test_regmean_is_its_formula(shape: tuple[int, int], alpha: float) -> None:
    thetas, grams = stack(3, 3, *shape, tau=0.3), gram_of(4, 3, 60, shape[1])
    left, right = np.zeros((shape[1],) * 2), np.zeros(shape[::-1])
    for theta, gram in zip(thetas.double().numpy(), grams.double().numpy(), strict=True):
        scaled = alpha * gram + (1 - alpha) * np.diag(np.diag(gram))
        left += scaled
        right += scaled @ theta.T
    expected = np.linalg.solve(left, right).T
    mean = thetas.double().numpy().mean(0)
    found = regmean(thetas, grams, off_diagonal=alpha).tensor.double().numpy()
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected - mean) + 6e-8 * np.linalg.norm(mean)
    assert np.linalg.norm(expected - mean) > 1e-2 * np.linalg.norm(mean)


def test_regmean_is_the_least_squares_solution() -> None:
    """With off_diagonal 1 no other layer is nearer to the towers' outputs."""
    x = torch.randn(3, 50, 12, generator=torch.Generator().manual_seed(1)).double()
    thetas = stack(5, 3, 8, 12, tau=0.5)
    found = regmean(thetas, (x.mT @ x).float(), off_diagonal=1.0).tensor.double()
    rows, outputs = torch.cat(list(x)), torch.cat([xt @ theta.double().T for xt, theta in zip(x, thetas, strict=True)])
    best = torch.linalg.lstsq(rows, outputs).solution.T
    assert torch.allclose(found, best, atol=1e-5)


def test_identities() -> None:
    theta, grams, f = stack(6, 1, 10, 16)[0], gram_of(7, 4, 40, 16), squares(8, 4, 10, 16)
    theta[0, 0] = -0.0
    same = torch.stack([theta] * 4)
    for found in (fisher(same, f, [1.0, 2.0, 3.0, 4.0]), regmean(same, grams)):
        assert torch.equal(found.tensor, theta) and bool(torch.signbit(found.tensor[0, 0]))
    assert torch.equal(fisher(theta[None], f[:1], [1.0]).tensor, theta)
    assert torch.equal(regmean(theta[None], grams[:1]).tensor, theta)
    thetas = stack(9, 4, 10, 16)
    mean = thetas.double().mean(0).float()
    ulp = 6e-8 * float(mean.abs().max())
    assert (fisher(thetas, f[:1].expand(4, -1, -1), [2.0] * 4).tensor - mean).abs().max() <= ulp
    assert (regmean(thetas, grams[:1].expand(4, -1, -1)).tensor - mean).abs().max() <= ulp
    # The order of the towers does not matter, the order of the statistics follows theirs.
    turned = torch.tensor([2, 0, 3, 1])
    one = regmean(thetas, grams).tensor
    assert torch.allclose(regmean(thetas[turned], grams[turned]).tensor, one, atol=1e-6)
    assert not torch.allclose(regmean(thetas[turned], grams).tensor, one, atol=1e-4)
    norms = [1.0, 2.0, 0.5, 1.5]
    one = fisher(thetas, f, norms).tensor
    assert torch.allclose(fisher(thetas[turned], f[turned], [norms[i] for i in turned.tolist()]).tensor, one, atol=1e-6)
    assert not torch.allclose(fisher(thetas[turned], f, norms).tensor, one, atol=1e-4)


def test_directions_that_no_input_has_keep_the_average() -> None:
    thetas, grams = stack(10, 3, 10, 16, tau=0.3), gram_of(11, 3, 40, 16)
    grams[:, 5, :] = grams[:, :, 5] = 0.0  # an input that is always zero
    mean = thetas.double().mean(0).float()
    for alpha in (0.9, 1.0):
        found = regmean(thetas, grams, off_diagonal=alpha).tensor
        assert torch.equal(found[:, 5], mean[:, 5]) and not torch.allclose(found[:, 4], mean[:, 4], atol=1e-3)
    few = gram_of(12, 3, 4, 16)  # twelve directions of sixteen
    found = regmean(thetas, few, off_diagonal=1.0).tensor.double()
    null = torch.linalg.eigh(few.double().sum(0)).eigenvectors[:, :4]
    assert ((found - mean.double()) @ null).abs().max() <= 1e-4
    x = torch.linalg.eigh(few.double().sum(0)).eigenvectors[:, 4:]
    exact = thetas.double().mean(0) + (
        sum((t - thetas.double().mean(0)) @ g for t, g in zip(thetas.double(), few.double(), strict=True))
        @ torch.linalg.pinv(few.double().sum(0), rtol=1e-5)
    )
    assert ((found - exact) @ x).abs().max() <= 1e-4
    assert torch.equal(regmean(thetas, torch.zeros(3, 16, 16)).tensor, mean)  # nothing known of any input


def test_fisher_without_information_is_refused_or_the_average() -> None:
    thetas = stack(13, 2, 5)
    with pytest.raises(ValueError, match="norms"):
        fisher(thetas, torch.zeros(2, 5), [1.0, 0.0])
    assert torch.equal(fisher(thetas, torch.zeros(2, 5), [1.0, 1.0], floor=0.0).tensor, thetas.double().mean(0).float())


# --- the statistics -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(clip: Path) -> CLIPModel:  # noqa: F811
    return CLIPModel.from_pretrained(clip).eval()


def threads(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))


def batches(count: int, size: int, seed: int) -> list[torch.Tensor]:
    return list(torch.randn(count, size, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("classes", [3, 14])
@pytest.mark.parametrize("workers", [1, 3])
def test_fisher_is_that_of_autograd_one_example_at_a_time(clip: Path, running, classes: int, workers: int) -> None:  # noqa: F811
    """Every parameter's, exact over few classes and with one draw an example over many."""
    generator = torch.Generator().manual_seed(3)
    head = torch.nn.functional.normalize(torch.randn(classes, 24, generator=generator), dim=-1)
    projection, scale = running.visual_projection.weight.detach().clone(), 9.0
    pixels, drawn = batches(3, 2, 1), list(torch.rand(3, 2, generator=generator, dtype=torch.float64))
    tower = load_tower(str(clip), Progress()).model
    names = {"vision_model." + n.removeprefix("vision_model."): p for n, p in tower.named_parameters()}
    totals = {n: torch.zeros(p.shape) for n, p in names.items()} | {"visual_projection.weight": torch.zeros(24, 32)}
    options = {"head": head, "projection": projection, "scale": scale}
    with threads(workers) as pool, _fisher.fishers(tower, totals, pool, **options) as add:
        add(pixels[:2], drawn[:2])
        add(pixels[2:], drawn[2:])

    exact = load_tower(str(clip), Progress()).model.double()
    parameters = {"vision_model." + n.removeprefix("vision_model."): p for n, p in exact.named_parameters()}
    proj = projection.double().requires_grad_()
    parameters["visual_projection.weight"] = proj
    expected = {n: torch.zeros(p.shape, dtype=torch.float64) for n, p in parameters.items()}
    for image, u in zip(torch.cat(pixels).double(), torch.cat(drawn), strict=True):
        features = exact(pixel_values=image[None]).pooler_output @ proj.T
        logp = (scale * torch.nn.functional.normalize(features, dim=-1) @ head.double().T).log_softmax(-1)[0]
        p = logp.exp().detach()
        ys = range(classes) if classes <= 10 else [int((p.cumsum(0) <= u).sum())]
        for y in ys:
            found = torch.autograd.grad(logp[y], list(parameters.values()), retain_graph=True)
            for name, gradient in zip(parameters, found, strict=True):
                expected[name] += gradient**2 * (p[y] if classes <= 10 else 1.0)
    assert totals.keys() == expected.keys()
    whole = sum(float(e.sum()) for e in expected.values())
    for name, values in expected.items():
        assert torch.allclose(totals[name].double(), values, rtol=2e-3, atol=1e-6 * float(values.max()) + 1e-12 * whole)


def test_gram_is_that_of_every_layer_s_inputs(clip: Path) -> None:  # noqa: F811
    tower = load_tower(str(clip), Progress()).model
    shapes = {"vision_model." + n.removeprefix("vision_model."): tuple(p.shape) for n, p in tower.named_parameters()}
    wanted = _gram.gram_shapes(shapes)
    assert len(wanted) == 2 * 4 and not any(".k_proj." in n or ".v_proj." in n for n in wanted)
    pixels = batches(5, 3, 2)
    found = {}
    for workers in (1, 4):
        totals = {n: torch.zeros(s) for n, s in wanted.items()}
        with threads(workers) as pool, _gram.grams(tower, totals, pool) as add:
            add(pixels[:4], None)
            add(pixels[4:], None)
        found[workers] = totals
    assert all(torch.equal(found[1][n], found[4][n]) for n in wanted)
    exact = tower.double()
    expected: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(_, args, __) -> None:
            x = args[0].reshape(-1, args[0].shape[-1])
            expected[name] = expected.get(name, 0) + x.T @ x

        return hook

    for name, module in exact.named_modules():
        full = "vision_model." + name.removeprefix("vision_model.") + ".weight"
        if is_matrix(full):
            module.register_forward_hook(keep(full))
    with torch.no_grad():
        exact(pixel_values=torch.cat(pixels).double())
    for name, value in expected.items():  # of k and v too: they are q's
        stored = found[1][_gram.stored_under(name)].double()
        assert torch.linalg.norm(stored - value) <= 1e-5 * torch.linalg.norm(value), name


def test_statistics_on_disk_are_proven_when_read(tmp_path: Path) -> None:
    values = {"b": torch.rand(3, 4), "a": torch.rand(5)}
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    path = tmp_path / "cache" / "x.safetensors"
    assert opened(path, shapes) is None
    write(path, values, images=7, undecodable=1, norm=2.5)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    found = opened(path, shapes)
    assert found is not None and (found.images, found.undecodable, found.norm) == (7, 1, 2.5)
    into = torch.empty(3, 4)
    found.read("b", into)
    found.close()
    assert torch.equal(into, values["b"])
    assert opened(path, {**shapes, "a": (4,)}) is None and opened(path, {"a": (5,)}) is None
    good = path.read_bytes()
    for broken in (b"", good[:-4], good[:-1] + bytes([good[-1] ^ 1]), b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}"):
        path.write_bytes(broken)
        assert opened(path, shapes) is None
    write(path, values | {"a": torch.full((5,), float("nan"))}, images=7, undecodable=1, norm=2.5)
    assert opened(path, shapes) is None
    save_file(values, path)
    assert opened(path, shapes) is None
