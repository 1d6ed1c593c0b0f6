"""Killed, interrupted, out of disk, corrupted: what is done is kept, what is kept is proven, the end is the same."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from running import HELPERS, LIMIT, contents, ended
from safetensors.torch import save_file
from towers import TINY, weights, write_tower

import hfcart
from hfcart.commands.merge import merge_folder
from hfcart.commands.merge_again import merge_again
from hfcart.errors import DistantError, OutputError
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import make

pytestmark = pytest.mark.usefixtures("drawn")  # what a command wrote is compared with what was merged here
KILLS = 24
SMALL = {**TINY, "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 6}


@pytest.mark.parametrize(("seed", "fields"), [(1, {"rank": 0.25}), (2, {"rank": 0.25}), (3, {"adapters": 0.25})])
def test_kill_9_at_seeded_journal_lengths(
    tmp_path: Path, clean_env: dict[str, str], seed: int, fields: dict[str, float]
) -> None:
    sources = [str(write_tower(tmp_path / f"t{i}", i, SMALL)) for i in (1, 2, 3)]
    hfcart.merge(sources, out=str(tmp_path / "undisturbed"), **fields)
    command = [sys.executable, str(HELPERS / "killer.py"), str(tmp_path / "m"), str(seed), str(KILLS)]
    command += [json.dumps(fields), *sources]
    done = ended(command, warm=True, cwd=tmp_path, env=clean_env)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["last"] == 0
    assert len(report["seen"]) == KILLS
    for attempt in report["seen"]:
        # Killed while at work, nothing that looks finished, no line lost, no group done twice.
        assert attempt["killed"] and attempt["kept"] and not attempt["finished"] and not attempt["twice"]
    assert report["seen"][-1]["lines"] > KILLS
    assert contents(tmp_path / "m") == contents(tmp_path / "undisturbed")
    assert not (tmp_path / "m.partial").exists()


@pytest.fixture
def stopped(tmp_path: Path) -> list[str]:
    """Sources whose merge into tmp/m has stopped with every group done but the folder not finished."""
    sources = [str(write_tower(tmp_path / f"t{i}", i)) for i in (1, 2)]
    far = write_tower(tmp_path / "far", 3)
    save_file({k: 3 * torch.randn(v.shape) for k, v in weights(3).items()}, far / "model.safetensors")
    sources.append(str(far))
    hfcart.merge(sources, out=str(tmp_path / "undisturbed"), allow_distant=True)
    with pytest.raises(DistantError):
        hfcart.merge(sources, out=str(tmp_path / "m"))
    return sources


def test_a_journal_is_believed_only_where_the_bytes_prove_it(stopped: list[str], tmp_path: Path) -> None:
    shard, journal = tmp_path / "m.partial" / "model.safetensors", tmp_path / "m.partial" / "journal.jsonl"
    data = bytearray(shard.read_bytes())
    data[-200:] = bytes(200)  # what a power cut may leave: the line is there, the bytes are not
    shard.write_bytes(data)
    with journal.open("ab") as file:
        file.write(b'{"group": "vision_model.torn')
    hfcart.merge(stopped, out=str(tmp_path / "m"), allow_distant=True)
    assert contents(tmp_path / "m") == contents(tmp_path / "undisturbed")


def test_a_source_that_changed_is_not_resumed(stopped: list[str], tmp_path: Path) -> None:
    write_tower(tmp_path / "far", 4)
    with pytest.raises(OutputError, match="unfinished work with other sources"):
        hfcart.merge(stopped, out=str(tmp_path / "m"))


def interrupted(tmp_path: Path, env: dict[str, str], signum: int) -> tuple[int, str, int]:
    """Start a real command, signal it once its journal has a few lines. Returns code, stderr, lines kept."""
    large = {**TINY, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 14}
    for i in (1, 2, 3):
        write_tower(tmp_path / f"t{i}", i, large)
    command = [sys.executable, "-m", "hfcart", "merge", "t1", "t2", "t3", "--out", "m", "--workers", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "m.partial" / "journal.jsonl"
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 4):
        time.sleep(0.001)
    process.send_signal(signum)
    _, err = process.communicate(timeout=LIMIT)
    return process.returncode, err, journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_leaves_a_folder_to_resume(tmp_path: Path, clean_env: dict[str, str], signum: int, code: int) -> None:
    returned, err, lines = interrupted(tmp_path, clean_env, signum)
    assert returned == code, err
    assert lines >= 4 and not (tmp_path / "m").exists()
    assert "Traceback" not in err
    assert "Stopped. What is done so far is kept in m.partial: run the same command again to go on." in err
    command = [sys.executable, "-m", "hfcart", "merge", "t1", "t2", "t3", "--out", "m", "--workers", "2"]
    again = ended(command, warm=True, cwd=tmp_path, env=clean_env)
    assert again.returncode == 0, again.stderr
    assert "Resuming: " in again.stderr
    hfcart.merge([str(tmp_path / f"t{i}") for i in (1, 2, 3)], out=str(tmp_path / "undisturbed"))
    assert contents(tmp_path / "m") == contents(tmp_path / "undisturbed")


class Stop(Progress):
    """Ctrl-C at the stage of that name, or after so many groups."""

    def __init__(self, at: str | int) -> None:
        self.at, self.done = at, 0

    def step(self, text: str) -> None:
        if text == self.at:
            raise KeyboardInterrupt

    def advance(self, amount: int) -> None:
        self.done += amount > 0
        if self.done == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", ["Resolving sources", "Reading headers", "Checking digests", 1, 12])
def test_work_is_said_to_be_kept_only_where_it_is(tmp_path: Path, at: str | int) -> None:
    sources = [str(write_tower(tmp_path / f"t{i}", i)) for i in (1, 2)]
    torch.save(weights(3), write_tower(tmp_path / "old", 3) / "pytorch_model.bin")  # converted early
    (tmp_path / "old" / "model.safetensors").unlink()
    out = tmp_path / "m"
    with pytest.raises(KeyboardInterrupt) as stop:
        hfcart.merge([*sources, str(tmp_path / "old")], out=str(out), workers=1, progress=Stop(at))
    kept = out.with_name("m.partial").is_dir()
    assert kept == isinstance(at, int)
    notes = [f"What is done so far is kept in {out}.partial: make the same call again to go on."]
    assert getattr(stop.value, "__notes__", []) == (notes if kept else [])


def test_of_work_in_a_temporary_folder_nothing_is_said_to_be_kept(tmp_path: Path) -> None:
    sources = [str(write_tower(tmp_path / f"t{i}", i)) for i in (1, 2)]
    out = str(tmp_path / "m")
    with pytest.raises(KeyboardInterrupt) as stop:
        merge_again(make({"sources": sources, "out": out, "workers": 1}), "m/hfcart.json", Stop(5))
    assert stop.value.__notes__ == []
    far = {k: 3 * torch.randn(v.shape) for k, v in weights(2).items()}
    save_file(far, tmp_path / "t2" / "model.safetensors")
    with pytest.raises(DistantError, match="not of one ancestor") as distant:
        merge_folder(make({"sources": sources, "out": out + "t"}), Progress())
    assert "the work is kept in" in str(distant.value.hint)
    with pytest.raises(DistantError, match="not of one ancestor") as distant:
        merge_again(make({"sources": sources, "out": out + "n"}), "m/hfcart.json", Progress())
    assert distant.value.hint is None


def test_a_full_disk_fails_at_the_start(tmp_path: Path, clean_env: dict[str, str]) -> None:
    for i in (1, 2):
        write_tower(tmp_path / f"t{i}", i)
    # The kernel refuses to grow a file beyond this, as it does on a full disk.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    code = f"{limit}\nimport hfcart.cli\nhfcart.cli.main()"
    done = ended([sys.executable, "-c", code, "merge", "t1", "t2", "--out", "m"], cwd=tmp_path, env=clean_env)
    assert done.returncode == 1
    assert "There is no room for m.partial" in done.stderr and "Traceback" not in done.stderr
    assert "kept" not in done.stderr
    assert not (tmp_path / "m.partial").exists()  # before a single group was merged
    assert not (tmp_path / "m").exists()


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    source = str(write_tower(tmp_path / "t1", 1))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        hfcart.merge([source], out=str(tmp_path / "file" / "m"))


def test_two_at_once_do_not_mix(tmp_path: Path, clean_env: dict[str, str]) -> None:
    source = write_tower(tmp_path / "t1", 1)
    holder = (
        "import sys\nfrom pathlib import Path\nfrom hfcart.system.work_folder import WorkFolder\n"
        f"with WorkFolder(Path({str(tmp_path / 'm')!r}), (), overwrite=False):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder], env=clean_env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    with pytest.raises(OutputError, match="Another hfcart is writing"):
        hfcart.merge([str(source)], out=str(tmp_path / "m"))
    process.communicate("", timeout=LIMIT)
    hfcart.merge([str(source)], out=str(tmp_path / "m"))
