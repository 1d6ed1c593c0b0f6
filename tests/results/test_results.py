"""Results as files and on the Hub: what is written, what is believed, and what a push leaves alone."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from card_text import metadata_of
from records import make_result, make_results, published
from running import TOKEN, Run, ended
from towers import write_tower

import hfcart as package
from hfcart.commands.push import run_push
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.errors import OutputError, VerifyError
from hfcart.formats.front_matter import with_results
from hfcart.formats.safetensors_file import sha256_of
from hfcart.progress import Progress
from hfcart.recipes.finished_merge import read_record
from hfcart.records import ClassScore, DatasetRecord, EvalRecord, MergeRecord, Reference, TaskResult
from hfcart.report.accuracy import accuracy, belongs, mean_accuracy, normalised, weights_sha256, wilson
from hfcart.report.merge_card import render_card
from hfcart.results.confusion import confusion_csv, is_confusion_of
from hfcart.results.files import check_place, read_results, write_results
from hfcart.sources.places import pin
from hfcart.sources.towers import fetch_all

# Arithmetic


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (7, 10), (19_000, 19_850), (1, 10**9)])
def test_wilson_solves_the_score_equation(correct, n):
    """Its ends are the two shares from which the one observed is just 1.96 standard errors away."""
    low, high = wilson(correct, n)
    share = correct / n
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-6, abs=1e-12)
    assert (low == 0.0) == (correct == 0) and (high == 1.0) == (correct == n)
    assert wilson(n - correct, n) == pytest.approx((1 - high, 1 - low))


def test_wilson_of_nothing_and_of_what_cannot_be():
    assert wilson(0, 0) == (0.0, 1.0)
    for counts in ((1, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="no counts"):
            wilson(*counts)


def test_means_say_what_they_rest_on():
    measured = Reference("a/x", 0.8, measured=True)
    results = [
        make_result("a", [(10, 4)], individual=measured),
        make_result("b", [(1000, 900)], individual=published(0.9)),
        make_result("c", [(10, 10)], individual=published(0.0)),
        make_result("d", [(0, 0)], individual=measured),
        make_result("e", [(4, 2)]),
    ]
    assert [accuracy(result) for result in results] == [0.4, 0.9, 1.0, None, 0.5]
    assert mean_accuracy(results).value == pytest.approx((0.4 + 0.9 + 1.0 + 0.5) / 4)
    assert mean_accuracy(results).tasks == 4
    ratio = normalised(results)
    assert ratio.value == pytest.approx((0.5 + 1.0) / 2)
    assert (ratio.tasks, ratio.published) == (2, 1)
    assert normalised(results[4:]).value is None and mean_accuracy([]).value is None


# results.json is a stranger's file


def evaluation() -> EvalRecord:
    config = DatasetRecord("ufldl/svhn", "cropped_digits", "test", "5" * 40)
    classes = tuple(ClassScore(name, 4, 3) for name in ("a_b", "=1+1", "-", 'say "x", y', "été"))
    sample = make_result("svhn", dataset=config, rows=99, limit=22, undecodable=2, classes=classes)
    references = {"pretrained": published(0.5), "individual": Reference("a/x", 1.0, measured=True)}
    return make_results(None, make_result("eurosat", **references), sample)


def test_results_come_back_as_they_were():
    record = evaluation()
    assert read_results(record.to_json().encode(), "r") == record
    whole_numbers = record.to_json().replace('"accuracy": 1.0', '"accuracy": 1')
    assert read_results(whole_numbers.encode(), "r") == record


def changed(path: str, value: object) -> bytes:
    """The evaluation's JSON with one field changed: `r.0.rows`, say."""
    found = json.loads(evaluation().to_json())
    *steps, last = path.replace("r.", "results.", 1).split(".") if path.startswith("r.") else path.split(".")
    place = found
    for step in steps:
        place = place[int(step) if step.isdecimal() else step]
    if value is KeyError:
        del place[last]
    else:
        place[int(last) if last.isdecimal() else last] = value
    return json.dumps(found).encode()


