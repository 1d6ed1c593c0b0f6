"""Each function does what its command does, in a process that stays as it was, and prints nothing."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from records import poisoned, poisoned_results
from running import ROOT, TOKEN, Commands, Run, contents, ended
from three_towers import TOWERS

import hfcart
from hfcart.api import options
from hfcart.api.results import Evaluated, Merged, Published, Verified
from hfcart.cli._shared.as_python import FUNCTIONS, keywords
from hfcart.commands.compare import run_compare
from hfcart.commands.evaluate_and_publish import run_measure
from hfcart.commands.push import run_push
from hfcart.commands.sweep import run_sweep
from hfcart.commands.verify import run_verify
from hfcart.errors import HfcartError, HfcartWarning, KeywordError, OutputError, UsageError
from hfcart.learning.finetune.recipe import FinetuneRecipe
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import Recipe
from hfcart.zero_shot.measurement import Measurement

ALL = """
import json, logging, signal, sys
from pathlib import Path
import huggingface_hub
import hfcart

client = logging.getLogger("huggingface_hub")
before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), client.handlers, client.propagate)
towers, root = sys.argv[1].split(","), sys.argv[2]
tasks = [Path(root, f"images{i}.yaml") for i in (1, 2, 3)]

merged = hfcart.merge(towers, rank=0.25, eval=tasks[:1], push_to="user/pushed", base="user/clip", out="merged")
results = hfcart.evaluate("merged", tasks, references="measured", base="user/clip", limit=20)
unwritten = hfcart.evaluate("user/t1", tasks[0], limit=4, write=False)
sweep = hfcart.sweep(towers, tasks[0], rank="0.1:0.5:2", scale=[1, 2.0], limit=20, out="swept")
again = hfcart.merge(towers, **sweep.setting, out="again")
table = hfcart.compare(towers, tasks[0], methods=["cart,average"], limit=8, out="compared", references="none")
tuned = hfcart.finetune("user/clip", tasks[0], steps=2, batch_size=4, out="tuned")
pushed = hfcart.push("merged", "user/merged", commit_message="From Python")
verdict = hfcart.verify("user/merged")

after = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), client.handlers, client.propagate)
assert after == before, (after, before)
found = {
    "mean": [merged.mean, results.mean, sweep.mean, table.mean],
    "merged": [str(merged.folder), merged.published.url, merged.results.tower, merged.energy],
    "setting": sweep.setting, "scales": [again.method.parameters["rank"], again.method.parameters["scale"]],
    "pushed": [pushed.url, pushed.commit, pushed.pull_request, pushed.changed], "verdict": bool(verdict),
    "folders": [str(each.folder) for each in (results, sweep, table, tuned)], "nowhere": unwritten.folder,
    "repr": [repr(each) for each in (merged, results, sweep, table, tuned, pushed, verdict)],
    "html": [each._repr_html_() for each in (merged, results, sweep, table, tuned, pushed, verdict)],
    "rows": [len(each.to_frame()) for each in (merged, results, sweep, table, tuned, verdict)],
    "columns": list(results.to_frame().columns), "curve": sweep.curve.is_file(),
}
with open("found.json", "w") as file:
    json.dump(found, file)
