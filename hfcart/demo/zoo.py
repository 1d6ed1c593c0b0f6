"""The toy zoo of `hfcart demo`: a tiny CLIP trained here and now, and small data sets to fine-tune it on.

The text tower is trained alone until the prompts of different classes point apart, and frozen. Against its
heads the vision tower and its projection learn the clean pictures of every task. What is published as data sets
are the spoiled pictures: the base does half well on them, and a tower fine-tuned on one task far better.
"""

from __future__ import annotations

import hashlib
import io
import math
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import yaml
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from hfcart.clip.models import tiny_clip
from hfcart.demo import pictures
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.demo.pictures import TOYS, Part, Toy
from hfcart.progress import Progress
from hfcart.quoting import plural
from hfcart.sources.preprocessor import FILE as PREPROCESSOR
from hfcart.sources.preprocessor import clip_default, to_json
from hfcart.system.device import one_blas_thread
from hfcart.tasks.data import parquet
from hfcart.tasks.dataset_ref import DatasetRef
from hfcart.tasks.task_cards import TaskCard

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

VISION = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": pictures.SIDE,
    "patch_size": 16,
}
TEXT: dict[str, int | float] = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "initializer_factor": 2.0,  # prompts start less alike
}
DIM, LOGIT_SCALE, SEED = 64, 20.0, 0
TEXT_SCALE = 8.0  # of the text tower's own training: lower than the base's drives prompts further apart
TEXT_STEPS, BASE_STEPS, BATCH = 90, 450, 128
HALVES = 2  # a batch of the base's is worked on in two threads of one BLAS thread each
CLEAN, TRAIN, TEST = 1800, 1300, 497  # pictures a task

# Options of `hfcart finetune` for a tower of one task: brisk and short. Gentler, and averaging loses little of it.
FINETUNE = {"lr": "2.5e-4", "steps": "120", "batch-size": "48", "warmup": "20", "weight-decay": "0.1"}

BASE = "base"  # folder of the CLIPModel, and its name on the Hub
_LICENSE = {"digits": "cc-by-4.0"}  # UCI's handwritten digits; the rest is drawn here
_SOURCE = {
    "digits": "Handwritten digits of the UCI Machine Learning Repository (Alpaydin and Kaynak, 1998) as scikit-learn "
    "ships them, enlarged, coloured and spoiled by `hfcart demo`.",
}


def build_zoo(
    cache: Path,
    user: str,
    progress: Progress,
    *,
    text_steps: int = TEXT_STEPS,
    base_steps: int = BASE_STEPS,
    clean: int = CLEAN,
    train: int = TRAIN,
    test: int = TEST,
    seed: int = SEED,
) -> Path:
    """Train the base and draw the data sets, unless a folder of the same settings is there already.

    Args:
        cache: folder that keeps zoos; made if missing.
        user: whose repos the task cards and data sets are to name.
        progress: told of every stage.
        text_steps: of the text tower's training.
        base_steps: of the vision tower's.
        clean: pictures a task that the base is trained on.
        train: pictures a task in the data sets' train split.
        test: in their test split.
        seed: of the base's weights and batches.

    Returns:
        A folder, whole and never changed again: `base/` (a CLIPModel), `data/<task>/` (a data set's repo) and
        `tasks/<task>.yaml` (its card).
    """
    whole = cache / f"zoo-{_digest(user, text_steps, base_steps, clean, train, test, seed)}"
    if whole.is_dir():
        return whole
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".zoo-", dir=cache) as made:
        work = Path(made) / "zoo"
        progress.step(f"Drawing {len(TOYS)} small data sets")
        for toy in TOYS.values():
            write_dataset(work / "data" / toy.name, toy, train=train, test=test)
            card = work / "tasks" / f"{toy.name}.yaml"
            card.parent.mkdir(exist_ok=True)
            fields = task_card(toy, user).model_dump(mode="json", exclude_defaults=True)
            card.write_text(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True), encoding="utf-8")
        write_base(work / BASE, progress, text_steps=text_steps, base_steps=base_steps, clean=clean, seed=seed)
        try:
            work.replace(whole)
        except OSError:  # somebody else has finished the very same one meanwhile
            if not whole.is_dir():
                raise
    return whole


