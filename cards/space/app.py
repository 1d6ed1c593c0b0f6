"""Try a CLIP vision tower zero-shot: an image, labels, a bar for each; beside it the average and the base.

Which towers, at which commits, stands in space.json; it is read as data. Private or gated towers need a secret
HF_TOKEN, which the Hub's client takes from the environment.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import torch
from huggingface_hub import constants
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, CLIPVisionModel

HERE = Path(__file__).parent
SPACE = json.loads((HERE / "space.json").read_text(encoding="utf-8"))
MOST_LABELS, MOST_TEXTS, LONGEST = 400, 5000, 500  # of what visitors type: labels, times prompts, characters of each
SHOWN = 30  # labels, the best ones
Image.MAX_IMAGE_PIXELS = 1 << 25  # PIL refuses an image of more than twice as many


def whole(loaded: tuple) -> torch.nn.Module:
    """A model that was loaded with every weight it has: what is missing would be drawn at random."""
    model, info = loaded
    if info["missing_keys"] or info["mismatched_keys"]:
        raise RuntimeError(f"weights are missing: {sorted(info['missing_keys'])[:5]}")
    return model.eval()


def pinned(repo: dict) -> dict:
    """What from_pretrained takes to load a repo at its commit."""
    return {
        "pretrained_model_name_or_path": repo["repo"],
        "revision": repo["commit"],
        "dtype": torch.float32,
        "output_loading_info": True,
    }


BASE = whole(CLIPModel.from_pretrained(**pinned(SPACE["base"])))
WORDS = AutoTokenizer.from_pretrained(SPACE["base"]["repo"], revision=SPACE["base"]["commit"])


class Tower:
    """A vision tower and its image preprocessing. Its features go through the base's projection."""

    def __init__(self, said: dict) -> None:
        """Load what space.json says of it."""
        self.title = said["title"]
        self.prepare = CLIPImageProcessorPil(**said["image_processor"])
        if said["folder"]:  # beside this file
            own = {"dtype": torch.float32, "output_loading_info": True}
            self.model = whole(CLIPVisionModel.from_pretrained(HERE / said["folder"], **own))
        elif {key: said[key] for key in ("repo", "commit")} == SPACE["base"]:
            self.model = BASE.vision_model
        else:
            self.model = whole(CLIPVisionModel.from_pretrained(**pinned(said)))

    @torch.inference_mode()
    def shares(self, image: Image.Image, head: Tensor) -> list[float]:
        """How well each row of the head fits the image, relative to the others: they add up to 1."""
        pixels = self.prepare(images=image, return_tensors="pt")["pixel_values"]
        found = normalize(BASE.visual_projection(self.model(pixel_values=pixels).pooler_output), dim=-1)
        return (BASE.logit_scale.exp() * found[0] @ head.T).softmax(dim=-1).tolist()


TOWERS = [Tower(said) for said in SPACE["towers"]]


@lru_cache(maxsize=64)
@torch.inference_mode()
def make_head(labels: tuple[str, ...], prompts: tuple[str, ...]) -> Tensor:
    """A unit vector a label: its prompts' text embeddings normalised, their mean normalised again."""
    longest = min(BASE.config.text_config.max_position_embeddings, WORDS.model_max_length)
    rows = []
    for label in labels:
        texts = [prompt.replace("{}", label) for prompt in prompts]
        tokens = WORDS(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        read = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        found = BASE.text_projection(BASE.text_model(**read).pooler_output)
        rows.append(normalize(normalize(found, dim=-1).mean(dim=0), dim=-1))
    return torch.stack(rows)


def each_once(parts: list[str]) -> tuple[str, ...]:
    """What was typed, without what is empty or twice."""
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def classify(image: Image.Image | None, labels: str, prompts: str) -> list[dict[str, float]]:
    """For each tower, every label's share."""
    if image is None:
        raise gr.Error("Give it an image first.")
    names = each_once(labels.split("\n" if "\n" in labels.strip() else ","))
    if len(names) < 2:
        raise gr.Error("Type two labels or more: each is weighed against the others.")
    texts = each_once(prompts.splitlines()) or tuple(SPACE["prompts"])
    if len(names) > MOST_LABELS or len(names) * len(texts) > MOST_TEXTS or max(map(len, names + texts)) > LONGEST:
        raise gr.Error(f"Too much: {MOST_LABELS} labels and {MOST_TEXTS} prompts of {LONGEST} characters are the most.")
    if not all("{}" in text for text in texts):
        raise gr.Error("Each prompt needs {} where the label goes.")
    head = make_head(names, texts)
    return [dict(zip(names, tower.shares(image, head), strict=True)) for tower in TOWERS]


def fill_in(number: int) -> tuple[str, str]:
    """The labels and the prompts of one of the tasks."""
    task = SPACE["tasks"][number]
    return "\n".join(task["labels"]), "\n".join(task["prompts"])


def page() -> gr.Blocks:
    """The page."""
    tower, card = SPACE["towers"][0], f"{constants.ENDPOINT}/{SPACE['towers'][0]['repo']}"
    others = " and ".join(said["title"] for said in SPACE["towers"][1:])
    pins = ", ".join(
        f"[{each['repo']}]({constants.ENDPOINT}/{each['repo']}/tree/{each['commit']}) at `{each['commit'][:7]}`"
        for each in (tower, SPACE["base"])
    )
    tasks = SPACE["tasks"]
    first = tasks[0] if tasks else {"labels": ["cat", "dog", "car"], "prompts": SPACE["prompts"]}
    with gr.Blocks(title=f"{tower['repo']}, zero-shot", fill_width=False) as blocks:
        gr.Markdown(
            f"# {tower['repo']}, zero-shot\n\n{SPACE['about']} Give it an image and some labels: a bar for each says "
            f"how well it fits.{f' Beside it: {others}.' if others else ''} How it was made, and how good it is, "
            f"stands on [its card]({card})."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = gr.Image(type="pil", image_mode=None, label="Image", height=280, elem_id="image")
                if tasks:
                    choices = [(each["title"], i) for i, each in enumerate(tasks)]
                    task = gr.Dropdown(choices, value=0, label="Labels of", elem_id="task")
                labels = gr.Textbox(
                    "\n".join(first["labels"]),
                    label="Labels",
                    info="One a line, or on one line with commas.",
                    lines=3,
                    max_lines=10,
                    elem_id="labels",
                )
                with gr.Accordion("Prompts", open=False):
                    prompts = gr.Textbox(
                        "\n".join(first["prompts"]),
                        show_label=False,
                        info="One a line; {} stands for the label. Several are averaged.",
                        lines=2,
                        max_lines=10,
                        elem_id="prompts",
                    )
                button = gr.Button("Compare", variant="primary", elem_id="compare")
            with gr.Column(scale=3, min_width=320), gr.Row():
                bars = [
                    gr.Label(label=each.title, num_top_classes=SHOWN, elem_id=f"bars-{i}", min_width=200)
                    for i, each in enumerate(TOWERS)
                ]
        gr.Markdown(
            f"The bars weigh these labels against each other, and know no others; of many, the best {SHOWN} have one. "
            f"Pinned: {pins}."
        )
        if tasks:
            task.input(fill_in, task, [labels, prompts], api_name=False)
        inputs = [image, labels, prompts]
        button.click(classify, inputs, bars, api_name="classify")
        image.upload(classify, inputs, bars, api_name=False)
    return blocks


if __name__ == "__main__":
    page().launch(max_file_size="20mb", footer_links=["gradio"])