"""


MEASURED = {field.name for field in dataclasses.fields(Measurement)}


def python(
    code: str, env: dict[str, str], cwd: Path, *args: str, warm: bool = True
) -> subprocess.CompletedProcess[str]:
    done = ended(
        [sys.executable, "-W", "error", "-W", "ignore::hfcart.errors.HfcartWarning", "-c", code, *args],
        warm=warm, env=env, cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def called(zoo, clean_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    """Every function called once, in one process: its folder, what was found, and what was printed."""
    hub, root = zoo
    folder = tmp_path_factory.mktemp("called")
    env = clean_env | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "hf-home")}
    done = python(ALL.replace('"-W", "error"', ""), env, folder, ",".join(TOWERS), str(root))
    return folder, json.loads((folder / "found.json").read_text()), done.stdout + done.stderr


def test_all_of_them_run_in_one_process_and_print_nothing(called) -> None:
    folder, found, printed = called
    assert printed == ""
    assert found["verdict"] is True and found["pushed"][2:] == [None, True] and len(found["pushed"][1]) == 40
    assert found["folders"] == ["merged", "swept", "compared", "tuned"] and found["nowhere"] is None
    assert not list(folder.glob("*-results")) and found["curve"]
    assert found["merged"][:3] == ["merged", found["pushed"][0].replace("user/merged", "user/pushed"), "merged"]
    assert 0 < found["merged"][3] < 1 and all(0 <= mean <= 1 for mean in found["mean"])
    assert found["scales"] == [found["setting"]["rank"], found["setting"]["scale"]]


def test_they_do_what_the_commands_do(called, zoo, commands: Commands, tmp_path: Path) -> None:
    hub, root = zoo
    folder, found, _ = called
    tasks = [f"{root}/images{i}.yaml" for i in (1, 2, 3)]
    some = ["--limit", "20"]
    lines = [
        ["merge", *TOWERS, "--rank", "0.25", "--eval", tasks[0], "--base", "user/clip", "--out", "merged"],
        ["eval", "merged", "--tasks", ",".join(tasks), "--references", "measured", "--base", "user/clip", *some],
        ["sweep", *TOWERS, "--tasks", tasks[0], "--rank", "0.1:0.5:2", "--scale", "1,2", *some, "--out", "swept"],
        ["finetune", "user/clip", "--tasks", tasks[0], "--steps", "2", "--batch-size", "4", "--out", "tuned"],
        ["push", "merged", "--push-to", "user/merged"],
    ]
    done = commands(hub, lines)
    assert [each.returncode for each in done] == [0] * len(lines), [each.stderr for each in done]
    for name in ("merged", "swept", "tuned"):
        typed, made = contents(tmp_path / name), contents(folder / name)
        assert sorted(typed) == sorted(made)
        assert {n for n in typed if typed[n] != made[n] and not n.endswith(".png")} <= {"README.md"} and typed, name
    assert "nothing was sent" in done[-1].stderr  # the very same is there already
    compared = json.loads((folder / "compared" / "compare.json").read_text())
    assert [row["name"] for row in compared["rows"]] == ["cart", "average"] and found["rows"][3] == 2


def test_results_show_themselves(called) -> None:
    _, found, _ = called
    merged, results, sweep, table, tuned, pushed, verdict = found["repr"]
    assert merged.startswith("<3 towers merged with cart, ") and merged.endswith("kept: merged>")
    assert results == f"<merged on 3 tasks: mean accuracy {100 * found['mean'][1]:.1f} %>"
    assert sweep.startswith("<Sweep of cart over 5 points: best ") and " with rank 0." in sweep
    assert table.startswith("<2 rows compared on 1 task: best ")
    assert tuned.startswith("<clip fine-tuned on images1, training loss ") or "user/clip fine-tuned" in tuned
    assert pushed.startswith(f"<Published: {found['pushed'][0]}, commit ") and verdict.startswith("<Identical: all ")
    assert all(html.startswith("<div>") and html.endswith("</div>") for html in found["html"])
    assert "<th>95 % interval</th>" in found["html"][1] and "<th>individual</th>" in found["html"][1]
    assert found["rows"][1:3] == [3, 5] and found["rows"][0] > 30 and found["rows"][5] == 0
    assert {"accuracy", "low", "high", "n", "pretrained", "average", "individual"} <= set(found["columns"])


def test_every_option_of_a_command_is_a_keyword_and_there_is_what_takes_it() -> None:
    own = {"commit_message"}  # `message` below
    takes = {
        "merge": {*Recipe.model_fields, "recipe"},
        "evaluate": MEASURED | set(inspect.signature(run_measure).parameters) | own,
        "sweep": MEASURED | set(inspect.signature(run_sweep).parameters) | {"rank", "scale", "threshold", "agree"},
        "compare": MEASURED | set(inspect.signature(run_compare).parameters),
        "finetune": set(FinetuneRecipe.model_fields),
        "push": set(inspect.signature(run_push).parameters) | own,
        "verify": set(inspect.signature(run_verify).parameters),
    }
    for command, function in FUNCTIONS.items():
        keys = set(getattr(options, f"{function.name.capitalize()}Options").__annotations__)
        assert keys == {each.name for each in keywords(command)} and keys <= takes[function.name], function.name
        for name in keys:
            assert f" {name} (" in (getattr(hfcart, function.name).__doc__ or ""), name
    assert set(options.MergeOptions.__annotations__) == takes["merge"] - {"sources", "coefficients", "directions"}


def test_a_recipe_by_name_by_file_and_by_place(four: list[Path], tmp_path: Path) -> None:
    first = hfcart.merge(four, rank=2, out=tmp_path / "a")
    by_file = hfcart.merge(four, recipe=tmp_path / "a" / "recipe.yaml", out=tmp_path / "b")
    by_place = hfcart.merge(four, recipe=tmp_path / "a", scale=2, out=tmp_path / "c")
    assert by_file.files == first.files and by_file.folder == tmp_path / "b"
    assert by_place.method.parameters == {"rank": 2, "scale": 2.0}
    with pytest.raises(UsageError, match="no recipe of that name"):
        hfcart.merge(recipe="nothing")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: hfcart.merge(["a"], rnak=0.1), "merge() has no keyword rnak. Did you mean rank?"),  # type: ignore[call-arg]
        (lambda: hfcart.evaluate("m", "8", limt=1), "evaluate() has no keyword limt. Did you mean limit?"),  # type: ignore[call-arg]
        (lambda: hfcart.sweep(["a"], "8", scales=[1]), "sweep() has no keyword scales. Did you mean scale?"),  # type: ignore[call-arg]
        (lambda: hfcart.compare(["a"], "8", method="cart"), "compare() has no keyword method. Did you mean methods?"),  # type: ignore[call-arg]
        (lambda: hfcart.finetune("b", "t", step=1), "finetune() has no keyword step. Did you mean steps?"),  # type: ignore[call-arg]
        (lambda: hfcart.push("m", "u/m", force=True), "push() has no keyword force."),  # type: ignore[call-arg]
        (lambda: hfcart.verify("m", devise="cpu"), "verify() has no keyword devise. Did you mean device?"),  # type: ignore[call-arg]
    ],
)
def test_a_misspelt_keyword(call, told: str) -> None:
    with pytest.raises(TypeError) as caught:
        call()
    assert isinstance(caught.value, KeywordError) and isinstance(caught.value, HfcartError)
    assert caught.value.message == told and "` lists every keyword." in caught.value.hint


@pytest.mark.parametrize("sources", ["user/a", Path("a")])
def test_one_source_is_no_list(sources) -> None:
    with pytest.raises(TypeError, match="sources is one: give a list"):
        hfcart.merge(sources)


def test_errors_speak_python(four: list[Path], tmp_path: Path) -> None:
    hfcart.merge(four, out=tmp_path / "m")
    with pytest.raises(OutputError) as caught:
        hfcart.merge(four, out=tmp_path / "m")
    assert caught.value.hint == "Give another `out`, or `overwrite=True`."
    assert caught.value.__notes__ == ["→ Give another `out`, or `overwrite=True`."]
    with pytest.raises(UsageError) as nothing:
        hfcart.merge([])
    assert nothing.value.hint.splitlines() == [
        "Name them: hfcart.merge(['user/a', 'user/b', 'user/c'], out='merged')",
        "Or a recipe: hfcart.merge(recipe='FILE')",
    ]
    with pytest.raises(UsageError) as unwritten:
        hfcart.evaluate(tmp_path / "m", "8", write=False, push=True)
    assert "leave out push" in unwritten.value.message
    with pytest.raises(UsageError, match="^scale: 'x' is neither a list"):
        hfcart.sweep(four, "8", scale="x")
    with pytest.raises(UsageError, match="^`limit` is 0, expected at least 1"):
        hfcart.evaluate(tmp_path / "m", "8", limit=0)


def test_a_table_of_differences_is_in_the_traceback(four: list[Path], tmp_path: Path) -> None:
    config = json.loads((four[1] / "config.json").read_text())
    (four[1] / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    with pytest.raises(HfcartError) as caught:
        hfcart.merge(four, out=tmp_path / "m")
    assert any("hidden_act" in note and "found gelu" in note for note in caught.value.__notes__)


class Heard(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def step(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.said.append(f"warning: {text}")

    def finish(self) -> None:
        self.said.append("finished")


def test_progress_is_heard_drawn_or_silent(four: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hfcart.merge(four, out=tmp_path / "silent")
    assert capfd.readouterr() == ("", "")
    heard = Heard()
    hfcart.merge(four, out=tmp_path / "heard", progress=heard)
    assert "Reading headers" in heard.said and heard.said.count("finished") == 1 and capfd.readouterr() == ("", "")
    hfcart.merge(four, out=tmp_path / "drawn", progress=True)
    out, drawn = capfd.readouterr()
    assert out == "" and "› Reading headers\n" in drawn and "Merging: 100%" in drawn


def test_a_warning_is_at_the_line_that_called_in_pythons_words(
    four: list[Path], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    from hfcart.api._calling import calling

    with calling("merge", {}, (), False) as listener:
        listener.warn("Towers may be distant: give --base user/name, then run the same command again.")
    (told,) = [each for each in recwarn if each.category is HfcartWarning]
    assert Path(told.filename) == Path(__file__)
    assert str(told.message) == "Towers may be distant: give `base='user/name'`, then make the same call again."


CONCURRENT = """
import asyncio, hashlib, sys, threading, warnings
import torch
from pathlib import Path
import hfcart