def _digest(*settings: str | int) -> str:
    """What decides a zoo: its settings, the code that makes it, and the torch that trains it."""
    code = [Path(file).read_bytes() for file in (__file__, pictures.__file__)]
    told = repr((settings, torch.__version__)).encode()
    return hashlib.sha256(b"\0".join([*code, told])).hexdigest()[:16]


def publish_zoo(hub: EmbeddedHub, zoo: Path, user: str) -> None:
    """Create `user/base` and a data set `user/<task>` for each task, and fill them."""
    repos = [("model", BASE, zoo / BASE)] + [("dataset", name, zoo / "data" / name) for name in TOYS]
    for repo_type, name, folder in repos:
        hub.create(f"{user}/{name}", repo_type)
        files: dict[str, bytes | Path] = {
            path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
        }
        hub.commit(f"{user}/{name}", files, message="Upload", repo_type=repo_type)


# Data sets.


def task_card(toy: Toy, user: str) -> TaskCard:
    """The card that tells hfcart of a toy's data set at `user/<task>`."""
    return TaskCard(
        id=toy.name,
        title=toy.title,
        dataset=DatasetRef(repo=f"{user}/{toy.name}"),
        templates=toy.templates,
        classnames=toy.classes,
        license=_LICENSE.get(toy.name, "cc0-1.0"),
    )


def write_dataset(folder: Path, toy: Toy, *, train: int, test: int) -> None:
    """Write a data set's repo: README.md and one parquet file a split, as `datasets` itself would push it."""
    (folder / "data").mkdir(parents=True)
    sizes: dict[Part, int] = {"train": train, "test": test}
    for part, count in sizes.items():
        images, labels = pictures.draw(toy, part, count)
        encoded = parquet([_png(pixels) for pixels in images], labels.tolist(), toy.classes)
        (folder / "data" / f"{part}-00000-of-00001.parquet").write_bytes(encoded)
    source = _SOURCE.get(toy.name, "Drawn, and spoiled, by `hfcart demo`.")
    front = {
        "license": _LICENSE.get(toy.name, "cc0-1.0"),
        "task_categories": ["image-classification"],
        "pretty_name": toy.title,
    }
    readme = f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n# {toy.title}\n\n{source}\n"
    (folder / "README.md").write_text(readme, encoding="utf-8")


