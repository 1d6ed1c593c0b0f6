"""What comes out loads: the class in `architectures` gives exactly the written tensors, in transformers 5 and 4."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from running import COMPAT, ended
from towers import write_tower

import hfcart

CODE = """
import json, sys, torch, transformers
from safetensors.torch import load_file
from pathlib import Path
folder = Path(sys.argv[1])
name = json.loads((folder / "config.json").read_text())["architectures"][0]
model, info = getattr(transformers, name).from_pretrained(folder, dtype="auto", output_loading_info=True)
assert not any(info.values()), info
written = {k: v for p in folder.glob("*.safetensors") for k, v in load_file(p).items()}
loaded = {k if k.startswith(("vision_model.", "visual_projection.")) else "vision_model." + k: v
          for k, v in model.state_dict().items() if not k.endswith("position_ids")}
assert loaded.keys() == written.keys(), loaded.keys() ^ written.keys()
assert all(loaded[k].dtype == v.dtype and torch.equal(loaded[k], v) for k, v in written.items())
size = model.config.image_size
out = model.eval()(torch.ones(1, 3, size, size, dtype=model.dtype))
value = out.image_embeds if name.endswith("Projection") else out.pooler_output
processor = transformers.CLIPImageProcessor.from_pretrained(folder)
print(json.dumps([transformers.__version__, name, value.float().flatten().tolist(), processor.crop_size["height"]]))
"""


@pytest.mark.parametrize("fields", [{}, {"with_projection": True}, {"max_shard_size": "30KB"}, {"dtype": "bfloat16"}])
def test_loads_in_both_majors(tmp_path: Path, clean_env: dict[str, str], fields: dict) -> None:
    sources = [str(write_tower(tmp_path / f"t{i}", i, form="full")) for i in (1, 2)]
    hfcart.merge(sources, out=str(tmp_path / "m"), **fields)
    results = []
    for extra in ("", f"{COMPAT}{os.pathsep}"):
        env = {**clean_env, "PYTHONPATH": extra + clean_env["PYTHONPATH"], "HF_HUB_OFFLINE": "1"}
        done = ended(
            [sys.executable, "-c", CODE, str(tmp_path / "m")],
            warm=True,
            env=env,
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout.splitlines()[-1]))
    assert results[0][0].startswith("5.") and results[1][0].startswith("4.57.")
    assert results[0][1] == results[1][1] == "CLIPVisionModel" + "WithProjection" * ("with_projection" in fields)
    assert torch.allclose(torch.tensor(results[0][2]), torch.tensor(results[1][2]), atol=1e-2)
    assert results[0][3] == results[1][3] == 16
