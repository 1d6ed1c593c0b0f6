"""Adapters as peft loads them, in a process of its own: python adapted.py FOLDER SOURCE... prints what came of it.

FOLDER is a merge with an adapter for each SOURCE, of which hfcart.json says which is whose. All adapters go into one
PeftModel, and are switched between; then each is merged into a tower of its own.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file


def canonical(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By the tower's names alone, as either release has them."""
    names = [n for n in tensors if not n.startswith(("text_", "logit_scale")) and not n.endswith("position_ids")]
    return {name.removeprefix("vision_model."): tensors[name] for name in names}


def main(folder: str, sources: list[str]) -> dict[str, object]:
    record = json.loads((Path(folder) / "hfcart.json").read_text())
    kind = getattr(transformers, record["model_class"])
    flat_names = record["model_class"] == "CLIPVisionModel" and transformers.__version__.startswith("4.")
    more = {"key_mapping": {"^": "vision_model."}} if flat_names else {}
    labels = {Path(source).name: source for source in sources}
    names = [adapter["name"] for adapter in record["adapters"]]
    own = {a["name"]: load_file(Path(labels[a["source"]]) / "model.safetensors") for a in record["adapters"]}

    def loaded(name: str, subfolder: str) -> peft.PeftModel:
        # A missing key is a warning of peft's.
        return peft.PeftModel.from_pretrained(
            kind.from_pretrained(folder), folder, subfolder=subfolder, adapter_name=name, **more
        )

    model = loaded(names[0], f"adapters/{names[0]}")
    unexpected = []
    for name in names[1:]:
        found = model.load_adapter(folder, name, subfolder=f"adapters/{name}", **more)
        unexpected += [*found.unexpected_keys, *(key for key in found.missing_keys if f".{name}." in key)]
    side = record["architecture"]["image_size"]
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))

    def outputs(one: torch.nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            if hasattr(one, "get_image_features"):
                out = one.get_image_features(pixel_values=pixels.to(one.dtype))
                return getattr(out, "pooler_output", out).float()
            out = one(pixel_values=pixels.to(one.dtype))
            return (out.image_embeds if hasattr(out, "image_embeds") else out.pooler_output).float()

    errors, merged = {}, {}
    for name in [*names, names[0]]:  # and back to the first
        model.set_adapter(name)
        errors[name] = outputs(model)
    for name in names:
        whole = canonical(loaded("default", f"adapters/{name}").merge_and_unload().state_dict())
        source = canonical(own[name])
        shared = source.keys() & whole.keys()
        merged[name] = {
            "missing": sorted(whole.keys() - shared - {"visual_projection.weight"}),
            "differs": {n: (whole[n].double() - source[n].double()).abs().max().item() for n in shared},
        }
        alone = kind.from_pretrained(folder)
        alone.load_state_dict(loaded("default", f"adapters/{name}").merge_and_unload().state_dict())
        errors[name] = (errors[name] - outputs(alone)).abs().max().item()
    return {"release": transformers.__version__, "wrong_keys": unexpected, "outputs": errors, "merged": merged}


if __name__ == "__main__":
    warnings.simplefilter("error")
    for known in (FutureWarning, DeprecationWarning, ResourceWarning, PendingDeprecationWarning):
        warnings.simplefilter("ignore", known)
    transformers.utils.logging.set_verbosity_error()
    print(json.dumps(main(sys.argv[1], sys.argv[2:])))