def write_pictures(folder: Path, each: int = 4) -> None:
    """Some pictures of every task's test split as files, `<task>-<class>-<n>.png`: to show a tower what it knows."""
    folder.mkdir(parents=True, exist_ok=True)
    for toy in TOYS.values():
        images, labels = pictures.draw(toy, "test", each)
        for i, (pixels, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            name = f"{toy.name}-{toy.classes[label].replace(' ', '-')}-{i + 1}.png"
            Image.fromarray(pixels).resize((256, 256), Image.Resampling.NEAREST).save(folder / name)


def _png(pixels: pictures.Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)  # noise does not compress anyway
    return buffer.getvalue()


# The base model.


def write_base(
    folder: Path,
    progress: Progress,
    *,
    text_steps: int,
    base_steps: int,
    clean: int,
    seed: int,
) -> None:
    """Train a tiny CLIP and write it as a model repo: weights, config, tokenizer, preprocessor, README.md.

    Args:
        folder: made here.
        progress: told of every stage.
        text_steps: of the text tower's training.
        base_steps: of the vision tower's.
        clean: pictures a task.
        seed: of weights and batches.
    """
    model, tokenizer = tiny_clip(VISION, TEXT, DIM, LOGIT_SCALE, seed)
    generator = torch.Generator().manual_seed(seed)
    progress.step("Training the text tower of a tiny CLIP until its prompts point apart")
    heads = _train_text(model, tokenizer, text_steps)
    progress.step(f"Training its vision tower on clean pictures of {plural(len(TOYS), 'task')}")
    _train_vision(model, heads, base_steps, clean, generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / PREPROCESSOR).write_bytes(to_json(clip_default(pictures.SIDE)))
    (folder / "README.md").write_text(_BASE_README, encoding="utf-8")


_BASE_README = """---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
---
# A tiny CLIP

Trained by `hfcart demo` in half a minute on drawn pictures. It knows nothing else.
"""


def _train_text(model: CLIPModel, tokenizer: CLIPTokenizer, steps: int) -> list[Float[Tensor, "classes dim"]]:
    """Pull the prompts of one class together and those of different classes apart; returns every task's head."""
    names = [toy.classes for toy in TOYS.values()]
    prompts = [[t.replace("{}", name) for name in toy.classes for t in toy.templates] for toy in TOYS.values()]
    tokens = tokenizer([p for task in prompts for p in task], padding=True, return_tensors="pt")["input_ids"]
    count = len(next(iter(TOYS.values())).templates)
    target = torch.arange(len(tokens) // count)

    def features() -> Float[Tensor, "class prompt dim"]:
        pooled = model.text_model(input_ids=tokens).pooler_output
        return F.normalize(model.text_projection(pooled), dim=-1).reshape(len(target), count, -1)

    def loss(step: int, part: int) -> Tensor:
        one, other = features().unbind(1)
        scores = TEXT_SCALE * one @ other.T
        return F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)

    _train([*model.text_model.parameters(), *model.text_projection.parameters()], loss, 1, steps, 2e-3)
    with torch.no_grad():
        heads = F.normalize(features().mean(1), dim=-1)
    return list(torch.split(heads, [len(task) for task in names]))


def _train_vision(
    model: CLIPModel, heads: list[Float[Tensor, "classes dim"]], steps: int, clean: int, generator: torch.Generator
) -> None:
    """Teach the vision tower and its projection the clean pictures of all tasks at once."""
    drawn = [pictures.draw(toy, "clean", clean) for toy in TOYS.values()]
    images = torch.cat([normalised(pixels) for pixels, _ in drawn])
    first = [sum(len(head) for head in heads[:i]) for i in range(len(heads))]  # each task's first row in `every`
    labels = torch.cat([torch.from_numpy(found) + start for (_, found), start in zip(drawn, first, strict=True)])
    every = torch.cat(heads)
    task = torch.cat([torch.full((len(head),), i) for i, head in enumerate(heads)])
    order = _shuffled(len(images), steps * BATCH, generator)

    def loss(step: int, part: int) -> Tensor:
        batch = order[step * BATCH : (step + 1) * BATCH][part::HALVES]
        pooled = model.vision_model(pixel_values=images[batch]).pooler_output
        scores = LOGIT_SCALE * F.normalize(model.visual_projection(pooled), dim=-1) @ every.T
        foreign = task[None] != task[labels[batch]][:, None]  # a picture competes among its own task's classes
        return F.cross_entropy(scores.masked_fill(foreign, -math.inf), labels[batch])

    _train([*model.vision_model.parameters(), *model.visual_projection.parameters()], loss, HALVES, steps, 1e-3)


def normalised(pixels: pictures.Pixels) -> Float[Tensor, "n 3 side side"]:
    """Pictures as the base's preprocessor gives them to the tower."""
    fields = clip_default(pictures.SIDE)
    scaled = torch.from_numpy(pixels).float() / 255
    return ((scaled - torch.tensor(fields["image_mean"])) / torch.tensor(fields["image_std"])).permute(0, 3, 1, 2)


def _shuffled(count: int, needed: int, generator: torch.Generator) -> Int[Tensor, " needed"]:
    """Epoch after epoch of 0..count − 1, each in an order of its own, cut to what is needed."""
    epochs = -(-needed // count)
    return torch.cat([torch.randperm(count, generator=generator) for _ in range(epochs)])[:needed]


def _train(
    parameters: Sequence[torch.nn.Parameter], loss: Callable[[int, int], Tensor], parts: int, steps: int, rate: float
) -> None:
    """AdamW with a tenth of the steps as warm-up, then a cosine to zero; the parts of a batch side by side.

    Models this small lose more by handing every operation to several threads than they gain.
    """
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.1)
    warm = max(1, steps // 10)

    def gradients(job: tuple[int, int]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(*job), parameters)

    with one_blas_thread(), ThreadPoolExecutor(parts, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for step in range(steps):
            share = (step - warm) / max(1, steps - warm)
            optimizer.param_groups[0]["lr"] = rate * min((step + 1) / warm, (1 + math.cos(math.pi * max(0, share))) / 2)
            found = list(pool.map(gradients, [(step, part) for part in range(parts)]))
            for parameter, *each in zip(parameters, *found, strict=True):
                parameter.grad = torch.stack(each).mean(dim=0)
            optimizer.step()