# `r` stands for the list of results.
HOSTILE_FIELDS = [
    *(("format", 0), ("format", True), ("format", "1"), ("weights_sha256", "0" * 63), ("weights_sha256", "g" * 64)),
    *(
        ("base_commit", "main"),
        ("base_commit", "5" * 41),
        ("precision", "float16"),
        ("tower", ""),
        ("tower", "x" * 301),
    ),
    *(
        ("results", []),
        ("results", {}),
        ("r.0", 1),
        ("surprise", 1),
        ("r.0.surprise", 1),
        ("base", KeyError),
    ),
    *(("r.0.task", "../x"), ("r.0.task", "a/b"), ("r.0.task", ""), ("r.0.task", "svhn")),
    *(
        ("r.0.title", "a\nb"),
        ("r.0.title", ""),
        ("r.0.title", "x\x1b[31m"),
        ("r.0.title", None),
    ),
    *(
        ("r.0.dataset.repo", "../../etc"),
        ("r.0.dataset.commit", "main"),
        ("r.0.dataset.split", "a\n"),
    ),
    *(("r.0.dataset.config", ""), ("r.0.part", "all"), ("r.0.rows", 99), ("r.0.rows", -1)),
    *(("r.0.rows", 100.0), ("r.0.rows", "100"), ("r.0.rows", 10**30), ("r.0.limit", 0)),
    *(("r.0.limit", 50), ("r.0.seed", -1), ("r.0.undecodable", 1), ("r.0.undecodable", -1)),
    *(("r.0.card_sha256", ""), ("r.0.classes", []), ("r.0.classes.0.n", 61)),
    *(("r.0.classes.0.correct", 61), ("r.0.classes.0.correct", -1), ("r.0.classes.0.n", True)),
    *(("r.0.classes.0.name", "a\u202eb"), ("r.0.classes.0.name", ""), ("r.0.classes.0.name", 3)),
    *(("r.0.individual.accuracy", 1.01), ("r.0.individual.accuracy", -0.1)),
    *(("r.0.individual.accuracy", "0.5"), ("r.0.individual.measured", 1)),
    *(("r.0.average", {"tower": "x", "accuracy": 99.0, "measured": True}), ("r.0.seed", 1 << 64)),
    *(("r.0.individual.tower", ""), ("environment", None), ("environment.torch", KeyError)),
    ("results", [json.loads(evaluation().to_json())["results"][0]] * 2),
]


@pytest.mark.parametrize(("path", "value"), HOSTILE_FIELDS, ids=range(len(HOSTILE_FIELDS)))
def test_results_that_cannot_be_are_refused(path, value):
    with pytest.raises(VerifyError, match=r"x/results\.json is not an evaluation by hfcart") as caught:
        read_results(changed(path, value), "x/results.json")
    assert "hfcart eval" in caught.value.hint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an evaluation"),
        (b"[]", "is not an evaluation"),
        (b"\xff", "is not an evaluation"),
        (b"[" * 100_000, "is not an evaluation"),
        (evaluation().to_json().replace("0.5", "NaN").encode(), "is not an evaluation"),
        (evaluation().to_json().replace('"format": 1', '"format": 1, "format": 1').encode(), "is not an evaluation"),
        (changed("format", 2), "has format 2, this hfcart reads format 1"),
        (b" " * 20_000_001, "has 20,000,001 bytes, expected at most 20,000,000"),
    ],
    ids=range(8),
)
def test_files_that_are_no_results_are_refused(data, message):
    with pytest.raises(VerifyError, match=message):
        read_results(data, "results.json")


# Confusion matrices

MATRIX = [[3, 1, 0, 0, 0], [0, 3, 1, 0, 0], [0, 0, 3, 1, 0], [0, 0, 0, 3, 1], [1, 0, 0, 0, 3]]


def test_a_confusion_matrix_is_a_table_that_runs_nothing():
    result = evaluation().results[1]
    data = confusion_csv(result, MATRIX)
    rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert rows[0] == ["true \\ found", "a_b", "'=1+1", "'-", 'say "x", y', "été"]
    assert [row[0] for row in rows[1:]] == rows[0][1:]
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == MATRIX
    assert is_confusion_of(result, data)
    assert not is_confusion_of(evaluation().results[0], data)
    changes = [(b"3,1", b"2,2"), (b"a_b", b"b_a"), (b"t\xc3", b"\xff"), (b"\n", b"\n\n"), (b"3", b"x"), (b"3", b"=3")]
    for old, new in changes:
        assert old in data and not is_confusion_of(result, data.replace(old, new, 1))
    assert not is_confusion_of(result, b"0," * 10**6)


@pytest.mark.parametrize(
    "wrong",
    [[], MATRIX[:4], [row[:4] for row in MATRIX], [[4, 0, 0, 0, 0], *MATRIX[1:]], [[3, 2, -1, 0, 0], *MATRIX[1:]]],
    ids=range(5),
)
def test_a_matrix_that_does_not_add_up_is_refused(wrong):
    with pytest.raises(ValueError, match="does not add up"):
        confusion_csv(evaluation().results[1], wrong)


# A folder


