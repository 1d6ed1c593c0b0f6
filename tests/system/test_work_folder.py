"""The folder that an output is made in: what stays, what goes, what it refuses; and it knows nobody who uses it."""

from __future__ import annotations

import ast
import errno
import inspect
import os
from pathlib import Path
from typing import Any

import pytest

import hfcart.system.tensor_files
import hfcart.system.work_folder
from hfcart.errors import OutputError
from hfcart.records import file_names
from hfcart.system.disk import explain_os_errors
from hfcart.system.work_folder import SharedJournal, WorkFolder, refuse_existing, work_path

RECORDS = ("made.json", "other.json")


def work(out: Path, *, overwrite: bool = False, **more: Any) -> WorkFolder:
    return WorkFolder(out, RECORDS, overwrite=overwrite, aside=("kept", "cheap"), redone=("cheap", "*.bin"), **more)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def left_with(out: Path, *files: str, line: bool = False) -> WorkFolder:
    """A folder that somebody interrupted with these files in it."""
    with pytest.raises(KeyboardInterrupt), work(out) as folder:
        folder.begin("f")
        for name in files:
            folder.add(name, b"x")
        if line:
            folder.note({"done": 1})
        raise KeyboardInterrupt
    return folder


def test_a_whole_folder_and_nothing_beside_it(tmp_path: Path) -> None:
    with work(tmp_path / "out") as folder:
        assert folder.path == work_path(tmp_path / "out") == tmp_path / "out.partial"
        folder.begin("f")
        folder.note({"done": 1})
        for name in ("made.json", "figures/a.png", "kept/inner", "cheap/x"):
            folder.add(name, name.encode())
        assert folder.lines == [{"done": 1}]
        folder.commit()
    assert names(tmp_path) == {"out"} and names(tmp_path / "out") == {"made.json", "figures"}
    assert (tmp_path / "out" / "figures" / "a.png").read_bytes() == b"figures/a.png"


@pytest.mark.parametrize(
    ("files", "line", "kept"),
    [
        ((), False, False),
        (("cheap/x", "a.bin"), False, False),
        (("a.bin",), True, True),
        (("kept/x",), False, True),
        (("a.txt", "a.bin"), False, True),
    ],
)
def test_what_is_made_again_for_nothing_is_not_kept(
    tmp_path: Path, files: tuple[str, ...], line: bool, kept: bool
) -> None:
    left_with(tmp_path / "out", *files, line=line)
    assert (tmp_path / "out.partial").exists() == kept


def test_work_of_the_same_fingerprint_goes_on(tmp_path: Path) -> None:
    left_with(tmp_path / "out", "a.bin", "a.txt", line=True)
    with work(tmp_path / "out", overwrite=True) as folder:
        folder.refuse_other_work("f")
        folder.begin("f")
        assert folder.lines == [{"done": 1}] and {"a.bin", "a.txt"} <= names(folder.path)


def test_other_work_is_refused_and_begun_anew_only_when_told_to(tmp_path: Path) -> None:
    left_with(tmp_path / "out", "a.txt", "kept/x", "cheap/x", line=True)
    before = names(tmp_path / "out.partial")
    with work(tmp_path / "out") as folder:
        for refuse in (folder.refuse_other_work, folder.begin):
            with pytest.raises(OutputError, match="unfinished work with other sources"):
                refuse("g")
    assert names(tmp_path / "out.partial") == before
    with work(tmp_path / "out", overwrite=True) as folder:
        folder.begin("g")
        assert not folder.lines and names(folder.path) == {".lock", "journal.jsonl", "kept", "cheap"}


