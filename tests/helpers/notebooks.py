"""A notebook run in a kernel of its own, by a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from running import LIMIT

_RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=500, record_timing=False).execute()
notebook.metadata.pop("language_info", None)  # this machine's Python
nbformat.write(notebook, sys.argv[1])
"""
_PLACES = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")


def execute(path: Path, env: Mapping[str, str]) -> None:
    """Run it in its folder, and write what it puts out into it.

    Raises:
        subprocess.CalledProcessError: a cell failed; its traceback is on stderr.
    """
    own = {**env, **dict.fromkeys(_PLACES, str(path.parent / ".jupyter"))}
    subprocess.run([sys.executable, "-c", _RUN, path.name], cwd=path.parent, env=own, check=True, timeout=LIMIT)


def code_cells(path: Path) -> list[dict[str, Any]]:
    """Those with code, as the file has them."""
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