class Heard(Progress):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder that hfcart merged."""
    folder = tmp_path_factory.mktemp("finished")
    sources = [str(write_tower(folder / name, i)) for i, name in enumerate("ab", start=1)]
    package.merge(sources, out=folder / "merged", method="average")
    return folder / "merged"


@pytest.fixture
def merged(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "merged"))


def record_of(folder: Path) -> MergeRecord:
    return read_record((folder / "hfcart.json").read_bytes(), "hfcart.json")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


SQUARE = [[45, 15], [15, 25]]  # of make_result's counts


def test_a_merged_folder_gets_files_figure_and_card(merged):
    before, record = contents(merged), record_of(merged)
    results = make_results(record, make_result("svhn"), make_result("dtd"))
    heard = Heard()
    write_results(merged, results, {"svhn": SQUARE, "dtd": SQUARE}, heard)
    after = contents(merged)
    assert not heard.warnings
    assert after.keys() - before.keys() == {
        "results.json", "results/confusion-svhn.csv", "results/confusion-dtd.csv", "figures/accuracy.png",
    }  # fmt: skip
    assert {name for name in before if before[name] != after[name]} == {"README.md"}
    assert read_results(after["results.json"], "r") == results and belongs(results, record)
    assert after["README.md"].decode() == render_card(record, results=results)
    assert after["figures/accuracy.png"].startswith(b"\x89PNG")
    # The next evaluation replaces what it measured again, and nothing else; files, figure and card show both.
    newer = make_results(record, make_result("eurosat"), make_result("svhn", [(50, 30), (50, 20)]))
    write_results(merged, newer, {"svhn": [[30, 20], [30, 20]]}, heard)
    both = make_results(record, newer.results[1], results.results[1], newer.results[0])
    then, after = after, contents(merged)
    assert read_results(after["results.json"], "r") == both
    assert after["results/confusion-dtd.csv"] == then["results/confusion-dtd.csv"]
    assert after["results/confusion-svhn.csv"] == confusion_csv(newer.results[1], [[30, 20], [30, 20]])
    assert (
        "results/confusion-eurosat.csv" not in after and after["figures/accuracy.png"] != then["figures/accuracy.png"]
    )
    assert after["README.md"].decode() == render_card(record, results=both)
    assert not heard.warnings


def whole(task: str, correct: int = 70) -> TaskResult:
    return make_result(task, [(100, correct)])


def sample(task: str, n: int = 10) -> TaskResult:
    return make_result(task, [(n, n)], rows=100, limit=n)


def test_a_sample_does_not_replace_a_whole_split(merged):
    record = record_of(merged)
    full = make_results(record, whole("svhn"), whole("dtd"), sample("gtsrb"))
    write_results(merged, full, {}, Heard())
    some = make_results(
        record, sample("svhn"), sample("gtsrb", 20), sample("mnist"), make_result("dtd", part="validation")
    )
    shown = write_results(merged, some, {"svhn": [[10]], "mnist": [[10]]}, heard := Heard())
    assert shown == make_results(record, whole("svhn"), whole("dtd"), sample("gtsrb", 20), sample("mnist"))
    assert read_results((merged / "results.json").read_bytes(), "r") == shown
    assert (merged / "README.md").read_text() == render_card(record, results=shown)
    assert not (merged / "results/confusion-svhn.csv").exists() and (merged / "results/confusion-mnist.csv").exists()
    (said,) = heard.warnings
    assert "has results of more than a sample for svhn, dtd: those stay" in said and "--overwrite" in said
    before = contents(merged)
    write_results(merged, make_results(record, sample("dtd")), {"dtd": [[10]]}, Heard())
    assert contents(merged) == before  # nothing that was measured counts
    shown = write_results(merged, some, {}, heard := Heard(), overwrite=True)
    assert [r.partial for r in shown.results] == [True, False, True, True] and shown.results[1].part == "validation"
    assert not heard.warnings


def test_results_keep_what_they_were_measured_with(merged):
    """A card that shows results of two runs says of each which base, precision and versions it had."""
    record = record_of(merged)
    first = make_results(record, whole("svhn"), whole("dtd"))
    other = dataclasses.replace(
        make_results(record, whole("dtd", 60), whole("mnist")), base="user/else", base_commit="6" * 40,
        precision="bfloat16", environment=dataclasses.replace(first.environment, torch="9.9"),
    )  # fmt: skip
    write_results(merged, first, {}, Heard())
    shown = write_results(merged, other, {}, Heard())
    assert [(r.task, r.correct) for r in shown.results] == [("svhn", 70), ("dtd", 60), ("mnist", 70)]
    assert (shown.base, shown.precision) == ("user/else", "bfloat16")
    (setting,) = shown.earlier
    assert (setting.tasks, setting.base, setting.precision) == (("svhn",), first.base, first.precision)
    assert read_results((merged / "results.json").read_bytes(), "r") == shown
    card = (merged / "README.md").read_text()
    assert "`9.9`" in card and "; SVHN in an earlier run" in card
    # Back again: what is measured anew with the first setting joins what had it all along.
    again = write_results(merged, dataclasses.replace(first, results=(whole("mnist", 50),)), {}, Heard())
    assert (again.base, [each.tasks for each in again.earlier]) == (first.base, [("dtd",)])
    found = json.loads(shown.to_json())
    for change in (
        {"tasks": ["svhn", "svhn"]},
        {"tasks": ["none"]},
        {"base": ""},
        {"base_commit": "x"},
        {"precision": "x"},
    ):
        spoilt = json.dumps({**found, "earlier": [found["earlier"][0] | change]}).encode()
        with pytest.raises(VerifyError):
            read_results(spoilt, "r")
    assert "earlier" not in first.to_json()  # as every release wrote it


def test_results_of_other_weights_are_not_mixed(tmp_path):
    write_results(tmp_path / "r", make_results(None, whole("svhn"), whole("dtd")), {}, Heard())
    other = dataclasses.replace(make_results(None, sample("svhn")), weights_sha256="9" * 64)
    assert write_results(tmp_path / "r", other, {}, heard := Heard()) == other
    assert len(heard.warnings) == 1 and "results of other weights" in heard.warnings[0]


def test_results_of_a_newer_release_are_not_replaced(merged):
    (merged / "results.json").write_text(
        make_results(record_of(merged)).to_json().replace('"format": 1', '"format": 2')
    )
    for refused in (lambda: check_place(merged), lambda: write_results(merged, make_results(None), {})):
        with pytest.raises(VerifyError, match=r"results\.json has format 2"):
            refused()


def test_a_card_that_speaks_of_its_repo_goes_on_doing_so(merged):
    record = record_of(merged)
    (merged / "README.md").write_text(render_card(record, repo="user/pub"))
    results = make_results(record)
    for _ in range(2):  # over a card without results, and over one with these
        write_results(merged, results, {}, heard := Heard())
        assert (merged / "README.md").read_text() == render_card(record, repo="user/pub", results=results)
        assert not heard.warnings


def test_an_interrupted_writing_is_finished_by_the_same_call(merged):
    record = record_of(merged)
    old, new = make_results(record, make_result("dtd")), make_results(record)
    both = make_results(record, *old.results, *new.results)
    for left, shown in ((None, new), (old, both), (old, new)):
        (merged / "README.md").write_text(render_card(record, results=shown))  # written just before results.json
        if left:
            (merged / "results.json").write_text(left.to_json())
        write_results(merged, new, {}, heard := Heard())
        assert not heard.warnings
        assert read_results((merged / "results.json").read_bytes(), "r") == (both if left else new)


def test_an_edited_card_is_left_alone_and_a_missing_one_is_written(merged):
    record = record_of(merged)
    edited = (merged / "README.md").read_text().replace("## Use it", "## How I use it")
    (merged / "README.md").write_text(edited)
    write_results(merged, make_results(record), {}, heard := Heard())
    assert (merged / "README.md").read_text() == edited
    assert len(heard.warnings) == 1 and "merged/README.md was edited" in heard.warnings[0]
    assert (merged / "results.json").is_file()
    (merged / "README.md").unlink()
    write_results(merged, make_results(record), {}, heard := Heard())
    assert (merged / "README.md").read_text() == render_card(record, results=make_results(record))


def test_results_of_other_weights_do_not_reach_the_card(merged):
    card = (merged / "README.md").read_bytes()
    write_results(merged, make_results(None), {}, heard := Heard())
    assert (merged / "README.md").read_bytes() == card
    assert len(heard.warnings) == 1 and "measured with other weights" in heard.warnings[0]


def test_links_in_a_stranger_s_folder_lead_nowhere(merged, tmp_path):
    """A clone may hold links: evaluating it must not write to where they lead, nor push."""
    mine = tmp_path / "mine"
    (mine / "empty").mkdir(parents=True)
    results = make_results(record_of(merged))
    (merged / "figures").mkdir(exist_ok=True)
    for name in (".results.json.new", "results.json", ".README.md.new", "figures/accuracy.png"):
        (mine / "file").write_text("precious")
        (merged / name).symlink_to(mine / "file")
    write_results(merged, results, {"svhn": SQUARE}, Heard())
    assert (mine / "file").read_text() == "precious" and not (merged / "results.json").is_symlink()
    assert read_results((merged / "results.json").read_bytes(), "r") == results
    for name in ("results", "figures", ".eval_results"):
        shutil.rmtree(merged / name, ignore_errors=True)
        (merged / name).symlink_to(mine / "empty")
        with pytest.raises(OutputError, match=f"merged/{name} is a link to another place"):
            write_results(merged, results, {"svhn": SQUARE}, Heard())
        with pytest.raises(OutputError, match="is a link"):
            run_push(merged, "user/x", overwrite=False, private=False, create_pr=False, message=None, progress=Heard())
        (merged / name).unlink()
        assert not list((mine / "empty").iterdir())


def test_any_folder_can_hold_results(tmp_path):
    results = make_results(None)
    for _ in range(2):
        write_results(tmp_path / "new" / "folder", results, {"svhn": SQUARE})
    # No figure: of one task it would be one bar.
    assert contents(tmp_path / "new" / "folder").keys() == {"results.json", "results/confusion-svhn.csv"}
    with pytest.raises(ValueError, match="does not add up"):
        write_results(tmp_path / "other", results, {"svhn": [[1, 1], [1, 1]]})
    assert not (tmp_path / "other").exists()


def test_the_digest_of_shards_is_that_of_a_source(tmp_path):
    sources = [str(write_tower(tmp_path / name, i)) for i, name in enumerate("ab", start=1)]
    for size, shards in (("1GB", 1), ("40KB", 3)):
        record = package.merge(sources, out=tmp_path / size, method="average", max_shard_size=size)
        tower = pin(str(tmp_path / size), Progress())
        for name in tower.weights:
            tower.open(name, tmp_path / size / name)
        fetch_all([tower], Progress(), stream=False)
        tower.close()
        assert len(tower.weights) >= shards
        assert belongs(dataclasses.replace(make_results(None), weights_sha256=tower.source.sha256), record)
    assert weights_sha256(["1" * 64]) == "1" * 64 != weights_sha256(["1" * 64, "2" * 64])


# The front matter of somebody else's card

ENTRY = {
    "task": {"type": "zero-shot-image-classification"},
    "dataset": {"name": "A: “x”", "type": "u/a", "config": "c", "split": "test", "revision": "5" * 40},
    "metrics": [{"type": "accuracy", "value": 0.5}],
    "source": {"url": "https://huggingface.co/u/m", "name": "hfcart"},
}
THEIRS = """---
license:   mit   # keep this
model-index:
- name: old
  results:
  - task: {type: t}
    dataset: {name: no, type: u/b}
    metrics: [{type: accuracy, value: 1.50}]

