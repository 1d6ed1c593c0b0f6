"""`hfcart demo`: the commands a user would type, run for real against a Hub on this machine."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from hfcart.demo.hub import EmbeddedHub
from hfcart.errors import HfcartError, OutputError
from hfcart.progress import Progress

_TOKEN = "hf_demo"
_TASKS = {"digits": "mit", "shapes": "mit", "textures": "cc-by-4.0"}
_CONFIG = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 64,
}
_MERGED = "demo/merged"
_LOAD = """\
import torch
from transformers import CLIPVisionModel
tower = CLIPVisionModel.from_pretrained("demo/merged")
print(tuple(tower(torch.zeros(1, 3, 32, 32)).pooler_output.shape))
"""


def run_demo(folder: Path, progress: Progress) -> Path:
    """Build a few tiny towers, publish them to an embedded Hub, merge them with `--push-to`, and load the result.

    Args:
        folder: where everything goes; an earlier demo's is replaced.
        progress: told of every stage.

    Returns:
        Path of the model card.

    Raises:
        OutputError: the folder holds something else.
        HfcartError: one of the commands failed.
    """
    marker = folder / ".hfcart-demo"
    if folder.exists() and not marker.exists():
        raise OutputError(f"{folder} exists and is not an earlier demo.", hint="Give another: hfcart demo --out FOLDER")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    marker.touch()
    with EmbeddedHub(folder / "hub") as server:
        progress.step(f"A Hub of your own is up at {server.url}, for as long as this runs")
        server.add_user("demo", token=_TOKEN)
        _publish_towers(server, folder / "towers", progress)
        # The machine's own settings of the Hub and of proxies must not come between the commands and this server.
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")
        }
        environment = {
            **inherited,
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": _TOKEN,
            "HF_HOME": str((folder / "hf-home").resolve()),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        merge = ["merge", *(f"demo/{task}" for task in _TASKS), "--rank", "0.08", "--push-to", _MERGED]
        for command in (["methods"], [*merge, "--dry-run"], merge, ["verify", _MERGED]):
            _run([sys.executable, "-m", "hfcart", *command], shlex.join(["hfcart", *command]), folder, environment)
        _run([sys.executable, "-c", _LOAD], "python\n" + _LOAD.rstrip(), folder, environment)
    return folder / "merged" / "README.md"


def _publish_towers(server: EmbeddedHub, folder: Path, progress: Progress) -> None:
    from hfcart.clip import fine_tuned, new_tower

    progress.step(f"Making {len(_TASKS)} tiny CLIP towers of one ancestor and publishing them to it")
    base = new_tower(_CONFIG, seed=0)
    for seed, (task, license_id) in enumerate(_TASKS.items(), start=1):
        fine_tuned(base, seed, folder / task)
        card = f"---\nlicense: {license_id}\ndatasets: [demo/{task}-images]\n---\n# A tiny tower for {task}\n"
        (folder / task / "README.md").write_text(card, encoding="utf-8")
        server.create(f"demo/{task}")
        server.commit(f"demo/{task}", {path.name: path for path in sorted((folder / task).iterdir())})


def _run(command: list[str], shown: str, folder: Path, environment: dict[str, str]) -> None:
    sys.stderr.write("\n" + "\n".join(f"{'$' if i == 0 else '>'} {line}" for i, line in enumerate(shown.split("\n"))))
    sys.stderr.write("\n")
    sys.stderr.flush()
    code = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
    if code:
        raise HfcartError(f"The command above ended with exit code {code}.", hint="Run hfcart demo again.")
