"""Models loaded by open_clip itself, in a process of its own: `open_clip_reader.py LIBRARIES INPUTS OUT NAME...`.

INPUTS has for each name `pixels` (a batch), `images` (PIL's), `texts` and `tokens`. OUT gets what open_clip makes of
them: `image`, `text` (of the tokens), `own_tokens` (of the texts, by get_tokenizer), `preprocessed` and `scale`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from open_clip_library import make_importable

libraries, inputs, out, *names = sys.argv[1:]
make_importable(Path(libraries))

import open_clip  # noqa: E402

inputs = torch.load(inputs, weights_only=False)
found = {}
for name in names:
    given = inputs[name]
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    with torch.no_grad():
        found[name] = {
            "image": model.eval().encode_image(given["pixels"]),
            "text": model.encode_text(given["tokens"]),
            "own_tokens": open_clip.get_tokenizer(name)(given["texts"]),
            "preprocessed": [preprocess(image) for image in given["images"]],
            "scale": model.logit_scale.exp(),
        }
torch.save(found, out)
