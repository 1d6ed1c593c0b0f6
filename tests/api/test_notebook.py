"""The example notebook runs as it stands, with the names of other towers in its first cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from notebooks import code_cells, execute
from running import ROOT, TOKEN
from three_towers import TOWERS

NOTEBOOK = ROOT / "examples" / "first_merge.ipynb"


def kinds(cell: dict[str, Any]) -> list[list[str]]:
    """What a cell puts out: an output each, with the forms it has (html, an image, a stream)."""
    return [sorted(output.get("data", [output.get("name", "")])) for output in cell["outputs"]]


def test_it_runs_with_the_names_of_other_towers(zoo, clean_env: dict[str, str], tmp_path: Path) -> None:
    hub, root = zoo
    text = json.loads(NOTEBOOK.read_text())
    first = next(cell for cell in text["cells"] if cell["cell_type"] == "code")
    assert "".join(first["source"]).startswith("import hfcart\n\ntowers = [") and not first["outputs"]
    tasks = [f"{root}/images{i}.yaml" for i in (1, 2, 3)]
    first["source"] = f"import hfcart\n\ntowers = {TOWERS}\ntasks = {tasks}\nmine = 'user/first-merge'\n"
    path = tmp_path / "in.ipynb"
    path.write_text(json.dumps(text))
    env = clean_env | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    execute(path, env | {"HF_HOME": str(tmp_path / "hf-home")})
    made, shown = code_cells(path), code_cells(NOTEBOOK)
    assert [kinds(cell) for cell in made] == [kinds(cell) for cell in shown]  # and so no warning, nothing on stderr
    assert "first-merge came out with the same bytes" in json.dumps(made[-3]["outputs"])
    assert "README.md" in hub.files("user/first-merge")


def test_what_it_shows_is_small_and_of_no_machine() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 300_000 and "/tmp" not in text and "site-packages" not in text and "Warning" not in text
    assert [kinds(cell) for cell in code_cells(NOTEBOOK)].count([["image/png", "text/plain"]]) == 2
