"""`sweep` and `compare` in several processes of one launch: what one process writes, byte for byte."""

from __future__ import annotations

import itertools
import json
import time
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clips import write_towers_of
from locks import is_held, wait_until
from running import HELPERS, TOKEN, contents
from safetensors.torch import load_file, save_file
from teams import in_team, launched
from test_own_images import write_photos
from three_towers import TOWERS

import hfcart
from hfcart.commands import compare, separate_process, sweep
from hfcart.commands.compare import run_compare
from hfcart.commands.merge import merge_folder
from hfcart.commands.separate_process import Apart, is_there
from hfcart.commands.sweep import run_sweep
from hfcart.errors import HfcartError
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import make
from hfcart.records import CompareRecord, SweepRecord
from hfcart.system.journal import Journal
from hfcart.system.processes import Team
from hfcart.tasks.task_cards import read_tasks
from hfcart.zero_shot import scoring
from hfcart.zero_shot.measurement import Measurement

pytestmark = pytest.mark.usefixtures("own_cache")


class Told(Progress):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.warnings: list[str] = []
        self.total = self.done = 0

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def start(self, label: str, total: int, unit: str) -> None:
        if not label.startswith("Reading "):  # folders of images, which one process opens
            self.stages.append(label)
        self.total, self.done = total, 0

    def advance(self, amount: int) -> None:
        assert amount >= 0
        self.done += amount