def test_who_is_told_that_work_is_kept(tmp_path: Path) -> None:
    notes = [[], []]
    for i, inner in enumerate((False, True)):
        with pytest.raises(KeyboardInterrupt) as stop, work(tmp_path / f"{i}", inner=inner) as folder:
            folder.add("a.txt", b"x")
            raise KeyboardInterrupt
        notes[i] = getattr(stop.value, "__notes__", [])
    assert notes[1] == [] and notes[0] == [
        f"What is done so far is kept in {tmp_path / '0.partial'}: run the same command again to go on."
    ]
    with pytest.raises(OutputError, match="There is no room") as full, work(tmp_path / "full") as folder:
        folder.add("a.txt", b"x")
        with explain_os_errors(folder.path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(full.value.hint).endswith(f"What is done so far is kept in {tmp_path / 'full.partial'}.")


@pytest.mark.parametrize(
    "name", [".lock", "journal.jsonl", "journal-1.jsonl", "model.safetensors", "towers", "adaptation.partial/state"]
)
def test_links_in_it_are_refused_and_what_they_lead_to_stays_as_it_is(tmp_path: Path, name: str) -> None:
    """Somebody else made the folder where the output is to go, with the fingerprint of the very work that is begun."""
    mine, made = tmp_path / "mine", tmp_path / "out.partial"
    (mine / "cart-1").mkdir(parents=True)
    (mine / "file").write_text("precious")
    with pytest.raises(KeyboardInterrupt), work(tmp_path / "out") as folder:
        folder.begin("f")
        folder.note({"done": 1})
        raise KeyboardInterrupt
    (made / name).unlink(missing_ok=True)
    (made / name).parent.mkdir(exist_ok=True)
    (made / name).symlink_to(mine if name == "towers" else mine / "file")
    for enter in (lambda: work(tmp_path / "out").__enter__(), work(tmp_path / "out").refuse_in_the_way):
        with pytest.raises(OutputError, match=f"out.partial is in the way: '{name}' in it is a link") as refused:
            enter()
        assert refused.value.hint == "Remove the link, or give another --out."
    assert names(mine) == {"cart-1", "file"} and (mine / "file").read_text() == "precious"


def test_what_another_process_notes_last_is_not_in_the_way(tmp_path: Path) -> None:
    """Nothing was done when the first was stopped, and it took the folder away; another had a tensor in hand."""
    with pytest.raises(KeyboardInterrupt), work(tmp_path / "out") as folder:
        folder.begin("f")
        other = SharedJournal(folder.shared(), 1)
        raise KeyboardInterrupt
    other.note({"done": 1})
    assert names(tmp_path / "out.partial") == {"journal-1.jsonl"}
    with work(tmp_path / "out") as folder:
        folder.begin("f")
        assert not folder.lines and names(folder.path) == {".lock", "journal.jsonl"}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with work(tmp_path / "out"):
        with pytest.raises(OutputError, match="Another hfcart is writing"):
            work(tmp_path / "out").__enter__()
        with pytest.raises(OutputError, match="Another hfcart is writing"):
            work(tmp_path / "out").refuse_in_the_way()
    work(tmp_path / "out").refuse_in_the_way()


@pytest.mark.parametrize("name", [".lock", "journal.jsonl", *RECORDS, "kept"])
def test_unfinished_work_is_known_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "notes.txt").write_text("mine")
    for refuse in (work(tmp_path / "out").refuse_in_the_way, work(tmp_path / "out").__enter__):
        with pytest.raises(OutputError, match="is in the way"):
            refuse()
    (tmp_path / "out.partial" / name).write_text("")
    with work(tmp_path / "out"):
        pass


def test_only_what_hfcart_made_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    refuse_existing(out, RECORDS, overwrite=True)  # empty
    (out / "notes.txt").write_text("mine")
    for overwrite, words in ((False, "exists already"), (True, "is not a folder that hfcart made")):
        with pytest.raises(OutputError, match=words):
            work(out, overwrite=overwrite)
    (out / "other.json").write_text("")
    with work(out, overwrite=True) as folder:
        folder.add("made.json", b"new")
        folder.commit()
    assert names(tmp_path) == {"out"} and names(out) == {"made.json"}


def test_what_finished_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists already"), work(tmp_path / "out") as folder:
        folder.add("made.json", b"new")
        (tmp_path / "out").mkdir()
        folder.commit()
    assert names(tmp_path / "out.partial") >= {"made.json", ".lock"} and not names(tmp_path / "out")


@pytest.mark.parametrize("name", ["hfcart.json", "sweep.json", "compare.json"])
def test_finished_work_of_any_kind_may_be_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    refuse_existing(tmp_path, file_names.RECORDS, overwrite=True)


@pytest.mark.parametrize("module", [hfcart.system.work_folder, hfcart.system.tensor_files])
def test_neither_knows_who_uses_it(module: Any) -> None:
    texts = {n.value for n in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(n, ast.Constant)}
    told = " ".join(text for text in texts if isinstance(text, str))
    for name in (*file_names.RECORDS, "converted", "adaptation", "choosing", "checkpoints"):
        assert name not in told, name