# about the tags
tags:
  - "a"
language: no
---
# Mine\t
body  \n"""
OLD = THEIRS[THEIRS.index("model-index") : THEIRS.index("\n\n# about")]
BEFORE, AFTER = THEIRS.split(OLD)
# What is before the key, the key as it is now, and what is after it.
CARDS = [
    ("", "", ""),
    ("", "", "# No front matter\n\n---\n"),
    (BEFORE, OLD, AFTER),
    *[tuple(part.replace("\n", "\r\n") for part in (BEFORE, OLD, AFTER))],
    ("\ufeff---\n  license: mit", "", "\n---\nx"),
    ("---\nlicense: mit\n# the end", "", "\n\n---\nx"),
    ("---\n", "model-index: []", "\nlicense: mit\n---\n"),
    ("---\n", "model-index:", "\n---\n"),
    ("---\n", "model-index:\n- {name: a, results: []}", "\n---\n"),
]


@pytest.mark.parametrize(("before", "old", "after"), CARDS, ids=range(len(CARDS)))
def test_one_key_changes_and_every_other_byte_stays(before, old, after):
    new = with_results(before + old + after, "m", [ENTRY], "hfcart")
    assert new.startswith(before) and new.endswith(after)
    block = new[len(before) : len(new) - len(after)]
    crlf = "\r" in before
    assert crlf == ("\r" in block) and block.count("\r") == (block.count("\n") if crlf else 0)
    (model,) = yaml.safe_load(block.replace("---", ""))["model-index"]
    assert model["results"][-1] == ENTRY and len(model["results"]) == 1 + old.count("task")
    assert with_results(new, "m", [ENTRY], "hfcart") == new
    again = with_results(new, "m", [{**ENTRY, "metrics": [{"type": "accuracy", "value": 0.25}]}], "hfcart")
    assert again == new.replace("value: 0.5", "value: 0.25")


def test_results_of_others_stay_as_they_are_written():
    new = with_results(THEIRS, "m", [ENTRY], "hfcart")
    assert "dataset: {name: no, type: u/b}\n    metrics: [{type: accuracy, value: 1.50}]\n" in new
    (model,) = yaml.safe_load(new.split("---")[1])["model-index"]
    assert model["name"] == "old" and len(model["results"]) == 2
    others = {**ENTRY, "source": {"url": "https://example.com", "name": "someone"}}
    more = with_results(with_results(THEIRS, "m", [others], "hfcart"), "m", [ENTRY], "hfcart")
    assert len(yaml.safe_load(more.split("---")[1])["model-index"][0]["results"]) == 3


@pytest.mark.parametrize(
    ("matter", "why"),
    [
        ("{license: mit}", "not a block"),
        ("- a", "not a block"),
        ("# nothing", "not a block"),
        ("a: [", "not valid YAML"),
        ("a: &x 1\nb: *x", "anchors"),
        ("a: !!python/object/apply:os.system [x]", "tags"),
        ("model-index: x", "form that the Hub defines"),
        ("model-index: [1]", "form that the Hub defines"),
        ("model-index: [{name: a}]", "form that the Hub defines"),
        ("model-index: [{name: a, results: x}]", "form that the Hub defines"),
        ("model-index: []\nmodel-index: []", "twice"),
        ("a: " + "[" * 50 + "]" * 50, "nested too deeply"),
    ],
)
def test_front_matter_that_cannot_be_edited_is_refused(matter, why):
    with pytest.raises(ValueError, match=why):
        with_results(f"---\n{matter}\n---\nx", "m", [ENTRY], "hfcart")


# On the Hub

RUN = """
import json, os, sys
from pathlib import Path
from hfcart import errors
from hfcart.progress import Progress
from hfcart.results.publish import check_results_target, publish_results
from hfcart.results.files import read_results