@pytest.fixture(scope="module")
def here(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three towers of `clip` and two folders of images, one of which is broken."""
    root = tmp_path_factory.mktemp("here")
    write_towers_of(clip, root, 3)
    for i in (1, 2, 3):
        write_photos(root / f"photos{i}", i)
    (root / "photos1" / "test" / "red_one" / "3.PNG").write_bytes(b"no image")
    return root


def measurement(here: Path, clip: Path, **more: Any) -> Measurement:
    """Batches so small that every process has some."""
    tasks = read_tasks([str(here / "photos1"), str(here / "photos2")])
    how = {"part": "test", "base": str(clip), "precision": "float32", "workers": 2, "batch_size": 3, **more}
    return Measurement(how.pop("tasks", tasks), **how)


def towers(here: Path) -> list[str]:
    return [str(here / f"t{i}") for i in (1, 2, 3)]


@pytest.mark.parametrize(
    "grid",
    [
        {"ranks": [1, 0.5], "scales": [1.0, 2.0]},
        {"ranks": [1, 0.5], "adapters": ["t1=photos1", "t2=photos2", "t3=photos3"]},
    ],
    ids=["merges", "adapters"],
)
def test_a_sweep_is_the_same_in_several_processes(
    clip: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: dict[str, Any]
) -> None:
    """And each image is decoded once for all points, or, of towers that do not fit, once for those that do."""
    seen, decode = Counter[bytes](), scoring.decode
    monkeypatch.setattr(scoring, "decode", lambda data: [seen.update([data]), decode(data)][1])
    if "adapters" in grid:
        grid = grid | {"adapters": [f"{here}/{pair.replace('=', f'={here}/')}" for pair in grid["adapters"]]}

    def swept(out: Path, team: Team | None = None, told: Progress | None = None) -> SweepRecord:
        return run_sweep(towers(here), measurement(here, clip), out=out, progress=told or Progress(), team=team, **grid)

    alone = swept(tmp_path / "alone")
    assert len({point.correct for point in alone.points}) > 1 and set(seen.values()) == {1}
    for number, at_once in ((2, 9), (3, 2)):
        monkeypatch.setattr(sweep, "towers_at_once", lambda _, at_once=at_once: at_once)
        seen.clear()
        told, out = Told(), tmp_path / f"{number}"
        found = in_team(number, lambda team, out=out, told=told: swept(out, team, told))
        assert found == [alone] * number
        assert contents(out) == contents(tmp_path / "alone")
        assert set(seen.values()) == {-(-len(alone.points) // at_once)} or "adapters" in grid
        assert told.done == told.total
        assert told.stages[0] == f"Decomposing in {number} processes"
        assert told.stages[1].startswith("Measuring ") and told.stages[1].endswith(f"points in {number} processes")


def test_python_sweeps_adapters(clip: Path, here: Path, tmp_path: Path) -> None:
    """What are adapters here is another option of a measurement."""
    pairs = [f"{here}/t{i}={here}/photos{i}" for i in (1, 2, 3)]
    how: dict[str, Any] = {"base": clip, "part": "test", "limit": 1, "rank": [1], "out": tmp_path / "out"}
    found = hfcart.sweep(towers(here), pairs, adapters=True, adapters_carry="matrices", **how)
    assert found.adapters is not None and found.adapters.carry == "matrices"
    assert set(found.adapters.owners) == {"t1", "t2", "t3"} and len(found.tasks) == 3


def test_of_two_towers_of_one_task_a_sweep_of_adapters_measures_one_and_says_so(
    clip: Path, here: Path, tmp_path: Path
) -> None:
    pairs = [f"{here}/t1={here}/photos1", f"{here}/t2={here}/photos2", f"{here}/t3={here}/photos1"]
    told = Told()
    how = measurement(here, clip, limit=1)
    found = run_sweep(towers(here), how, ranks=[1], adapters=pairs, out=tmp_path / "out", progress=told)
    assert found.adapters is not None and len(found.tasks) == 2
    one = found.adapters.owners[found.tasks.index("photos1")]
    other = {"t1": "t3", "t3": "t1"}[one]
    said = f"photos1 is the task of {one}, {other}: it is measured through the adapter of {one} alone."
    assert [warning for warning in told.warnings if "through the adapter" in warning] == [said]


@pytest.mark.parametrize("method", [{"ranks": [0.5]}, {"method": "ties"}], ids=["cart", "ties"])
def test_a_sweep_that_was_stopped_goes_on_in_as_many_processes_as_it_then_has(
    clip: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    """Another process fails among the points: what is decomposed, measured, known of the whole towers stays."""

    def swept(out: str, team: Team | None = None) -> SweepRecord:
        grid: dict[str, Any] = {**method, "scales": [0.5, 1.0, 2.0], "out": tmp_path / out}
        return run_sweep(towers(here), measurement(here, clip), **grid, progress=Progress(), team=team)

    alone = swept("alone")
    monkeypatch.setattr(sweep, "towers_at_once", lambda _: 1)
    begun, scorer = itertools.count(1), scoring.Scorer.__init__

    def failing(self: Any, *args: Any, **keywords: Any) -> None:
        if next(begun) > 4:  # each of two processes has its towers of two points
            raise HfcartError("stopped here")
        scorer(self, *args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(scoring.Scorer, "__init__", failing)
        with pytest.raises(HfcartError, match="stopped here"):
            in_team(2, lambda team: swept("out", team))
    work = tmp_path / "out.partial"
    assert (work / "points.jsonl").read_text().count("\n") == 3  # and the fingerprint
    assert sum(path.read_text().count('"group"') for path in work.glob("journal*.jsonl")) > 20
    written: list[dict[str, Any]] = []
    append = Journal.append

    def appended(self: Journal, *lines: dict[str, Any]) -> None:
        written.extend(lines)
        append(self, *lines)

    monkeypatch.setattr(Journal, "append", appended)
    assert in_team(3, lambda team: swept("out", team)) == [alone] * 3
    assert len(written) == 2 and contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert not work.exists()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[Path], None]], None]:
    """Merges in this process, since another imports torch for seconds; what is done to the result of a method."""
    after: dict[str, Callable[[Path], None]] = {}

    def apart(fields: dict[str, Any], look: Callable[[], object]) -> Apart:
        look()
        record = merge_folder(make(fields), Progress())
        if fields["method"] in after:
            after[fields["method"]](Path(fields["out"]))
        return Apart(1.0, 1, record.files["model.safetensors"], None, ())

    monkeypatch.setattr(separate_process, "merge_apart", apart)
    return after.__setitem__


def compared(here: Path, clip: Path, out: Path, *methods: str, **more: Any) -> CompareRecord:
    how = measurement(here, clip, references="measured")
    return run_compare(towers(here), how, methods=methods, out=out, **{"progress": Progress(), **more})


def overflowing(out: Path) -> None:
    """Finite weights whose features are not."""
    weights = load_file(out / "model.safetensors")
    name = "vision_model.post_layernorm.weight"
    save_file({**weights, name: weights[name] * 1e38}, out / "model.safetensors", {"format": "pt"})


def test_a_comparison_is_the_same_in_several_processes(
    clip: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    quick: Callable[[str, Callable[[Path], None]], None],
) -> None:  # fmt: skip
    """A method that is no number, and towers of which not all fit at once, change nothing of it."""
    quick("iso_c", overflowing)
    methods = ("average", "iso_c", "cart", "task_arithmetic")
    said = Told()
    alone = compared(here, clip, tmp_path / "alone", *methods, progress=said)
    assert len({row.correct for row in alone.rows}) > 2 and [row.name for row in alone.rows if row.error] == ["iso_c"]
    assert any("1 image of" in warning and "3.PNG" in warning for warning in said.warnings)
    assert '"processes"' not in alone.to_json()
    for number, at_once in ((2, 9), (3, 1)):
        monkeypatch.setattr(compare, "towers_at_once", lambda _, at_once=at_once: at_once)
        told, out = Told(), tmp_path / f"{number}"
        (found, *others) = in_team(
            number, lambda team, out=out, told=told: compared(here, clip, out, *methods, progress=told, team=team)
        )
        assert others == [found] * (number - 1) and found.processes == number
        files, plain = contents(out), contents(tmp_path / "alone")
        record = json.loads(files.pop("compare.json"))
        assert record.pop("processes") == number and record == json.loads(plain.pop("compare.json"))
        table = files.pop("compare.md").decode()
        assert f"up to {number} ran at once" in table
        assert table.splitlines()[:12] == plain.pop("compare.md").decode().splitlines()[:12] and files == plain
        assert sorted(told.warnings) == sorted(said.warnings)
        assert any(stage.startswith("Merging with ") for stage in told.stages)
        assert all(stage.endswith(f"in {number} processes") for stage in told.stages)


def test_what_another_process_has_merged_is_not_lost_with_the_first(
    clip: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    quick: Callable[[str, Callable[[Path], None]], None],
) -> None:  # fmt: skip
    """The first is stopped in the middle of its merge, once the other has made its own."""
    alone = compared(here, clip, tmp_path / "alone", "average", "cart")

    def taken(self: Team, stage: str) -> int:
        self.turns = getattr(self, "turns", -1) + 1  # type: ignore[attr-defined]
        return self.place + self.number * self.turns  # type: ignore[attr-defined,no-any-return]

    def stopped(_: Path) -> None:
        end = time.monotonic() + 60
        while not (tmp_path / "out.partial" / "journal-1.jsonl").is_file() and time.monotonic() < end:
            time.sleep(0.05)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Team, "take", taken)
        quick("linear", stopped)
        with pytest.raises(KeyboardInterrupt):
            in_team(2, lambda team: compared(here, clip, tmp_path / "out", "linear", "cart", team=team))
    made = (tmp_path / "out.partial" / "journal-1.jsonl").read_text().splitlines()
    assert [json.loads(line).get("merged") for line in made] == [None, "cart"]
    quick("linear", lambda _: None)
    merged, apart = list[str](), separate_process.merge_apart

    def counting(fields: dict[str, Any], look: Callable[[], object]) -> Apart:
        merged.append(fields["method"])
        return apart(fields, look)

    monkeypatch.setattr(separate_process, "merge_apart", counting)
    found = compared(here, clip, tmp_path / "out", "linear", "cart")
    assert merged == ["linear"] and found.processes == 2
    assert [row.correct for row in found.rows] == [row.correct for row in alone.rows]


def test_towers_that_are_measured_are_gone_before_the_next_are_made(
    clip: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    quick: Callable[[str, Callable[[Path], None]], None],
) -> None:  # fmt: skip
    """As many as fit are in memory, and no more: adapters, whose towers each task has its own, points, and merges."""
    alive, most, scorer = weakref.WeakSet[scoring.Scorer](), [0], scoring.Scorer.__init__

    def made(self: scoring.Scorer, *args: Any, **keywords: Any) -> None:
        alive.add(self)
        most[0] = max(most[0], len(alive))
        scorer(self, *args, **keywords)

    monkeypatch.setattr(scoring.Scorer, "__init__", made)
    monkeypatch.setattr(sweep, "towers_at_once", lambda _: 3)
    pairs = [f"{here}/t{i}={here}/photos{i}" for i in (1, 2, 3)]
    for grid in ({"ranks": [1], "adapters": pairs}, {"ranks": [1, 0.5]}):
        out = tmp_path / str(len(grid))
        run_sweep(towers(here), measurement(here, clip), out=out, progress=Progress(), **grid)  # type: ignore[arg-type]
        assert most == [3]
    most[0] = 0
    monkeypatch.setattr(compare, "towers_at_once", lambda _: 2)
    monkeypatch.setattr(compare, "_own_tower", lambda *_: towers(here)[0])
    compared(here, clip, tmp_path / "out", "average", "cart")
    assert most == [2]


def test_a_line_names_a_folder_of_its_own(tmp_path: Path) -> None:
    """It is removed once it is measured: what somebody else wrote into the journal removes nothing else."""
    (tmp_path / "towers" / "cart-x").mkdir(parents=True)
    for name, there in {"cart-x": True, "cart-y": False, "..": False, "cart-x/..": False, str(tmp_path): False}.items():
        assert is_there(tmp_path / "towers", {"merged": "cart", "folder": name}) is there


def test_launched_commands_write_what_one_process_writes(zoo: Any, clean_env: dict[str, str], tmp_path: Path) -> None:
    """From the Hub, images streamed; the sweep after every process of an earlier launch was killed."""
    hub, root = zoo
    env = {**clean_env, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
    tasks = ["--tasks", f"{root}/images1.yaml,{root}/images2.yaml", "--part", "test"]
    swept = ["sweep", *TOWERS, *tasks, "--rank", "0.5", "--scale", "1,2", "--out"]
    table = ["compare", *TOWERS, *tasks, "--methods", "cart,average", "--out"]
    killed = launched(2, [str(HELPERS / "felled.py"), "1", "all", *swept, "s2"], tmp_path, env, plain=True)
    assert killed.returncode == -9 and list((tmp_path / "s2.partial").glob("journal*.jsonl")), killed.stderr
    assert not (tmp_path / "s2").exists()
    merged = ["merge", *TOWERS, "--adapters", "25%", "--out"]
    several, one = ([[*swept, f"s{n}"], [*table, f"c{n}"], [*merged, f"m{n}"]] for n in (2, 1))
    args = [str(HELPERS / "many_commands.py"), json.dumps(several), json.dumps(one)]
    done = launched(2, args, tmp_path, env, plain=True)
    assert done.returncode == 0, done.stderr
    for stage in (
        *("Decomposing", "Measuring 3 points", "Merging with 2 methods"),
        "Measuring 4 of 4 rows side by side",
    ):
        assert done.stderr.count(f"{stage} in 2 processes (") == 1, done.stderr
    assert done.stdout.count("record   s2/sweep.json") == done.stdout.count("record   c2/compare.json") == 1
    assert done.stdout.count("up to 2 ran at once") == 1
    assert contents(tmp_path / "s2") == contents(tmp_path / "s1")
    assert contents(tmp_path / "m2") == contents(tmp_path / "m1") and (tmp_path / "m2" / "adapters").is_dir()
    alone, shared = (json.loads((tmp_path / name / "compare.json").read_text()) for name in ("c1", "c2"))
    assert shared.pop("processes") == 2
    for row in (*alone["rows"], *shared["rows"]):
        row["seconds"] = row["peak"] = None
    assert alone == shared and [row["correct"] is None for row in alone["rows"]] == [False] * 4
    assert not list(tmp_path.glob("*.partial"))


def test_a_process_that_is_killed_while_it_merges_ends_all_and_the_same_command_goes_on(
    zoo: Any, clean_env: dict[str, str], tmp_path: Path
) -> None:
    """Its merge ends with it. A method whose coefficients are learned is a row like any other."""
    hub, root = zoo
    env = {**clean_env, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
    command = ["compare", *TOWERS, "--tasks", f"{root}/images1.yaml", "--part", "train", "--references", "none"]
    command += ["--methods", "adamerging,average", "--out", "c"]
    felled = [str(HELPERS / "felled_apart.py"), "1", str(tmp_path / "lock"), *command]
    killed = launched(2, felled, tmp_path, env, plain=True)
    said = [line for line in killed.stderr.splitlines() if line.startswith(("Error: ", "Warning: ", "→ "))]
    assert killed.returncode == 1 and len(said) == 1, killed.stderr
    assert said[0].startswith("Warning: Stopped. What is done so far is kept in c.partial: run the same command again")
    wait_until(lambda: not is_held(tmp_path / "lock"))
    kept = [line for path in (tmp_path / "c.partial").glob("*.jsonl") for line in path.read_text().splitlines()]
    (before,) = [line for line in map(json.loads, kept) if "merged" in line]
    done = launched(2, ["-m", "hfcart", *command], tmp_path, env, plain=True)
    assert done.returncode == 0, done.stderr
    assert "Resuming: 0 of 2 rows are measured already, 1 merge wait" in done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "c" / "compare.json").read_text())["rows"]}
    assert rows[before["merged"]]["seconds"] == before["seconds"]
    assert [row["error"] for row in rows.values()] == [None, None] and rows["adamerging"]["correct"][0] > 0
