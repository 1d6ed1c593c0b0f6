"""Several processes that a launcher started: the same bytes, one message, and a folder to go on with."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from running import HELPERS, TOKEN, contents
from safetensors.torch import load_file, save_file
from teams import in_team, launched, teams
from three_towers import TOWERS
from towers import TINY, write_tower

import hfcart
from hfcart.engine.merging import merge_groups
from hfcart.engine.plan import Plan
from hfcart.engine.planning import make_plan
from hfcart.engine.taking_part import hear_of_all, merge_part
from hfcart.engine.writing import GroupWriter
from hfcart.errors import HfcartError, NonFiniteError, OutputError, UsageError
from hfcart.formats.safetensors_file import LocalFile
from hfcart.methods import METHODS
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import make
from hfcart.sources.towers import fetch_all
from hfcart.system.environment import current_environment, refuse_another_kind
from hfcart.system.processes import Team, packed
from hfcart.system.tensor_files import TensorFiles
from hfcart.system.work_folder import SharedJournal, WorkFolder

CPU = torch.device("cpu")
SMALL = {**TINY, "num_hidden_layers": 1}
ALONE = [name for name, method in METHODS.items() if method.statistics is None and not method.exactly]


class Told(Progress):
    """Notes the stages."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.total = self.done = 0

    def start(self, label: str, total: int, unit: str) -> None:
        self.labels.append(label)
        self.total, self.done = total, 0

    def advance(self, amount: int) -> None:
        assert amount >= 0
        self.done += amount


def planned(sources: list[str], **fields: Any) -> Plan:
    plan = make_plan(make({"sources": sources, **fields}), Path("unused"), Progress())
    fetch_all(plan.towers_and_base, Progress(), stream=False)
    return plan.in_canonical_order()


