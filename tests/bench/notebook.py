"""The outputs of the example notebook, of the towers that `hfcart demo` has left.

python tests/bench/notebook.py [hfcart-demo]
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from notebooks import execute

from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.demo.zoo import publish_zoo

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_merge.ipynb"
ROOT = str(Path(__file__).parents[2])


def main() -> None:
    demo = Path(sys.argv[1] if len(sys.argv) > 1 else "hfcart-demo").resolve()
    (zoo,) = (demo / "zoo").glob("zoo-*")
    with tempfile.TemporaryDirectory() as place, EmbeddedHub(Path(place) / "hub") as hub:
        hub.add_user("demo", token="hf_demo")
        publish_zoo(hub, zoo, "demo")
        for tower in sorted(demo.glob("tower-*")):
            files = {path.relative_to(tower).as_posix(): path for path in tower.rglob("*") if path.is_file()}
            hub.create(f"demo/{tower.name}")
            hub.commit(f"demo/{tower.name}", files)
        work = Path(place) / "work"
        shutil.copytree(demo / "tasks", work / "tasks")
        shutil.copy(NOTEBOOK, work)
        own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_demo", "HF_HOME": str(work / "hf"), "PYTHONPATH": ROOT}
        quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        execute(work / NOTEBOOK.name, {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | own | quiet)
        shutil.copy(work / NOTEBOOK.name, NOTEBOOK)


if __name__ == "__main__":
    main()