sources = sys.argv[1].split(",")
torch.set_num_threads(3)
hfcart.merge(sources, rank=2, out="first")  # after this, everything is imported
warnings_before = list(warnings.filters)
def digest(folder):
    return hashlib.sha256(Path(folder, "model.safetensors").read_bytes()).hexdigest()

async def main():
    calls = [asyncio.to_thread(hfcart.merge, sources, rank=2, out=f"m{i}", progress=i == 2) for i in range(3)]
    first = hfcart.merge(sources, rank=2, out="here")  # in the loop itself, as a notebook calls
    return first, await asyncio.gather(*calls)

first, others = asyncio.run(main())
again = hfcart.merge(sources, rank=2, out="here", overwrite=True)
assert again == first and all(other.files == first.files for other in others)
assert len({digest(f) for f in ("here", "m0", "m1", "m2")}) == 1
assert [t.name for t in threading.enumerate() if not t.daemon] == ["MainThread"], threading.enumerate()
assert warnings.filters == warnings_before and torch.get_num_threads() == 3
"""


def test_threads_and_an_event_loop(four: list[Path], clean_env: dict[str, str], tmp_path: Path) -> None:
    env = clean_env | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = python(CONCURRENT, env, tmp_path, ",".join(map(str, four)))
    assert done.stdout == "" and "Merging" in done.stderr and "Traceback" not in done.stderr


def test_help_and_completion_import_nothing_heavy(clean_env: dict[str, str], tmp_path: Path) -> None:
    code = """
