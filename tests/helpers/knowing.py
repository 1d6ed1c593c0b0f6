"""Towers of which it is known what they see: trained here, in a second, to tell the colours of `clips.image` apart."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from clips import COLOURS, image, tokenizer
from three_towers import card, prompted
from transformers import CLIPModel, CLIPVisionModelWithProjection

from hfcart.clip.pixels import normalised, to_pixels
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.sources.preprocessor import clip_default
from hfcart.tasks.task_cards import TaskCard

SIDE, STEPS = 16, 150


def write_card(path: Path) -> TaskCard:
    """The task of the colours' names, as a file and as it is read."""
    fields = card()
    path.write_text(json.dumps(fields))
    return TaskCard(**fields)


def teach(folder: Path, task: TaskCard) -> CLIPVisionModelWithProjection:
    """A CLIP model's vision tower, fine-tuned against its own head of the task, and the projection, as it was."""
    model, classes = CLIPModel.from_pretrained(folder), len(task.classnames)
    head = prompted(model, tokenizer(), task)
    fields = clip_default(SIDE)
    drawn = [to_pixels(image(i % classes, i), fields) for i in range(64 * classes)]
    pixels, labels = normalised(torch.stack(drawn), fields), torch.arange(64 * classes) % classes
    tower = model.vision_model.train()
    optimizer = torch.optim.AdamW(tower.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        batch = torch.randint(len(pixels), (32,), generator=generator)
        found = torch.nn.functional.normalize(
            model.visual_projection(tower(pixel_values=pixels[batch]).pooler_output), dim=-1
        )
        loss = torch.nn.functional.cross_entropy(20 * found @ head.T, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2, loss.item()
    config = model.config.vision_config
    config.projection_dim = model.config.projection_dim  # which transformers does not write there
    taught = CLIPVisionModelWithProjection(config)
    taught.vision_model.load_state_dict(tower.state_dict())
    taught.visual_projection.load_state_dict(model.visual_projection.state_dict())
    return taught


def serve_knowing(hub: EmbeddedHub, clip: Path, root: Path) -> TaskCard:
    """Put `user/clip` and three towers that know the colours, `user/k1` to `user/k3`, on a Hub."""
    assert len(COLOURS) >= 4
    task = write_card(root / "colours.yaml")
    hub.create("user/clip")
    hub.commit("user/clip", {path.name: path for path in clip.iterdir()})
    taught = teach(clip, task)
    tower = taught.vision_model
    before = {name: weight.clone() for name, weight in tower.named_parameters()}
    for i in (1, 2, 3):
        with torch.no_grad():
            for n, (name, weight) in enumerate(tower.named_parameters()):
                noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(100 * i + n))
                weight.copy_(before[name] + 0.02 * before[name].norm() / weight.numel() ** 0.5 * noise)
        taught.save_pretrained(root / f"k{i}")
        own = clip_default(SIDE) | {"image_mean": [0.48, 0.46, 0.41]}  # other than the base's
        (root / f"k{i}" / "preprocessor_config.json").write_text(json.dumps(own))
        (root / f"k{i}" / "README.md").write_text("---\nbase_model: user/clip\nlicense: mit\n---\n")
        hub.create(f"user/k{i}")
        hub.commit(f"user/k{i}", {path.name: path for path in (root / f"k{i}").iterdir()})
    return task
