"""A mergekit configuration given as a recipe is told how its fields are called here; hostile YAML, too."""

from __future__ import annotations

from pathlib import Path

import pytest
from hints import faults
from typer.testing import CliRunner

from hfcart.cli import app
from hfcart.errors import UsageError
from hfcart.recipes.recipe_files import read

TIES = """
merge_method: ties
base_model: user/base
models:
  - model: user/base
  - model: user/a
    parameters: {density: 0.5, weight: 0.3}
  - model: ./my tower
    parameters: {density: 0.5, weight: 0.3}
parameters: {normalize: true, lambda: 1.1}
dtype: bfloat16
tokenizer_source: union
"""


def refused(text: str, folder: Path) -> UsageError:
    (folder / "r.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read(folder / "r.yaml")
    assert not faults(caught.value.hint or "")
    return caught.value


def test_every_field_is_told(tmp_path: Path) -> None:
    error = refused(TIES, tmp_path)
    assert "r.yaml is a configuration of mergekit" in error.message
    assert (error.hint or "").splitlines() == [
        "merge_method is method: ties",
        "base_model is base",
        "models is sources",
        "dtype is dtype",
        "tokenizer_source has no counterpart: a tower has no tokenizer",
        "parameters: normalize has no counterpart",
        "parameters: lambda is scale",
        "parameters: density is density (one for all)",
        "parameters: weight is weights with linear and slerp (one for each source), else scale (one for all)",
        "To begin with: hfcart merge user/a './my tower' --method ties --base user/base",
    ]


def test_it_is_exit_2_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(TIES)
    done = CliRunner().invoke(app, ["merge", "--recipe", str(tmp_path / "r.yaml")])
    assert done.exit_code == 2 and "configuration of mergekit" in done.output and "Traceback" not in done.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("merge_method: DARE-linear\nmodels: [{model: a/b}]", "merge_method is method: dare"),
        ("merge_method: tsv-m", "merge_method is method: tsv_m"),
        ("merge_method: breadcrumbs_ties", "'breadcrumbs_ties' is none of them. Did you mean breadcrumbs?"),
        ("merge_method: passthrough\nslices: []", "slices has no counterpart: towers are merged whole"),
        ("slices: [{sources: [{model: a, layer_range: [0, 8]}]}]", "slices has no counterpart"),
        ("models: [a, b]", "models is sources"),
    ],
)
def test_methods_and_slices(text: str, said: str, tmp_path: Path) -> None:
    assert said in (refused(text, tmp_path).hint or "")


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: [ties]",
        "merge_method: {a: b}",
        "merge_method: null\nmodels: null",
        "merge_method: 7\nmodels: 7\nparameters: 7\nbase_model: 7",
        "merge_method: ties\nmodels: [{model: '--push-to=user/theirs'}, {model: '$(reboot)'}]",
        'merge_method: ties\nmodels: [{model: "\\e[2Jevil\\u202e"}, {model: 3}, 7, null, []]',
        "merge_method: ties\nmodels: [" + ", ".join("{model: a/b}" for _ in range(3_000)) + "]",
        "merge_method: ties\nparameters: {" + ", ".join(f"'\\x1b{i}': 1" for i in range(2_000)) + "}",
        f"merge_method: {'x' * 50_000}",
        f"merge_method: ties\n{'y' * 500}: 1",
    ],
)
def test_hostile(text: str, tmp_path: Path) -> None:
    """Nothing is followed, no terminal driven, nothing longer than a screen, and no option comes from the file."""
    error = refused(text, tmp_path)
    told = f"{error.message}\n{error.hint}"
    assert all(line.isprintable() and len(line) < 400 for line in told.splitlines()) and len(told.splitlines()) <= 50
    assert "--push-to" not in told and "To begin with: hfcart merge '$(reboot)'" not in told


def test_a_recipe_of_hfcart_s_is_none(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("{sources: [a, b], method: ties, base: c, density: 0.5}")
    assert read(tmp_path / "r.yaml")["method"] == "ties"