import sys, pydoc, hfcart
text = pydoc.render_doc(hfcart.merge, renderer=pydoc.plaintext)
assert "rank (float or int): " in text and "Options:" in text and "hfcart.merge" in text
assert {"merge", "evaluate", "Recipe"} <= set(dir(hfcart))
names = "torch transformers huggingface_hub datasets pandas pydantic typer tqdm"
heavy = set(names.split()) & set(sys.modules)
assert not heavy, heavy
try:
    hfcart.nothing
except AttributeError as error:
    assert str(error) == "module 'hfcart' has no attribute 'nothing'"
"""
    python(code, clean_env, tmp_path, warm=False)


USER = """
from pathlib import Path

import hfcart

merged = hfcart.merge(["user/a", Path("b")], rank=0.08, method="ties", trim="global", threshold=[0.1, 0.2], workers=2)
energy: float | None = merged.energy
results = hfcart.evaluate("merged", ["sun397"], limit=500, part="validation", progress=True)
mean: float | None = results.mean
hfcart.merge(["a"], **hfcart.sweep(["a"], "8", rank=[0.1], scale=[1, 2]).setting)
best = hfcart.compare(["a"], "8", methods="cart,ties").best
url: str = hfcart.push("merged", "user/m", private=True).url
folder: Path = hfcart.finetune("base", ["a.yaml"], steps=3, lr=1e-5).folder
if hfcart.verify("user/m", stream=True):
    hfcart.merge(recipe="vit-b-32-8-cart")
