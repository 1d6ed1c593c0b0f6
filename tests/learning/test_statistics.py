"""Fisher merging and RegMean: the rules, the statistics against plain autograd, and the real command."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import parquet
from running import Commands
from safetensors.torch import load_file, save_file
from three_towers import COLOURS, TOWERS, card
from transformers import CLIPModel

from hfcart.clip.tensor_names import is_matrix
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.learning.statistics import _fisher, _gram
from hfcart.learning.statistics._store import open_stored, write
from hfcart.methods.fisher.rule import fisher
from hfcart.methods.regmean.rule import regmean
from hfcart.progress import Progress
from hfcart.zero_shot.loaded_tower import load_tower

pytestmark = pytest.mark.usefixtures("own_cache")
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
def running(clip: Path) -> CLIPModel:
    return CLIPModel.from_pretrained(clip).eval()


def threads(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))


def batches(count: int, size: int, seed: int) -> list[torch.Tensor]:
    return list(torch.randn(count, size, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("classes", [3, 14])
@pytest.mark.parametrize("workers", [1, 3])
def test_fisher_is_that_of_autograd_one_example_at_a_time(clip: Path, running, classes: int, workers: int) -> None:
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


def test_gram_is_that_of_every_layer_s_inputs(clip: Path) -> None:
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
    assert open_stored(path, shapes) is None
    write(path, values, images=7, undecodable=1, norm=2.5)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    found = open_stored(path, shapes)
    assert found is not None and (found.images, found.undecodable, found.norm) == (7, 1, 2.5)
    into = torch.empty(3, 4)
    found.read("b", into)
    found.close()
    assert torch.equal(into, values["b"])
    assert open_stored(path, {**shapes, "a": (4,)}) is None and open_stored(path, {"a": (5,)}) is None
    good = path.read_bytes()
    for broken in (b"", good[:-4], good[:-1] + bytes([good[-1] ^ 1]), b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}"):
        path.write_bytes(broken)
        assert open_stored(path, shapes) is None
    write(path, values | {"a": torch.full((5,), float("nan"))}, images=7, undecodable=1, norm=2.5)
    assert open_stored(path, shapes) is None
    save_file(values, path)
    assert open_stored(path, shapes) is None


# --- the command ----------------------------------------------------------------------------------------------------


def tasks_of(root: Path) -> str:
    return ",".join(f"{root}/images{i}.yaml" for i in (1, 2, 3))


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def header(file: Path) -> dict[str, str]:
    data = file.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_the_whole_way(zoo: Zoo, commands: Commands, tmp_path: Path, method: str) -> None:
    """Planned, merged, repeated from nothing with other workers and streamed, verified, and held to the formula."""
    hub, root = zoo
    command = ["merge", *TOWERS, "--method", method, "--tasks", tasks_of(root), "--examples", "30", "--seed", "5"]
    kind = "fisher" if method == "fisher" else "gram"
    cache = tmp_path / "hf-home" / "assets" / "hfcart" / "statistics" / kind
    plan, done = commands(hub, [[*command, "--dry-run"], [*command, "--out", "a"]])
    assert plan.returncode == 0 and "user/t1 on images1" in " ".join(plan.stdout.split()), plan.stderr
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "a" / "hfcart.json").read_text())
    for source, data in zip(record["sources"], record["data"], strict=True):
        number = source["label"][-1]
        assert data["task"] == f"images{number}" and data["source"] == source["label"]
        assert data["dataset"]["repo"] == f"user/images{number}" and data["dataset"]["split"] == "train"
        assert len(data["dataset"]["commit"]) == 40 and (data["images"], data["undecodable"]) == (30, 0)
        assert data["statistics"] == kind and data["part"] == "train"
    readme = (tmp_path / "a" / "README.md").read_text()
    assert "looked at images, without their labels" in readme and "datasets/user/images2/tree/" in readme
    files = sorted(cache.iterdir())
    assert len(files) == 3 and all(file.suffix == ".safetensors" for file in files)
    before = [file.read_bytes() for file in files]
    shutil.rmtree(cache)
    cache.mkdir()
    files[0].write_bytes(before[0][:-7])  # what is broken is made again
    streamed = ["merge", "--recipe", "a/recipe.yaml", "--workers", "1", "--stream", "--out", "b"]
    again, verified = commands(hub, [streamed, ["verify", "a"]])
    assert again.returncode == 0, again.stderr
    assert verified.returncode == 0 and "Identical" in verified.stdout, verified.stderr
    looked = re.findall(r"on Images \((\d) of 3\) \(30 images\)", again.stderr)
    assert looked == ["1", "2", "3"] and "on Images" not in verified.stderr  # once is enough
    assert [file.read_bytes() for file in sorted(cache.iterdir())] == before
    repeated = json.loads((tmp_path / "b" / "hfcart.json").read_text())
    assert repeated["files"] == record["files"] and repeated["data"] == record["data"]

    found, towers = loaded(tmp_path / "a"), [loaded(root / source["label"][5:]) for source in record["sources"]]
    by_digest = {json.loads(header(file)["hfcart"])["sha256"]: file for file in files}
    kept = [load_file(by_digest[data["sha256"]]) for data in record["data"]]
    norms = [sum(float(v.double().square().sum()) for n, v in k.items() if "visual" not in n) ** 0.5 for k in kept]
    moved = 0.0
    for name, value in found.items():
        thetas = torch.stack([tower[name.removeprefix("vision_model.")] for tower in towers]).double()
        expected = thetas.mean(0)
        if method == "fisher":
            w = torch.stack([k[name].double().clamp(min=1e-6) / n for k, n in zip(kept, norms, strict=True)])
            expected = (w * thetas).sum(0) / w.sum(0)
        elif is_matrix(name):
            grams = [k[_gram.stored_under(name)].double() for k in kept]
            grams = [0.9 * g + 0.1 * torch.diag(g.diagonal()) for g in grams]
            total = sum(t @ g for t, g in zip(thetas, grams, strict=True))
            expected = torch.linalg.solve(sum(grams).T, total.T).T
        moved += float((expected - thetas.mean(0)).norm())
        assert (value.double() - expected).norm() <= 1e-6 * expected.norm() + 1e-30, name
    assert moved > 0.1


def test_esm_the_whole_way(zoo: Zoo, commands: Commands, tmp_path: Path) -> None:
    """Gathered, its norms measured, merged, repeated with one worker, streamed, in another order, and verified."""
    command = ["merge", *TOWERS, "--method", "esm", "--base", "user/clip", "--tasks", tasks_of(zoo[1])]
    turned = ["merge", *TOWERS[::-1], *command[4:]]
    streamed = ["merge", "--recipe", "a/recipe.yaml", "--workers", "1", "--stream", "--out", "b"]
    fused = [*command, "--qkv", "fused", "--lines", "0.5", "--svc", "1", "--out", "d"]
    done = commands(zoo[0], [[*command, "--out", "a"], streamed, [*turned, "--out", "c"], fused, ["verify", "a"]])
    assert [each.returncode for each in done] == [0] * 5, "\n".join(each.stderr for each in done)
    records = [json.loads((tmp_path / name / "hfcart.json").read_text()) for name in "abc"]
    assert records[0]["files"] == records[1]["files"] == records[2]["files"]
    assert records[0]["data"][0]["images"] == 32 and "Identical" in done[4].stdout
    readme = (tmp_path / "a" / "README.md").read_text()
    assert "2602.20208" in readme and "looked at images, without their labels" in readme


def test_fused_qkv_share_their_gram(zoo: Zoo, commands: Commands, tmp_path: Path) -> None:
    """RegMean treats each row by itself, Fisher each entry: split or fused is the same merge, up to rounding."""
    hub, root = zoo
    ways = [(method, qkv) for method in ("regmean", "fisher") for qkv in ("split", "fused")]
    command = ["merge", *TOWERS, "--tasks", tasks_of(root), "--examples", "12"]
    lines = [[*command, "--method", method, "--qkv", qkv, "--out", f"{method}-{qkv}"] for method, qkv in ways]
    assert [done.returncode for done in commands(hub, lines)] == [0] * 4
    for method in ("regmean", "fisher"):
        one, other = loaded(tmp_path / f"{method}-split"), loaded(tmp_path / f"{method}-fused")
        assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


REFUSED: list[tuple[list[str], int, list[str]]] = [
    ([], 2, ["fisher looks at images", "--tasks 8"]),
    (["--tasks", "{root}/images1.yaml"], 2, ["trained into user/t2, user/t3", ",user/t2={root}/images1.yaml"]),
    (["--tasks", "{all},nobody=mnist"], 2, ["nobody is none of the sources"]),
    (["--tasks", "{all}", "--examples", "0"], 2, ["examples: 0 is below 1"]),
    (["--tasks", "{all}", "--floor", "-1"], 2, ["floor: -1.0 is below 0"]),
    (["--tasks", "{all}", "--method", "cart"], 2, ["cart looks at no images: leave tasks out"]),
    (["--tasks", "{all},user/t1={root}/closed.yaml"], 2, ["closed names no train split", "train_split"]),
    (["--tasks", "{all},user/t1={root}/broken.yaml"], 1, ["Of 9 images of", "user/t1=TASK"]),
    (["--tasks", "{all},user/t1={root}/gone.yaml"], 1, ["user/nowhere"]),
    (["--tasks", "{all}", "--base", "user/t2"], 1, ["user/t2"]),
]


def test_what_is_refused(zoo: Zoo, commands: Commands, tmp_path: Path) -> None:
    hub, root = zoo
    hub.create("user/broken", repo_type="dataset")
    data = {f"data/{part}-0.parquet": parquet([b"no image"] * 10, [0] * 10, COLOURS) for part in ("test", "train")}
    hub.commit("user/broken", data, repo_type="dataset")
    closed = {**card("user/images1", "closed"), "dataset": {"repo": "user/images1", "train_split": None}}
    for fields in (closed, card("user/broken", "broken"), card("user/nowhere", "gone")):
        (root / f"{fields['id']}.yaml").write_text(json.dumps(fields))
    lines = []
    for options, _, _ in REFUSED:
        method = [] if "--method" in options else ["--method", "fisher"]
        filled = [option.format(root=root, all=tasks_of(root)) for option in options]
        lines.append(["merge", *TOWERS, *method, *filled])
    for done, (_, code, words) in zip(commands(hub, lines), REFUSED, strict=True):
        told = " ".join(done.stderr.split())
        assert done.returncode == code and "Traceback" not in told, done.stderr
        assert all(word.format(root=root) in told for word in words), done.stderr
    assert not (tmp_path / "merged").exists()


def test_a_stranger_s_record_chooses_no_files_of_ours(zoo: Zoo, commands: Commands, tmp_path: Path) -> None:
    hub, root = zoo
    merge = ["merge", *TOWERS, "--method", "regmean", "--tasks", tasks_of(root), "--examples", "5", "--out", "m"]
    assert commands(hub, [merge])[0].returncode == 0
    text = (tmp_path / "m" / "hfcart.json").read_text()
    lines = []
    wrong = ("8", [f"{root}/images1.yaml"] * 3, None, [{"task": "mnist", "commit": "../x"}] * 3, [{}] * 3)
    for i, tasks in enumerate(wrong):
        record = json.loads(text)
        record["recipe"]["tasks"] = tasks
        shutil.copytree(tmp_path / "m", tmp_path / f"m{i}")
        (tmp_path / f"m{i}" / "hfcart.json").write_text(json.dumps(record))
        lines.append(["verify", f"m{i}"])
    for done in commands(hub, lines):
        assert done.returncode == 1 and "holds a recipe that cannot be run" in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr


def test_a_comparison_runs_them_too(zoo: Zoo, commands: Commands, tmp_path: Path) -> None:
    hub, root = zoo
    common = ["--references", "none", "--precision", "float32"]
    whole = ["compare", *TOWERS, "--tasks", tasks_of(root), "--methods", "fisher,regmean,regmean_pp", *common]
    some = ["compare", *TOWERS, "--tasks", f"{root}/images1.yaml", "--methods", "regmean", *common, "--out", "some"]
    alone = ["merge", *TOWERS, "--method", "fisher", "--tasks", tasks_of(root), "--out", "m"]
    done, merged, less = commands(hub, [whole, alone, some], apart=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "compare" / "compare.json").read_text())["rows"]
    assert [row["error"] for row in rows] == [None] * 3 and len({row["sha256"] for row in rows}) == 3
    assert rows[0]["parameters"] == {"floor": 1e-6, "examples": 256, "seed": 0}
    assert merged.returncode == 0, merged.stderr
    assert json.loads((tmp_path / "m" / "hfcart.json").read_text())["files"]["model.safetensors"] == rows[0]["sha256"]
    assert less.returncode == 1 and "none of these tasks is that of user/t2, user/t3" in " ".join(less.stdout.split())