class Heard(Progress):
    def note(self, text): out["notes"].append(text)
    def warn(self, text): out["warnings"].append(text)

out = {"notes": [], "warnings": []}
repo, matrices, options = json.loads(sys.argv[1])
record = read_results(Path("evaluation.json").read_bytes(), "evaluation.json")
try:
    check_results_target(repo, create_pr=options.get("create_pr", False))
    done = publish_results(repo, record, matrices, progress=Heard(), **options)
    out |= {"changed": done.changed, "commit": done.commit, "pull_request": done.pull_request}
except errors.HfcartError as error:
    out |= {"error": type(error).__name__, "message": error.message, "hint": error.hint}
print(json.dumps(out))
"""

READ = """
import json, sys
from huggingface_hub import HfApi, ModelCard
data = ModelCard.load(sys.argv[1]).data
info = HfApi().model_info(sys.argv[1])
print(json.dumps([data.model_name, [vars(result) for result in data.eval_results or []],
                  [vars(result) for result in info.card_data.eval_results or []]]))
"""


@dataclasses.dataclass
class Site:
    """A Hub, and real clients of it in processes of their own."""

    hub: EmbeddedHub
    folder: Path
    env: dict[str, str]

    def python(self, code: str, *args: str) -> object:
        settings = {**self.env, "HF_ENDPOINT": self.hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(self.folder / "home")}
        command = [sys.executable, "-W", "error", "-c", code, *args]
        done = ended(command, warm=True, cwd=self.folder, env=settings)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def publish(self, repo: str, record: EvalRecord, matrices: dict | None = None, **options: object) -> dict:
        (self.folder / "evaluation.json").write_text(record.to_json())
        return self.python(RUN, json.dumps([repo, matrices or {}, options]))

    def read_back(self, repo: str) -> tuple[str | None, list[dict], list[dict]]:
        return self.python(READ, repo)


@pytest.fixture
def site(hub, tmp_path, clean_env) -> Site:
    return Site(hub, tmp_path, clean_env)


def put(hub: EmbeddedHub, repo: str, folder: Path, **more: bytes) -> None:
    if not hub.exists(repo):
        hub.create(repo)
    hub.commit(repo, {**contents(folder), **more})


def benchmark(hub: EmbeddedHub, repo: str, text: str) -> str:
    """A dataset repo with this eval.yaml. Returns its commit."""
    if not hub.exists(repo, repo_type="dataset"):
        hub.create(repo, repo_type="dataset")
    return hub.commit(repo, {"eval.yaml": text.encode()}, repo_type="dataset")


EVAL_YAML = """
name: Street numbers
description: Digits
evaluation_framework: hfcart
tasks:
  - id: letters
    config: letters
    split: test
  - id: digits
    config: cropped_digits
    split: test
  - 17