"""
WRONG = {
    'hfcart.merge(["user/a"], rnak=0.08)': 'Unexpected keyword argument "rnak" for "merge"',
    'hfcart.merge(["user/a"], qkv="spilt")': 'Argument "qkv" to "merge" has incompatible type',
    'hfcart.evaluate("m", "8", part="tset")': 'Argument "part" to "evaluate" has incompatible type',
    'hfcart.finetune("b", "t", steps=1.5)': 'Argument "steps" to "finetune" has incompatible type',
    'hfcart.verify("m", to="x")': 'Unexpected keyword argument "to" for "verify"',
    'hfcart.push("m")': 'Missing positional argument "push_to" in call to "push"',
}


def test_mypy_passes_what_is_right_and_catches_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "wrong.py").write_text("import hfcart\n" + "".join(f"{line}\n" for line in WRONG))
    # A cache of its own: with other settings than the project's, both would be made anew in turn.
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={ROOT}/.mypy_cache/of-users"]
    done = ended(
        [*command, "user.py", "wrong.py"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(found) == len(WRONG), done.stdout + done.stderr
    for number, (told, line) in enumerate(zip(WRONG.values(), found, strict=True), 2):
        assert line.startswith(f"wrong.py:{number}: error: {told}")


def test_the_command_line_takes_no_notice(hfcart: Run) -> None:
    """A hint there is still a command."""
    done = hfcart("merge")
    assert "Name them: hfcart merge user/a user/b user/c --out merged" in done.stderr


HOSTILE = ["<img src=x onerror=alert(1)>", "\"'><script>alert(2)</script>", "\x1b]0;c\x07\u202e&"]
TAGS = r"</?(?:div|p|strong|table|thead|tbody|tr|th|td|a)(?: style='text-align:left')?>"
LINK = r'<a href="https://[^"<>\s]*" rel="noopener">'


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_stranger_named_is_escaped(name: str) -> None:
    record = poisoned(name)
    results = Evaluated.of(poisoned_results(record, name), folder=None, published=None)
    where = Published.of(results, url=f"https://x/{name}", commit=name, pull_request=name, revision=None, changed=True)
    merged = Merged.of(record, folder=Path(name), results=results, published=where)
    for shown in (results, where, merged, Verified(False, name, {name: (1.0, 0.1)})):
        html = shown._repr_html_()
        assert "<" not in re.sub(f"{TAGS}|{LINK}", "", html) and html.isprintable(), html
        assert repr(shown).isprintable() and len(repr(shown)) < 400
