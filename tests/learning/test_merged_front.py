"""RegMean++: statistics through the merged front, held to a restatement in float64, and the real command."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from clips import parquet, write_images
from running import Commands
from safetensors.torch import load_file
from three_towers import COLOURS, TOWERS, card
from torch.nn.functional import scaled_dot_product_attention

from hfcart.clip.images import UndecodableImage, decode
from hfcart.clip.pixels import normalised, to_pixels
from hfcart.clip.tensor_names import is_matrix, layer_and_matrix
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.methods import METHODS
from hfcart.methods.declaration import check

Tensors = dict[str, torch.Tensor]
HEADS, EPS = 2, 1e-5  # of the towers


def pixels_of(data: bytes, fields: dict) -> torch.Tensor:
    found = []
    rows = pq.read_table(io.BytesIO(data)).column("image").to_pylist()
    held_out = random.Random(0).sample(range(len(rows)), len(rows) // 10)  # for validation
    for row in [row for i, row in enumerate(rows) if i not in held_out]:
        try:
            found.append(to_pixels(decode(row["bytes"]), fields))
        except UndecodableImage:
            continue
    return normalised(torch.stack(found), fields).double()


def norm(x: torch.Tensor, w: Tensors, name: str) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], EPS)


def embedded(w: Tensors, pixels: torch.Tensor) -> torch.Tensor:
    patch = w["embeddings.patch_embedding.weight"]
    patches = torch.nn.functional.conv2d(pixels, patch, stride=patch.shape[-1]).flatten(2).mT
    first = w["embeddings.class_embedding"].expand(len(patches), 1, -1)
    return norm(torch.cat([first, patches], 1) + w["embeddings.position_embedding.weight"], w, "pre_layrnorm")


def through(w: Tensors, block: int, x: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    """What comes out of a block, and what each of its linear layers took."""
    took: Tensors = {}

    def linear(name: str, rows: torch.Tensor) -> torch.Tensor:
        took[name.rsplit(".", 1)[-1]] = rows.reshape(-1, rows.shape[-1])
        return rows @ w[f"{root}{name}.weight"].T + w[f"{root}{name}.bias"]

    root = f"encoder.layers.{block}."
    y = norm(x, w, f"{root}layer_norm1")
    q, k, v = (linear(f"self_attn.{n}_proj", y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for n in "qkv")
    x = x + linear("self_attn.out_proj", scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    wide = linear("mlp.fc1", norm(x, w, f"{root}layer_norm2"))
    return x + linear("mlp.fc2", wide * torch.sigmoid(1.702 * wide)), took


def restated(towers: list[Tensors], images: list[torch.Tensor], alpha: float, *, merged_front: bool) -> Tensors:
    """RegMean++ as its paper has it, or RegMean, all at once in float64."""
    out = {name: torch.stack([tower[name] for tower in towers]).mean(0) for name in towers[0]}
    fronts = [out if merged_front else tower for tower in towers]
    states = [embedded(front, pixels) for front, pixels in zip(fronts, images, strict=True)]
    for block in range(2):
        ran = [through(tower, block, x) for tower, x in zip(towers, states, strict=True)]
        for name in [n for n in out if f"layers.{block}." in n and is_matrix(f"vision_model.{n}")]:
            _, kind = layer_and_matrix(f"vision_model.{name}") or (0, "")
            grams = [took[kind].T @ took[kind] for _, took in ran]
            scaled = [alpha * g + (1 - alpha) * torch.diag(g.diagonal()) for g in grams]
            right = sum(tower[name] @ g for tower, g in zip(towers, scaled, strict=True))
            out[name] = torch.linalg.solve(sum(scaled).T, right.T).T
        states = [through(front, block, x)[0] for front, x in zip(fronts, states, strict=True)]
    return out


def tower(file: Path) -> Tensors:
    return {n.removeprefix("vision_model."): t.double() for n, t in load_file(file / "model.safetensors").items()}


def test_the_whole_way(zoo: tuple[EmbeddedHub, Path], commands: Commands, tmp_path: Path) -> None:
    """Planned, merged as its formula says, gone on with where it stopped, in another order, by one worker, verified."""
    hub, root = zoo
    whole = [write_images(80, 4, 10 + i, names=COLOURS) for i in (1, 2, 3)]
    rows = pq.read_table(io.BytesIO(whole[1])).column("image").to_pylist()[:20]
    # A task with fewer images, of which some cannot be decoded.
    whole[1] = parquet([b"no image" if i in (0, 7) else row["bytes"] for i, row in enumerate(rows)], [0] * 20, COLOURS)
    hub.create("user/holed", repo_type="dataset")
    files = {f"data/{part}-00000-of-00001.parquet": whole[1] for part in ("test", "train")}
    hub.commit("user/holed", files, repo_type="dataset")
    (root / "holed.yaml").write_text(json.dumps(card("user/holed", "holed")))
    own = {"user/t1": "images1", "user/t2": "holed", "user/t3": "images3"}
    tasks = ",".join(f"{name}={root}/{task}.yaml" for name, task in own.items())
    command = ["merge", *TOWERS, "--method", "regmean_pp", "--tasks", tasks, "--examples", "80"]
    plan, done = commands(hub, [[*command, "--dry-run"], [*command, "--out", "a"]])
    assert done.returncode == 0, done.stderr
    # 3 tasks x 80 images x 5 tokens x 32 numbers, and for 2 blocks of 3 towers 3 x 32² + 64² numbers.
    told = "; 172.0 kB of Gram matrices in the cache, and 153.6 kB of hidden states while they are gathered"
    assert told in " ".join(plan.stdout.split()), plan.stdout
    assert "Block 2 of 2, every tower's own" in done.stderr and "row 7 of the train split of user/holed" in done.stderr

    record = json.loads((tmp_path / "a" / "hfcart.json").read_text())
    names = [source["label"] for source in record["sources"]]
    seen = {data["source"]: (data["images"], data["undecodable"], data["statistics"]) for data in record["data"]}
    assert seen == {"user/t1": (72, 0, "gram"), "user/t2": (16, 2, "gram"), "user/t3": (72, 0, "gram")}
    readme = (tmp_path / "a" / "README.md").read_text()
    assert "2508.03121" in readme and "regmean++" in readme.lower() and "| `off_diagonal`, α | `0.95` |" in readme

    towers = [tower(root / name[5:]) for name in names]
    fields = [json.loads((root / name[5:] / "preprocessor_config.json").read_text()) for name in names]
    images = [pixels_of(whole[int(name[-1]) - 1], f) for name, f in zip(names, fields, strict=True)]
    expected, other = (restated(towers, images, 0.95, merged_front=front) for front in (True, False))
    for name, value in tower(tmp_path / "a").items():
        update = expected[name] - torch.stack([each[name] for each in towers]).mean(0)
        assert (value - expected[name]).norm() <= 1e-4 * update.norm() + 1e-7 * expected[name].norm(), name
        if is_matrix(f"vision_model.{name}"):
            assert (other[name] - expected[name]).norm() > 1e-2 * update.norm(), name

    # Killed in the second block: the first is not looked at again.
    folders = list((tmp_path / "hf-home" / "assets" / "hfcart" / "statistics" / "gram").iterdir())
    assert len(folders) == 1
    files_of = {path.name: path for path in sorted(folders[0].iterdir())}
    assert list(files_of) == [f"{block:03d}-{place:03d}.safetensors" for block in (0, 1) for place in (0, 1, 2)]
    before = {name: path.read_bytes() for name, path in files_of.items()}
    first = files_of["000-001.safetensors"].stat().st_ino
    files_of["001-001.safetensors"].unlink()
    files_of["001-002.safetensors"].write_bytes(before["001-002.safetensors"][:-1])
    streamed = ["merge", "--recipe", "a/recipe.yaml", "--workers", "1", "--stream", "--out", "b"]
    turned = ["merge", *TOWERS[::-1], *command[4:], "--out", "c"]
    again, third, verified = commands(hub, [streamed, turned, ["verify", "a"]])
    assert again.returncode == third.returncode == verified.returncode == 0, again.stderr + third.stderr
    assert "Identical" in verified.stdout and "Block 1 of 2, every tower's own" not in again.stderr
    assert "Block 2 of 2, every tower's own" in again.stderr and "Block" not in third.stderr + verified.stderr
    assert {path.name: path.read_bytes() for path in folders[0].iterdir()} == before
    assert files_of["000-001.safetensors"].stat().st_ino == first
    for folder in "bc":
        assert json.loads((tmp_path / folder / "hfcart.json").read_text())["files"] == record["files"]


def test_what_is_kept_belongs_to_one_merge(zoo: tuple[EmbeddedHub, Path], commands: Commands, tmp_path: Path) -> None:
    """Fused, with another factor or without a tower the front is another; a missing file is gathered, not read."""
    hub, root = zoo
    tasks = ",".join(f"user/t{i}={root}/images{i}.yaml" for i in (1, 2, 3))
    command = ["merge", *TOWERS, "--method", "regmean_pp", "--tasks", tasks, "--examples", "6"]
    two = ["merge", *TOWERS[:2], *command[4:6], "--tasks", tasks.rpartition(",")[0], *command[8:]]
    lines = [command, [*command, "--qkv", "fused"], [*command, "--off-diagonal", "0.5"], two]
    done = commands(hub, [[*line, "--out", f"m{i}"] for i, line in enumerate(lines)])
    assert [each.returncode for each in done] == [0] * 4, "\n".join(each.stderr for each in done)
    merged = [tower(tmp_path / f"m{i}") for i in range(4)]
    assert all(torch.allclose(merged[0][name], merged[1][name], atol=1e-6) for name in merged[0])
    assert all(not torch.allclose(merged[0]["encoder.layers.1.mlp.fc1.weight"], each["encoder.layers.1.mlp.fc1.weight"])
               for each in merged[2:])  # fmt: skip
    statistics = tmp_path / "hf-home" / "assets" / "hfcart" / "statistics" / "gram"
    assert sorted(len(list(folder.iterdir())) for folder in statistics.iterdir()) == [4, 6, 6, 6]
    shutil.rmtree(tmp_path / "hf-home" / "assets")


@pytest.mark.parametrize("fields", [{"statistics": "fisher"}, {"task_vectors": True}, {"fit": "a:b"}])
def test_only_gram_matrices_come_through_the_merged_front(fields: dict) -> None:
    method = dataclasses.replace(METHODS["regmean_pp"], name="mine", **fields)
    with pytest.raises(ValueError, match="through_merged"):
        check(method, [], [])
    check(dataclasses.replace(METHODS["regmean_pp"], name="mine"), [], [])
