"""`merge`: what becomes of the output folder, what is warned of, and that the record gives the same bytes again."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import yaml
from merging import Listener, merged, raw
from safetensors.torch import load_file
from towers import write_tower

import hfcart
from hfcart.errors import HfcartError, HfcartWarning, NonFiniteError, OutputError, UsageError
from hfcart.recipes.finished_merge import read_record
from hfcart.report.merge_card import render_card
from hfcart.sources.stores import SMALL


def test_the_recipe_reproduces_the_bytes(four: list[Path], tmp_path: Path) -> None:
    first = merged(four, tmp_path / "m", rank=3, scale=1.3, qkv="fused", max_shard_size="30KB")
    fields = yaml.safe_load((tmp_path / "m" / "recipe.yaml").read_text())
    fields["sources"] = [{**s, "path": str(tmp_path / s["path"])} for s in fields["sources"]]
    again = hfcart.merge(**fields, out=str(tmp_path / "again"))
    assert raw({k: v for p in (tmp_path / "again").glob("*.safetensors") for k, v in load_file(p).items()}) == raw(
        first
    )
    for name in ("recipe.yaml", "hfcart.json", "config.json", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "m" / name).read_bytes()
    assert again.recipe == yaml.safe_load((tmp_path / "m" / "recipe.yaml").read_text())


@pytest.mark.usefixtures("drawn")
def test_nothing_of_this_machine_is_in_the_output(four: list[Path], tmp_path: Path) -> None:
    hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"))
    for path in (tmp_path / "m").rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_a_device_that_is_not_there(four: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no device cuda:99"):
        hfcart.merge([str(s) for s in four], out=str(tmp_path / "m"), device="cuda:99")


def test_one_source_and_the_same_twice_are_warned_of(four: list[Path], tmp_path: Path) -> None:
    listener = Listener()
    hfcart.merge([str(four[0])], out=str(tmp_path / "one"), progress=listener)
    assert listener.warnings == ["Only one source: the result is t1 again under most methods."]
    copy = write_tower(tmp_path / "copy", 1)
    listener = Listener()
    hfcart.merge([str(four[0]), str(copy), str(four[1])], out=str(tmp_path / "copies"), progress=listener)
    assert listener.warnings == ["copy and t1 hold the same weights: they count twice in the merge."]
    listener = Listener()
    hfcart.merge([str(s) for s in four[:2]], out=str(tmp_path / "two"), progress=listener)
    assert listener.warnings == [
        "cart gives 2 sources their plain average, whatever its parameters: it takes 3 or more."
    ]


def test_python_is_warned_where_it_called(four: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (four[0] / "README.md").write_text("x" * (SMALL + 1))
    with pytest.warns(HfcartWarning) as caught:
        hfcart.merge(four[:2], out=tmp_path / "m")
    texts = sorted(str(warning.message) for warning in caught)
    # The second comes from a thread that reads sources, on whose stack no caller is to be seen.
    assert [text[:20] for text in texts] == ["cart gives 2 sources", "t1/README.md is too l"[:20]]
    assert {warning.filename for warning in caught} == {__file__} and len({w.lineno for w in caught}) == 1
    listener = Listener()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hfcart.merge(four[:2], out=tmp_path / "again", progress=listener)  # it is told instead
        assert sorted(listener.warnings) == texts
        with pytest.raises(HfcartWarning, match="plain average"):
            hfcart.merge(four[1:3], out=tmp_path / "strict")
    assert capfd.readouterr() == ("", "")


def test_the_output_is_not_replaced_unasked(four: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "m"
    merged(four, out)
    (out / "stale.txt").write_text("from before")
    with pytest.raises(OutputError, match="exists already"):
        merged(four, out)
    before = raw(load_file(out / "model.safetensors"))
    with pytest.raises(NonFiniteError):  # a failing merge leaves the old one as it was
        merged(four, out, overwrite=True, dtype="float16", scale=1e7)
    assert raw(load_file(out / "model.safetensors")) == before and (out / "stale.txt").exists()
    merged(four, out, overwrite=True, rank=3, max_shard_size="20KB")
    assert not (out / "stale.txt").exists() and not (out / "model.safetensors").exists()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("m")) == ["m"]


def test_overwrite_spares_what_is_no_model(four: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.tex").write_text("years of work")
    with pytest.raises(OutputError, match="not a folder that hfcart made"):
        merged(four, out, overwrite=True)
    assert (out / "chapter1.tex").exists()


def test_another_merge_in_the_partial_folder(four: list[Path], tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        merged(four, tmp_path / "m", dtype="float16", scale=1e7)
    with pytest.raises(OutputError, match="unfinished work with other"):
        merged(four, tmp_path / "m")
    merged(four, tmp_path / "m", overwrite=True)
    assert raw(load_file(tmp_path / "m" / "model.safetensors")) == raw(merged(four, tmp_path / "n"))


def test_the_output_cannot_replace_a_source(four: list[Path], tmp_path: Path) -> None:
    merged(four[:2], tmp_path / "old")
    before = raw(load_file(tmp_path / "old" / "model.safetensors"))
    with pytest.raises(OutputError, match="old would replace the source old"):
        merged([tmp_path / "old", four[2]], tmp_path / "old", overwrite=True)
    (tmp_path / "old" / "inside").mkdir()
    inside = write_tower(tmp_path / "old" / "inside" / "t", 7)
    with pytest.raises(OutputError, match="old would replace the source t"):
        merged([inside, four[2]], tmp_path / "old", overwrite=True)
    assert raw(load_file(tmp_path / "old" / "model.safetensors")) == before


def test_a_partial_folder_of_somebody_else_is_left_alone(four: list[Path], tmp_path: Path) -> None:
    (tmp_path / "m.partial").mkdir()
    (tmp_path / "m.partial" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="m.partial is in the way"):
        merged(four, tmp_path / "m")
    (tmp_path / "n.partial").symlink_to(tmp_path / "m.partial")
    with pytest.raises(OutputError, match="n.partial is in the way"):
        merged(four, tmp_path / "n")
    assert (tmp_path / "m.partial" / "notes.txt").read_text() == "mine"


def test_an_early_failure_leaves_no_litter(four: list[Path], tmp_path: Path) -> None:
    with pytest.raises(HfcartError):
        merged([four[0], tmp_path / "nowhere"], tmp_path / "m")
    assert not list(tmp_path.glob("m*"))


@pytest.mark.parametrize("out", [".", "..", "a/..", "", "x\0y", "m.partial", "n" * 300])
def test_outputs_that_are_no_folder(four: list[Path], out: str) -> None:
    with pytest.raises(UsageError, match="out: "):
        hfcart.merge([str(s) for s in four], out=out)


def test_one_source_must_be_in_a_list(four: list[Path]) -> None:
    with pytest.raises(TypeError, match="give a list"):
        hfcart.merge(str(four[0]))


def test_sources_of_one_name_are_warned_of(tmp_path: Path) -> None:
    sources = [write_tower(tmp_path / f"run{i}" / "tower", i) for i in (1, 2)]
    listener = Listener()
    hfcart.merge(sources, out=tmp_path / "m", progress=listener)
    assert [w for w in listener.warnings if w.startswith("2 local sources are called tower")]


def test_the_record_tells_the_card_word_for_word(four: list[Path], tmp_path: Path) -> None:
    hfcart.merge(four, out=tmp_path / "m", rank=3)
    record = read_record((tmp_path / "m" / "hfcart.json").read_bytes(), "m")
    assert render_card(record) == (tmp_path / "m" / "README.md").read_text()
