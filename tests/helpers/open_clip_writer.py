"""Towers by open_clip itself, in a process of its own: `python open_clip_writer.py LIBRARIES FOLDER`.

Writes o1/ and o2/ as open_clip publishes models, whole2.pt as the papers do, and features.pt: images, and what
open_clip makes of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from open_clip_library import make_importable
from safetensors.torch import save_file

libraries, folder = Path(sys.argv[1]), Path(sys.argv[2])
make_importable(libraries)

from open_clip.model import CLIP  # noqa: E402

CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1},
}
images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
features = {"images": images}
torch.manual_seed(0)
model = CLIP(**CONFIG).eval()
for seed in (1, 2):
    with torch.no_grad():  # the second is a fine-tuning of the first, as far as a merge can tell
        for parameter in model.parameters() if seed == 2 else ():
            parameter += 0.01 * torch.randn_like(parameter)
    own = folder / f"o{seed}"
    own.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()},
              own / "open_clip_model.safetensors")  # fmt: skip
    (own / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}))
    torch.save(model, folder / f"whole{seed}.pt")
    with torch.no_grad():
        features[str(seed)] = model.encode_image(images)
torch.save(features, folder / "features.pt")
