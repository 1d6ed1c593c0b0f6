"""The card that is published: what its first lines say before and after measuring, and its snippets as they stand."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from card_text import blocks, first_lines
from PIL import Image
from running import COMPAT, TOKEN, Commands, ended
from safetensors.torch import load_file
from three_towers import TOWERS
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from hfcart.demo.embedded_hub.hub import EmbeddedHub

LABELS = ["cat", "dog"]
SNIPPETS = """
import contextlib, io, json, sys, transformers
outputs = []
for snippet in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(snippet, {})
    outputs.append(out.getvalue().splitlines())
print(json.dumps([transformers.__version__, outputs]))
"""


def expected(clip: Path, merged: Path) -> list[tuple[str, float]]:
    """What the snippet should print, best first: the base with the merged weights in its vision tower."""
    model = CLIPModel.from_pretrained(clip)
    state = model.state_dict()
    weights = load_file(merged / "model.safetensors")
    assert set(weights) <= set(state)
    model.load_state_dict(state | {name: weight.float() for name, weight in weights.items()})
    image = Image.new("RGB", (640, 480), "orange")
    pixels = CLIPImageProcessor.from_pretrained(merged)(images=image, return_tensors="pt").pixel_values
    words = CLIPTokenizer.from_pretrained(clip)
    tokens = words([f"a photo of a {label}." for label in LABELS], padding=True, return_tensors="pt")
    with torch.inference_mode():
        shares = model(pixel_values=pixels, **tokens).logits_per_image.softmax(dim=-1)[0].tolist()
    return sorted(zip(LABELS, shares, strict=True), key=lambda pair: -pair[1])


def with_projections(clip: Path, folder: Path) -> list[str]:
    """Three whole models that differ in their visual projection alone."""
    for i in range(3):
        model = CLIPModel.from_pretrained(clip)
        weight = model.visual_projection.weight
        with torch.no_grad():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
        model.save_pretrained(folder / f"p{i}")
    return ["p0", "p1", "p2"]


def test_the_first_lines_and_the_snippets(
    zoo: tuple[EmbeddedHub, Path], clip: Path, commands: Commands, clean_env: dict[str, str], tmp_path: Path
) -> None:
    hub, root = zoo

    def card(repo: str) -> str:
        return hub.files(f"user/{repo}")["README.md"].decode()

    def publish(repo: str, *words: str) -> list[str]:
        return ["merge", *words, "--out", repo, "--push-to", f"user/{repo}", "--quiet"]

    projected = with_projections(clip, tmp_path)
    lines = [
        publish("plain", *TOWERS),
        publish("whole", *TOWERS, "--full-clip"),
        publish("projected", *projected, "--base", "user/clip", "--with-projection", "--dtype", "bfloat16"),
    ]
    assert [done.stderr for done in commands(hub, lines) if done.returncode] == []
    cards = [card(repo) for repo in ("plain", "whole", "projected")]
    told = first_lines(cards[0])
    assert "- **Base:** [user/clip](https://huggingface.co/user/clip), as the towers' own cards say" in told
    assert "- **Accuracy:** not measured." in told
    assert "- **Tasks:** [user/images" in told

    tasks = ",".join(f"{root}/images{i}.yaml" for i in (1, 2))
    measure = ["eval", "user/plain", "--tasks", tasks, "--references", "measured", "--push", "--quiet"]
    assert [done.stderr for done in commands(hub, [measure]) if done.returncode] == []
    cards.append(card("plain"))
    told, head = first_lines(cards[-1]), hub.head("user/clip")
    assert f"- **Base:** [user/clip](https://huggingface.co/user/clip) @ [`{head[:7]}`]" in told
    share = r"\d+\.\d%"
    beside = ["the base alone", "the plain average of the towers", "the individual towers, each on its own task"]
    others = ", ".join(f"{share} for {other}" for other in beside)
    assert re.search(
        rf"- \*\*Accuracy:\*\* \*\*{share}\*\* of the test images, zero-shot, the mean of 2 tasks; {others}\. ", told
    ), told
    snippets = [blocks(text, "python")[0] for text in cards]
    assert all(f'base, commit = "user/clip", "{head}"' in snippet for snippet in snippets[2:])

    plain = expected(clip, tmp_path / "plain")
    wanted = [plain, plain, expected(clip, tmp_path / "projected"), plain]
    for release, path in (("5.", ""), ("4.57.", f"{COMPAT}{os.pathsep}")):
        env = {**clean_env, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
        done = ended(
            [sys.executable, "-c", SNIPPETS],
            input=json.dumps(snippets),
            warm=True,
            env={**env, "PYTHONPATH": path + env["PYTHONPATH"]},
        )
        assert done.returncode == 0, done.stderr
        version, outputs = json.loads(done.stdout.splitlines()[-1])
        assert version.startswith(release)
        for found, pairs in zip(outputs, wanted, strict=True):
            assert [line.split(" ", 1)[1] for line in found] == [label for label, _ in pairs]
            printed = [float(line.split("%")[0]) for line in found]
            assert printed == pytest.approx([100 * share for _, share in pairs], abs=0.06)