def groups_of(plan: Plan, out: Path, team: Team | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Merge the groups of a plan as the first process, or alone: every tensor's bytes, and every line but its order."""
    environment = current_environment(CPU)
    with WorkFolder(out, ("hfcart.json",), overwrite=False) as folder:
        folder.begin("same")
        with TensorFiles(folder.path, plan.layout) as tensors:
            writer = GroupWriter(plan, folder, tensors)
            if team is not None:
                team.call(merge_part, plan, folder.shared(), environment, writer.done, writer.facts)
            merge_groups(plan, writer, CPU, 1, progress or Progress(), team)
            if team is not None:
                hear_of_all(team, writer)
            assert set(writer.done) == {group.key for group in plan.groups}
            found = {name: tensors.read(name) for name in plan.layout.slots}
            return {"lines": writer.done, "facts": writer.facts, **found}


@pytest.fixture(scope="module")
def four_small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("small")
    return [str(write_tower(root / f"t{i}", i, SMALL)) for i in range(4)]


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize(
    "fields",
    [*({"method": name} for name in ALONE), {"method": "task_arithmetic", "lines": 1.0}, {"adapters": 0.25}],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_every_method_has_the_same_bits_in_several_processes(
    four_small: list[str], tmp_path: Path, fields: dict[str, Any], number: int
) -> None:
    base = {"base": four_small[0]} if METHODS[fields.get("method", "cart")].needs_base else {}
    plan = planned(four_small[1:], **fields, **base)
    try:
        alone = groups_of(plan, tmp_path / "alone")
        told = Told()
        found = in_team(number, lambda team: groups_of(plan, tmp_path / "shared", team, told))
        assert found == [alone] * number
        assert told.labels[-1] == f"Merging in {number} processes" and told.done == told.total
    finally:
        plan.close()


def test_what_another_process_reads_is_what_the_first_has_hashed(four_small: list[str], tmp_path: Path) -> None:
    """A source that changes between the first's look at it and the other's is refused, in every process."""
    copy = Path(shutil.copytree(four_small[1], tmp_path / "copy"))
    plan = planned([str(copy), *four_small[2:]])

    def lead(team: Team) -> object:
        other = {name: tensor + 1 for name, tensor in load_file(copy / "model.safetensors").items()}
        save_file(other, tmp_path / "new.safetensors")
        (copy / "model.safetensors").write_bytes((tmp_path / "new.safetensors").read_bytes())
        return groups_of(plan, tmp_path / "m", team)

    with pytest.raises(HfcartError, match="changed while it was read"):
        in_team(2, lead)
    plan.close()


def test_a_failure_is_the_first_in_the_groups_order_whoever_met_it(four_small: list[str], tmp_path: Path) -> None:
    bad = Path(shutil.copytree(four_small[1], tmp_path / "bad"))
    tensors = load_file(bad / "model.safetensors")
    plan = planned(four_small[2:])
    names = [plan.groups[place].names[0] for place in (1, 2, 5)]
    plan.close()
    for name in names:
        tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, bad / "model.safetensors")
    for number in (1, 2, 3):
        plan = planned([str(bad), *four_small[2:]])
        with pytest.raises(NonFiniteError, match=names[0]):
            in_team(number, lambda team, plan=plan, number=number: groups_of(plan, tmp_path / f"m{number}", team))
        plan.close()


def test_a_process_that_gives_no_sign_of_life_is_not_waited_for() -> None:
    told = "The first of 2 processes has given no sign of life for 0.3 seconds"
    with teams(2, patience=0.3) as (_, second), pytest.raises(HfcartError, match=told):
        second.follow()  # the first was never entered
    told = "Process 2 of 2 has given no sign of life for 0.3 seconds"
    with teams(2, patience=0.3) as (first, _), pytest.raises(HfcartError, match=told):
        first.exchange("any", 1)


def test_the_first_raises_what_another_process_fails_with() -> None:
    def lead(team: Team) -> None:
        team.call(failing)
        team.exchange("never", 1)

    for number in (2, 3):
        with pytest.raises(HfcartError, match=rf"did not expect in process 2 of {number} \(ZeroDivisionError\)"):
            in_team(number, lead)


def failing(team: Team) -> None:
    if team.place == 1:
        print(1 / 0)


def test_errors_keep_their_class_their_hint_and_their_exit_code() -> None:
    error = packed(UsageError("wrong", hint="right"))
    assert type(error) is UsageError and error.hint == "right"
    from hfcart.errors import MismatchError

    rows = packed(MismatchError("two kinds", [("a", "b", "c", "d")], hint="one"))
    assert isinstance(rows, HfcartError) and (rows.message, rows.hint) == ("two kinds", "one")


def test_another_folder_another_machine_or_another_disk_is_refused(four_small: list[str], tmp_path: Path) -> None:
    with WorkFolder(tmp_path / "m", (), overwrite=False) as folder:
        folder.begin("f")
        shared = folder.shared()
        SharedJournal(shared, 1)
        for other in ({"mark": "another"}, {"path": tmp_path / "elsewhere"}):
            with pytest.raises(OutputError, match="not the folder that the first process writes to") as error:
                SharedJournal(dataclasses.replace(shared, **other), 1)
            assert "disk that all of them share" in (error.value.hint or "")
    environment = current_environment(CPU)
    with teams(2) as (_, second):
        refuse_another_kind(second, CPU, environment)
        with pytest.raises(UsageError, match=r"process 2 of 2 has torch .* \(the first: 1.0\)"):
            refuse_another_kind(second, CPU, dataclasses.replace(environment, torch="1.0"))
    file = LocalFile(Path(four_small[0]) / "model.safetensors", "t0/model.safetensors")
    opened, (path, *rest) = file.__reduce__()
    file.close()
    with pytest.raises(HfcartError, match="t0/model.safetensors cannot be read in every process") as gone:
        opened(path.with_name("not-here"), *rest)
    assert "share" in (gone.value.hint or "")


def test_processes_share_the_cores_and_each_takes_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from hfcart.system import device, threads

    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert threads.default_workers() == 8 and str(device.choose_device("auto")) == "cuda"
    for name, value in {"WORLD_SIZE": "6", "RANK": "4", "LOCAL_WORLD_SIZE": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert threads.default_workers() == 2
    assert str(device.choose_device("auto")) == str(device.choose_device("cuda")) == "cuda:1"
    assert str(device.choose_device("cuda:0")) == "cuda:0"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert str(device.choose_device("auto")) == "cpu"


def test_launched_merges_are_what_one_process_makes(zoo, clean_env: dict[str, str], tmp_path: Path) -> None:
    """From a Hub that one process alone asks: passes over all towers, statistics, shards, a whole CLIP, streaming."""
    hub, root = zoo
    tasks = [f"{name}={root}/images{i}.yaml" for i, name in enumerate(TOWERS, start=1)]
    recipes: list[dict[str, Any]] = [
        {"method": "ties", "base": "user/clip", "lines": 0.5, "full_clip": True, "max_shard_size": "20KB"},
        {"method": "regmean", "tasks": tasks, "examples": 8},
        {"method": "regmean_pp", "tasks": tasks, "examples": 8},
        {"adapters": 0.25, "stream": True},
    ]
    every = [{"sources": TOWERS, **recipe} for recipe in recipes] + [{"sources": [*TOWERS, "user/none"]}]
    asked = {}
    for number in (1, 2, 3):
        env = {**clean_env, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / f"hf{number}")}
        out = tmp_path / f"out{number}"
        out.mkdir()
        hub.requests.clear()
        done = launched(number, [str(HELPERS / "many_merges.py"), str(out), json.dumps(every)], tmp_path, env)
        assert done.returncode == 0, done.stderr
        told = [(out / f"told-{n}").read_text().splitlines() for n in range(len(every))]
        assert told[:-1] == [[str(out / str(n))] * number for n in range(len(recipes))]
        assert told[-1] == [told[-1][0]] * number and "user/none" in told[-1][0], told
        asked[number] = sorted(r.path for r in hub.requests if not r.range)
    assert asked[1] == asked[2] == asked[3]
    for n in range(len(recipes)):
        assert contents(tmp_path / "out1" / str(n)) == contents(tmp_path / "out2" / str(n))
        assert contents(tmp_path / "out1" / str(n)) == contents(tmp_path / "out3" / str(n))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three towers, and what one process makes of them."""
    root = tmp_path_factory.mktemp("sources")
    base, *towers = [str(write_tower(root / f"t{i}", i)) for i in range(4)]
    hfcart.merge(towers, out=root / "undisturbed", method="ties", base=base)
    return root


MERGE = ["merge", "t1", "t2", "t3", "--method", "ties", "--base", "t0", "--out", "m", "--workers", "1"]


def fall(sources: Path, env: dict[str, str], *args: str, number: int = 2) -> tuple[int, str]:
    """A merge that several processes begin, of which one falls: exit code, and what was said but by the launcher."""
    command = [str(HELPERS / "felled.py"), *args, *MERGE]
    done = launched(number, command, sources, env, plain=True)
    said = [line for line in done.stderr.splitlines() if line.startswith(("Error: ", "Warning: ", "→ "))]
    assert not (sources / "m").exists()
    return done.returncode, "\n".join(said)


def test_whoever_is_killed_the_same_command_goes_on(sources: Path, clean_env: dict[str, str]) -> None:
    env = {**clean_env, "HF_ENDPOINT": "http://127.0.0.1:9"}
    kept = 0
    for place, how, said in (
        ("1", "SIGKILL", "Warning: Stopped. What is done so far is kept in m.partial: run the same command again"),
        ("0", "SIGKILL", "Warning: Stopped. The first of 2 processes is gone. Run the same command again"),
        ("1", "all", ""),
    ):
        code, found = fall(sources, env, place, how)
        assert code == (-9 if how == "all" else 1), found
        assert found.startswith(said) and found.count("\n") == 0, found
        lines = sum(path.read_text().count("\n") for path in (sources / "m.partial").glob("journal*.jsonl"))
        assert lines > kept  # what was kept stays, and more is
        kept = lines
    done = launched(3, ["-m", "hfcart", *MERGE], sources, env, plain=True)
    assert done.returncode == 0, done.stderr
    assert "Resuming: " in done.stderr and "Merging in 3 processes" in done.stderr
    assert done.stdout.count("Merged 3 towers") == 1
    assert contents(sources / "m") == contents(sources / "undisturbed")
    for path in (sources / "m").rglob("*"):
        assert "journal" not in path.name
    assert not (sources / "m.partial").exists()


@pytest.mark.parametrize(
    ("place", "how", "said"),
    [
        ("1", "SIGINT", "Error: Process 2 of 2 was stopped.\n→ Run the same command again: it goes on"),
        ("0", "SIGINT", "Warning: Stopped. What is done so far is kept in m.partial"),
        ("1", "full", "Error: There is no room for "),
    ],
)
def test_a_failure_in_one_process_ends_all_with_one_message(
    sources: Path, tmp_path: Path, clean_env: dict[str, str], place: str, how: str, said: str
) -> None:
    for i in range(4):
        (tmp_path / f"t{i}").symlink_to(sources / f"t{i}")
    code, found = fall(tmp_path, clean_env | {"HF_ENDPOINT": "http://127.0.0.1:9"}, place, how)
    assert code == 1 and found.startswith(said), found
    assert sum(line.startswith(("Error: ", "Warning: ")) for line in found.splitlines()) == 1
    if how == "full":
        assert "What is done so far is kept in " in found


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["merge", "t1", "t2", "--dry-run"], 0, ["3, which share the groups", "in each process"]),
        (["merge", "t1", "--rnk", "3"], 2, ["No such option: --rnk"]),
        (["merge", "t1", "t2", "--method", "cat"], 2, ["unknown method 'cat'"]),
        (["verify", "t1", "--quiet"], 2, ["Type it without the launcher: hfcart verify t1 --quiet"]),
    ],
)
def test_one_process_speaks(
    sources: Path, clean_env: dict[str, str], command: list[str], code: int, said: list[str]
) -> None:
    done = launched(
        3, ["-m", "hfcart", *command], sources, clean_env | {"HF_ENDPOINT": "http://127.0.0.1:9"}, plain=True
    )
    everything = done.stdout + done.stderr
    assert done.returncode == bool(code), everything  # a launcher has 1 for every failure, and says which it was
    assert not code or f"exitcode  : {code} " in everything.partition("Root Cause")[2], everything
    assert all(everything.count(words) == 1 for words in said), everything