"""


def svhn(commit: str) -> DatasetRecord:
    return DatasetRecord("user/svhn", "cropped_digits", "test", commit)


def test_results_reach_a_repo_that_hfcart_made(site, merged, hfcart: Run):
    hub, record = site.hub, record_of(merged)
    hub.create("user/pub")
    (merged / "README.md").write_text(render_card(record, repo="user/pub"))
    stale = {"results/confusion-old.csv": b"x", ".eval_results/hfcart-old.yaml": b"x", ".eval_results/their.yaml": b"y"}
    put(hub, "user/pub", merged, **stale)
    before = hub.files("user/pub")
    pinned = benchmark(hub, "user/svhn", EVAL_YAML)
    benchmark(hub, "user/svhn", "tasks: []\n")  # what main says now is not what was read
    hub.create("user/dtd", repo_type="dataset")
    dtd = DatasetRecord("user/dtd", None, "test", hub.head("user/dtd", repo_type="dataset"))
    results = make_results(record, make_result("svhn", dataset=svhn(pinned)), make_result("dtd", dataset=dtd))
    done = site.publish("user/pub", results, {"svhn": SQUARE})
    assert done["changed"] and not done["warnings"], done
    after = hub.files("user/pub")
    assert after.keys() - before.keys() == {
        "results.json", "results/confusion-svhn.csv", "figures/accuracy.png", ".eval_results/hfcart-svhn.yaml",
    }  # fmt: skip
    assert before.keys() - after.keys() == {"results/confusion-old.csv", ".eval_results/hfcart-old.yaml"}
    assert {name for name in before.keys() & after.keys() if before[name] != after[name]} == {"README.md"}
    assert len(hub.commits("user/pub")) == 3 and done["commit"] == hub.head("user/pub")
    assert after["README.md"].decode() == render_card(record, repo="user/pub", results=results)
    assert yaml.safe_load(after[".eval_results/hfcart-svhn.yaml"]) == [
        {
            "dataset": {"id": "user/svhn", "task_id": "digits", "revision": pinned},
            "value": 0.7,
            "source": {"url": "https://huggingface.co/user/pub", "name": "hfcart"},
            "notes": "zero-shot top-1 accuracy, a share of 1",
        }
    ]
    name, card, info = site.read_back("user/pub")
    assert name == "pub" and card == info
    assert [(r["dataset_type"], r["dataset_config"], r["dataset_revision"], r["metric_value"]) for r in card] == [
        ("user/svhn", "cropped_digits", pinned, 0.7),
        ("user/dtd", None, dtd.commit, 0.7),
    ]
    again = site.publish("user/pub", results, {"svhn": SQUARE})
    assert not again["changed"] and len(hub.commits("user/pub")) == 3
    # A repo with results is still one that can be verified: the sources are gone here, the files were accepted.
    checked = hfcart("verify", "user/pub", hub=hub)
    assert "does not list" not in checked.stderr and "cannot be repeated" in checked.stderr + checked.stdout


def test_results_on_the_hub_are_merged_task_by_task(site, merged):
    hub, record = site.hub, record_of(merged)
    put(hub, "user/pub", merged)
    full = make_results(record, make_result("svhn"), make_result("dtd"))
    site.publish("user/pub", full, {"svhn": SQUARE, "dtd": SQUARE})
    first = hub.files("user/pub")
    some = make_results(record, sample("svhn"), whole("mnist"))
    done = site.publish("user/pub", some, {"svhn": [[10]]})
    said = [text for text in done["warnings"] if "benchmark" not in text]
    assert done["changed"] and len(said) == 1 and "for svhn: those stay" in said[0], done
    shown = make_results(record, *full.results, whole("mnist"))
    second = hub.files("user/pub")
    assert read_results(second["results.json"], "r") == shown
    assert second["README.md"].decode() == render_card(record, repo="user/pub", results=shown)
    assert [
        second[f"results/confusion-{task}.csv"] == first[f"results/confusion-{task}.csv"] for task in ("svhn", "dtd")
    ]
    head = hub.head("user/pub")
    again = site.publish("user/pub", make_results(record, sample("dtd")))
    assert not again["changed"] and hub.head("user/pub") == head
    over = site.publish("user/pub", some, {"svhn": [[10]]}, overwrite=True)
    assert over["changed"] and not [text for text in over["warnings"] if "stay" in text]
    third = hub.files("user/pub")
    assert [r.partial for r in read_results(third["results.json"], "r").results] == [True, False, False]
    assert third["results/confusion-svhn.csv"] != first["results/confusion-svhn.csv"]


THEIR_CARD = "---\nlicense: mit  # ours\nlanguage: no\n---\n# A tower\n\nBy hand.\n"


def test_a_repo_of_somebody_elses_only_gets_its_model_index(site):
    hub = site.hub
    tower = write_tower(site.folder / "tower", 1, card=THEIR_CARD)
    put(hub, "user/tower", tower)
    before = hub.files("user/tower")
    sha = sha256_of(tower / "model.safetensors")
    results = dataclasses.replace(make_results(None), weights_sha256=sha)
    done = site.publish("user/tower", results, {"svhn": SQUARE})
    assert done.get("changed"), done
    assert (
        len(done["warnings"]) == 1 and "Whether user/svhn is a benchmark could not be found out" in done["warnings"][0]
    )
    after = hub.files("user/tower")
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} == {"README.md"}
    card = after["README.md"].decode()
    start, _, rest = THEIR_CARD.partition("\n---\n")
    assert card.startswith(start + "\nmodel-index:\n") and card.endswith("\n---\n" + rest)
    name, read, info = site.read_back("user/tower")
    assert name == "tower" and read == info and [result["metric_value"] for result in read] == [0.7]
    sample = dataclasses.replace(results, results=(make_result("svhn", rows=999, limit=100),))
    refused = site.publish("user/tower", sample)
    assert (
        refused["error"] == "PublishError"
        and "no whole test split of a dataset on the Hub was scored" in refused["message"]
    )
    assert len(hub.commits("user/tower")) == 3


def test_results_go_nowhere_else(site, merged):
    hub, record = site.hub, record_of(merged)
    put(hub, "user/pub", merged)
    other = site.publish("user/pub", make_results(None))
    assert other["error"] == "OutputError" and "The results are of weights with sha256" in other["message"]
    missing = site.publish("user/missing", make_results(record))
    assert missing["error"] == "PublishError" and "There is no repo user/missing" in missing["message"]
    foreign = site.publish("reader/pub", make_results(record))
    assert foreign["error"] == "PublishError"
    hub.commit("user/pub", {"README.md": b"\xff\xfe"})
    assert "is not UTF-8" in site.publish("user/pub", make_results(record))["message"]
    hub.commit("user/pub", {"README.md": b"---\na: [\n---\n"})
    bad = site.publish("user/pub", make_results(record))
    assert (
        bad["error"] == "PublishError" and "not valid YAML" in bad["message"] and "edit/main/README.md" in bad["hint"]
    )
    assert "results.json" not in hub.files("user/pub")


def test_an_edited_card_on_the_hub_keeps_its_words(site, merged):
    hub, record = site.hub, record_of(merged)
    edited = (merged / "README.md").read_text().replace("## Use it", "## How I use it")
    (merged / "README.md").write_text(edited)
    put(hub, "user/pub", merged)
    done = site.publish("user/pub", make_results(record))
    assert [text for text in done["warnings"] if "was edited" in text]
    card = hub.files("user/pub")["README.md"].decode()
    assert metadata_of(card)["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.7
    assert card.split("\n---\n", 1)[1] == edited.split("\n---\n", 1)[1]
    assert "results.json" in hub.files("user/pub")


def test_a_pull_request_leaves_main_alone(site, merged):
    hub, record = site.hub, record_of(merged)
    put(hub, "user/pub", merged)
    head = hub.head("user/pub")
    done = site.publish("user/pub", make_results(record), create_pr=True, message="My numbers\n\nMeasured.")
    assert done["pull_request"].endswith("/user/pub/discussions/1") and hub.head("user/pub") == head
    assert "results.json" in hub.files("user/pub", "refs/pr/1")
    assert hub.commits("user/pub", "refs/pr/1")[0][1].startswith("My numbers")


def test_a_lost_answer_does_not_make_two_commits(site, merged):
    hub, record = site.hub, record_of(merged)
    put(hub, "user/pub", merged)
    hub.fail("POST .*/commit/", drop_after=0)
    done = site.publish("user/pub", make_results(record))
    assert done["commit"] == hub.head("user/pub") and len(hub.commits("user/pub")) == 3


HOSTILE_BENCHMARKS = [
    "",
    "- 1",
    "tasks: x\nevaluation_framework: f",
    "evaluation_framework: f\ntasks: [1, null, {id: 3}, {id: ../x}, {id: 'a\\nb'}, {id: x, split: [test]}]",
    "evaluation_framework: f\ntasks: [{id: a, split: train}, {id: b, config: other, split: test}]",
    # Two tasks on the same images: which of them is meant nobody can tell.
    "evaluation_framework: f\ntasks: [{id: a, config: cropped_digits}, {id: b, config: cropped_digits}]",
    "tasks: [{id: a, config: cropped_digits, split: test}]",
    "a: &a [x]\nb: [*a, *a]\nevaluation_framework: f\ntasks: [{id: a, config: cropped_digits}]",
    "evaluation_framework: f\ntasks: [{id: a, config: cropped_digits}]\n#" + "x" * 70_000,
    "evaluation_framework: f\ntasks: " + "[" * 100,
]

ASK = """
import json, sys
from hfcart import hub
found = [hub.benchmark_tasks("user/svhn", commit) for commit in json.loads(sys.argv[1])]
print(json.dumps([[vars(task) for task in tasks] for tasks in found]))
"""


def test_an_eval_yaml_is_believed_only_as_far_as_it_makes_sense(site):
    hub = site.hub
    commits = [benchmark(hub, "user/svhn", text) for text in (EVAL_YAML, *HOSTILE_BENCHMARKS)]
    good, *others = site.python(ASK, json.dumps(commits))
    assert good == [
        {"id": "letters", "config": "letters", "split": "test"},
        {"id": "digits", "config": "cropped_digits", "split": "test"},
    ]
    fitting = [[t for t in tasks if (t["config"], t["split"]) == ("cropped_digits", "test")] for tasks in others]
    assert [len(tasks) for tasks in fitting] == [0, 0, 0, 0, 0, 2, 0, 0, 0, 0]


def test_push_takes_the_results_along(site, merged, hfcart: Run):
    hub, record = site.hub, record_of(merged)
    pinned = benchmark(hub, "user/svhn", EVAL_YAML)
    results = make_results(record, make_result("svhn", dataset=svhn(pinned), pretrained=published(0.3)))
    write_results(merged, results, {"svhn": SQUARE})
    (merged / "results" / "notes.txt").write_text("mine")
    for _ in range(2):
        done = hfcart("push", merged, "--to", "user/pub", hub=hub)
        assert done.returncode == 0, done.stderr
    online = hub.files("user/pub")
    assert {
        "results.json",
        "results/confusion-svhn.csv",
        "figures/accuracy.png",
        ".eval_results/hfcart-svhn.yaml",
    } < set(online)
    assert "results/notes.txt" not in online and len(hub.commits("user/pub")) == 2
    assert online["README.md"].decode() == render_card(record, repo="user/pub", results=results)
    # Spoilt, or of other weights: said, and left out; what an older push of the same weights put there stays.
    head = hub.head("user/pub")
    for spoilt, why in ((make_results(None).to_json(), "other weights"), ("{}", "is not an evaluation by hfcart")):
        (merged / "results.json").write_text(spoilt)
        done = hfcart("push", merged, "--to", "user/pub", hub=hub)
        assert done.returncode == 0 and why in " ".join(done.stderr.split())
        assert hub.head("user/pub") == head
    # A folder with results of its own: both, task by task; of other weights those that are there go.
    mine = make_results(record, sample("svhn"), whole("dtd"))
    (merged / "results.json").write_text(mine.to_json())
    done = hfcart("push", merged, "--to", "user/pub", hub=hub)
    both = make_results(record, results.results[0], whole("dtd"))
    assert done.returncode == 0 and "more than a sample for svhn" in " ".join(done.stderr.split()), done.stderr
    after = hub.files("user/pub")
    assert read_results(after["results.json"], "r") == both
    assert after["README.md"].decode() == render_card(record, repo="user/pub", results=both)
    assert after["results/confusion-svhn.csv"] == online["results/confusion-svhn.csv"]
    assert after[".eval_results/hfcart-svhn.yaml"] == online[".eval_results/hfcart-svhn.yaml"]
    hub.commit("user/pub", {"results.json": make_results(None).to_json().encode()})
    (merged / "results.json").unlink()
    done = hfcart("push", merged, "--to", "user/pub", hub=hub)
    assert done.returncode == 0 and "of other weights than the folder's: it goes" in " ".join(done.stderr.split())
    online = hub.files("user/pub")
    assert not [name for name in online if name.startswith(("results", ".eval_results", "figures/accuracy"))]


def test_a_matrix_that_was_changed_stays_behind(site, merged, hfcart: Run):
    record = record_of(merged)
    write_results(merged, make_results(record), {"svhn": SQUARE})
    matrix = merged / "results" / "confusion-svhn.csv"
    matrix.write_bytes(matrix.read_bytes().replace(b"45,15", b"60,0"))
    done = hfcart("push", merged, "--to", "user/pub", hub=site.hub)
    assert done.returncode == 0 and "confusion-svhn.csv is not published" in " ".join(done.stderr.split())
    assert "results.json" in site.hub.files("user/pub")
    assert "results/confusion-svhn.csv" not in site.hub.files("user/pub")
