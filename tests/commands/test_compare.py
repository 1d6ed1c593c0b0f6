"""A comparison says what merging and evaluating one by one would say, states failures, and survives kills."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from running import LIMIT, TOKEN, Commands, Run
from three_towers import TOWERS, with_many_images
from towers import write_tower

from hfcart.commands import separate_process
from hfcart.commands.compared_methods import offered
from hfcart.commands.separate_process import merge_apart
from hfcart.methods import METHODS
from hfcart.records import CompareRecord, CompareRow, Environment
from hfcart.report.compare_table import as_markdown, cells, evidence, explain
from hfcart.report.plots import draw_compare

HERE = Environment("0", "2", "3.11", "linux", "cpu", "x", "y")


def record(**changes: object) -> CompareRecord:
    rows = (
        CompareRow("pretrained", "", {}, (10, 30)),
        CompareRow("individual", "", {}, (40, 80)),
        CompareRow(
            "cart", "towers only", {"rank": 0.08, "scale": 1.0}, (30, 60), 1.26, 500_000_000, "ab", discordant=(0, 0)
        ),
        CompareRow("average", "towers only", {}, (20, 70), 0.5, 400_000_000, "cd", discordant=(12, 14), p=0.2),
        CompareRow("ties", "base model", {"density": 0.2}, (None, None), error="It holds NaN | or Inf."),
    )
    tasks = (("one", "One"), ("two", "Two"))
    whole = CompareRecord(
        (("user/a", "0" * 40), ("b|`", None)),
        "user/clip",
        None,
        "validation",
        None,
        tasks,
        (50, 100),
        "float32",
        rows,
        HERE,
    )
    return dataclasses.replace(whole, **changes)


def test_the_arithmetic_of_the_table() -> None:
    found = record()
    pretrained, individual, cart, average, ties = found.rows
    assert found.average(cart) == pytest.approx(0.6) and found.average(average) == pytest.approx(0.55)
    assert found.normalised(cart) == pytest.approx((30 / 40 + 60 / 80) / 2) and found.normalised(individual) == 1
    assert found.normalised(average) == pytest.approx((20 / 40 + 70 / 80) / 2)
    assert found.best is cart and found.average(ties) is None
    assert cells(found, cart) == ("cart", "towers only", "60.0 ≈", "75.0", "60.0", "60.0", "1.3", "0.50")
    assert cells(found, ties)[2:4] == ("failed", "–") and cells(found, pretrained)[1] == "–"
    without = record(rows=found.rows[2:])
    assert without.normalised(without.rows[0]) is None
    some = record(rows=(CompareRow("individual", "", {}, (40, None)), cart))
    assert some.average(some.rows[0]) is None and some.normalised(some.rows[1]) is None


def test_a_star_only_for_what_stands_out_and_none_on_test_images() -> None:
    found = record()
    assert [cells(found, row)[2] for row in found.rows] == ["25.0", "80.0", "60.0 ≈", "55.0 ≈", "failed"]
    first, how = evidence(found)
    assert first == (
        "cart and average are not distinguishable on 150 validation images. Of the two, average took the least time."
    )
    assert "McNemar" in how and "≈ not distinguishable" in explain(found)
    cart, average = found.rows[2:4]
    clear = record(rows=(cart, dataclasses.replace(average, p=0.001)))
    assert [cells(clear, row)[2] for row in clear.rows] == ["60.0 *", "55.0"]
    assert evidence(clear)[0] == "cart is better than average on 150 validation images."
    text = as_markdown(clear)
    assert r"60.0 \*" in text and "cart is better than average on 150 validation images. By McNemar" in text
    third = CompareRow("iso_c", "base model", {}, (1, 2), 1.0, 1, "ef", discordant=(40, 60), p=0.0)
    three = record(rows=(cart, average, third))
    assert evidence(three)[0].startswith("cart and average are not distinguishable on 150 validation images; iso_c is")
    alone = record(rows=(cart,))
    assert evidence(alone) == [] and cells(alone, cart)[2] == "60.0"
    test = dataclasses.replace(found, part="test")
    assert [cells(test, row)[2] for row in test.rows] == ["25.0", "80.0", "60.0", "55.0", "failed"]
    assert evidence(test)[0] == "cart and average are not distinguishable on 150 test images."
    assert "≈" not in as_markdown(test) and "≈" not in explain(test)


def test_the_markdown_is_one_table_that_names_cannot_leave() -> None:
    text = as_markdown(record())
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 7 and {line.count("|") for line in lines} == {9}
    assert "NaN \\| or Inf." in text and "`b¦ˋ`" in text and "- `cart`: rank 0.08, scale 1.0" in text


def test_the_chart_is_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert draw_compare(record(), tmp_path / name) == "figures/compare.png"
    first, again = ((tmp_path / name / "figures" / "compare.png").read_bytes() for name in "ab")
    assert first == again
    draw_compare(record(part="test"), tmp_path / "b")
    assert (tmp_path / "b" / "figures" / "compare.png").read_bytes() != first  # nothing is coloured as the best
    draw_compare(record(rows=record().rows[:4]), tmp_path / "b")
    assert (tmp_path / "b" / "figures" / "compare.png").read_bytes() == first  # a failed method has no bar
    draw_compare(record(limit=30), tmp_path / "b")
    assert (tmp_path / "b" / "figures" / "compare.png").read_bytes() != first  # it says that it shows samples
    draw_compare(record(rows=record().rows[4:]), tmp_path / "none")


def test_the_chart_s_words_fit_and_say_what_is_dark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("hfcart.report.plots._search.save", lambda figure, path: drawn.append(figure))
    cart, average = record().rows[2:4]
    alone = record(rows=(cart, dataclasses.replace(average, p=0.001)))
    for found in (record(), alone, record(part="test"), record(rows=(cart, average), limit=75)):
        draw_compare(found, tmp_path)
    said = [figure.axes[0].get_xlabel() for figure in drawn]
    alike = "accuracy (%); dark: not distinguishable from the best method"
    assert said == [alike, "accuracy (%); dark: better than all other methods", "accuracy (%)", alike]
    for figure in drawn:
        figure.canvas.draw()
        for text in figure.findobj(Text):
            box = text.get_window_extent()
            assert not text.get_text() or (figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1), text


def test_a_sample_is_called_one() -> None:
    assert "a sample" not in as_markdown(record())
    assert "150 validation images of 2 tasks, a sample of at most 75 a task;" in as_markdown(record(limit=75))


def test_all_is_every_method_that_takes_so_many_sources() -> None:
    assert offered(2) == list(METHODS)
    assert offered(3) == [name for name in METHODS if name != "slerp"] and "wudi" in offered(3)
    assert offered(3, adapted=True) == [*offered(3), "cart++", "adamerging", "adamerging++", "adarank", "adarank_ta"]


def test_a_merge_apart_is_the_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    towers = [str(write_tower(tmp_path / f"t{i}", i)) for i in (1, 2)]
    ballast = bytearray(os.urandom(1 << 20) * 1500)  # 1.5 GB that this process holds, and the merge's does not
    done = merge_apart({"sources": towers, "method": "cart", "out": str(tmp_path / "m")})
    assert done.error is None and done.seconds > 0 and len(ballast) > done.peak > 100_000_000
    recorded = json.loads((tmp_path / "m" / "hfcart.json").read_text())
    assert done.sha256 == recorded["files"]["model.safetensors"]
    # More than a pipe holds, told to a process that has not begun to listen at the first look.
    empty = [tmp_path / f"{i:0200}" for i in range(400)]
    for folder in empty:
        folder.mkdir()
    monkeypatch.setattr(separate_process, "_LOOK", 0.1)
    end = time.monotonic() + LIMIT

    def look() -> None:
        assert time.monotonic() < end

    sources = [towers[0], *map(str, empty)]
    failed = merge_apart({"sources": sources, "method": "cart", "out": str(tmp_path / "n")}, look)
    assert failed.sha256 is None and "holds no weights" in (failed.error or "")


def test_a_comparison_is_merging_and_evaluating_one_by_one(
    zoo,
    hfcart: Run,
    commands: Commands,
    tmp_path: Path,
) -> None:
    hub, root = zoo
    tasks = f"{root}/images1.yaml,{root}/images2.yaml"
    hub.clear()
    done = hfcart("compare", *TOWERS, "--tasks", tasks, "--methods", "cart,ties,average", "--precision", "float32",
                  "--part", "test", "--json", hub=hub)  # fmt: skip
    assert done.returncode == 0, done.stderr
    fetched = [
        r.path for r in hub.requests if r.path.endswith("model.safetensors") and r.method == "GET" and not r.range
    ]
    assert len(fetched) == len(set(fetched)) == 4, fetched  # one download; headers are read by range
    found = json.loads(done.stdout)
    assert [row["name"] for row in found["rows"]] == ["pretrained", "individual", "cart", "ties", "average"]
    assert found["images"] == [61, 61] and found["rows"][2]["parameters"] == {"rank": 0.08, "scale": 1.0}
    assert len({tuple(row["correct"]) for row in found["rows"]}) >= 4  # so that one taken for another shows
    assert "hfcart merge" not in done.stderr and "choose a method on validation images" in done.stderr
    assert " *" not in done.stderr and "≈" not in done.stderr and "towers only" in done.stderr
    few = ["--methods", "average", "--references", "none", "--limit", "6", "--overwrite", "--quiet"]
    lines = [["compare", *TOWERS, "--tasks", tasks]]
    measure = ["--tasks", tasks, "--references", "measured", "--precision", "float32"]
    for method in ("cart", "ties"):
        lines += [["merge", *TOWERS, "--method", method, "--out", method], ["eval", method, *measure]]
    again, *others = commands(hub, lines)
    assert all(each.returncode == 0 for each in others), [each.stderr for each in others]
    for method, row in (("cart", found["rows"][2]), ("ties", found["rows"][3])):
        results = json.loads((tmp_path / method / "results.json").read_text())
        assert results["weights_sha256"] == row["sha256"]
        assert [sum(c["correct"] for c in r["classes"]) for r in results["results"]] == row["correct"]
        for kind, other in zip(("pretrained", "individual"), found["rows"][:2], strict=True):
            shares = [round(right / 61, 6) for right in other["correct"]]
            assert [r[kind]["accuracy"] for r in results["results"]] == shares
    files = {str(path.relative_to(tmp_path / "compare")) for path in (tmp_path / "compare").rglob("*.*")}
    assert files == {"compare.json", "compare.md", "figures/compare.png", *(f"tasks/images{i}.yaml" for i in (1, 2))}
    assert not (tmp_path / "compare.partial").exists()
    assert again.returncode == 1 and "exists already" in again.stderr
    over = hfcart("compare", *TOWERS, "--tasks", tasks, *few, hub=hub)
    assert over.returncode == 0 and "average" in over.stdout, over.stderr
    assert [row["name"] for row in json.loads((tmp_path / "compare" / "compare.json").read_text())["rows"]] == [
        "average"
    ]


def test_it_chooses_on_validation_images_and_tells_noise_from_difference(
    zoo, commands: Commands, tmp_path: Path
) -> None:
    """`linear` is `average` again; `pretrained` and `individual` are no merges and have no rivals."""
    hub, root = zoo
    tasks = ",".join(name.partition("=")[2] for name in with_many_images(hub, root).split(","))
    line = ["compare", *TOWERS, "--tasks", tasks, "--methods", "average,cart,linear,iso_c"]
    first, again, few = commands(
        hub,
        [
            [*line, "--json"],
            [*line, "--json", "--out", "again"],
            ["compare", *TOWERS, "--tasks", tasks, "--methods", "cart", "--limit", "8", "--out", "few"],
        ],
        apart=False,
    )
    for done in (first, again, few):
        assert done.returncode == 0, done.stderr
    found = json.loads(first.stdout)
    assert found["part"] == "validation" and found["images"] == [40, 40, 40]
    rows = {row["name"]: row for row in found["rows"]}
    merges = ["average", "cart", "linear", "iso_c"]
    best = max(merges, key=lambda name: sum(rows[name]["correct"]))
    assert rows[best]["p"] is None and rows[best]["discordant"] == [0, 0, 0]
    for name in set(merges) - {best}:
        gaps = [abs(a - b) for a, b in zip(rows[name]["correct"], rows[best]["correct"], strict=True)]
        pairs = zip(gaps, rows[name]["discordant"], strict=True)
        assert all(gap <= differ <= 40 and (gap - differ) % 2 == 0 for gap, differ in pairs)
        assert 0 <= rows[name]["p"] <= 1
    assert rows["average"]["discordant"] == rows["linear"]["discordant"]
    assert {rows[name]["p"] for name in ("average", "linear")} in ({1.0, None}, {rows["average"]["p"]})
    assert all(rows[name]["p"] is None and rows[name]["discordant"] == [] for name in ("pretrained", "individual"))
    told = [{key: row[key] for key in ("name", "correct", "discordant", "p")} for row in found["rows"]]
    assert told == [{key: row[key] for key in told[0]} for row in json.loads(again.stdout)["rows"]]
    assert f"{best} " in first.stderr and "on 120 validation images" in first.stderr and "McNemar" in first.stderr
    assert f"best     hfcart merge {' '.join(TOWERS)}" in first.stderr
    assert "on 120 validation images" in (tmp_path / "compare" / "compare.md").read_text()
    assert "distinguishable" not in few.stdout and "hfcart merge" in few.stdout  # one method has no other beside it


def test_a_method_that_fails_is_a_row(zoo, commands: Commands, tmp_path: Path) -> None:
    """Towers further from the base than any of one ancestor: task arithmetic refuses them, their mean does not."""
    hub, root = zoo
    shutil.copytree(root / "t2", tmp_path / "far")
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "far" / "model.safetensors")
    scaled = {name: 1.9 * weight for name, weight in weights.items()}
    save_file(scaled, tmp_path / "far" / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(tmp_path / "far", tmp_path / "farther")
    save_file({n: 1.8 * w for n, w in weights.items()}, tmp_path / "farther" / "model.safetensors", {"format": "pt"})
    line = ["compare", "far", "farther", "--base", "user/clip", "--tasks", f"{root}/images1.yaml"]
    line += ["--methods", "average,task_arithmetic", "--references", "none"]
    (done,) = commands(hub, [line], apart=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "task_arithmetic failed: The towers are not of one ancestor" in done.stdout
    rows = json.loads((tmp_path / "compare" / "compare.json").read_text())["rows"]
    assert [row["error"] is None for row in rows] == [True, False] and rows[1]["correct"] == [None]
    assert "## Failed" in (tmp_path / "compare" / "compare.md").read_text()


def test_a_killed_comparison_goes_on(zoo, hfcart: Run, clean_env: dict[str, str], tmp_path: Path) -> None:
    hub, root = zoo
    command = ["compare", *TOWERS, "--tasks", f"{root}/images1.yaml", "--methods", "average,cart,linear"]
    env = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf-home"), "HF_TOKEN": TOKEN}
    process = subprocess.Popen(
        [sys.executable, "-m", "hfcart", *command], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL
    )
    journal = tmp_path / "compare.partial" / "methods.jsonl"
    while not (journal.is_file() and b'"merged":"average"' in journal.read_bytes()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(LIMIT)
    _, before = [json.loads(line) for line in journal.read_text().splitlines()]
    assert not (tmp_path / "compare").exists()
    with journal.open("a") as file:
        file.write('{"merged": "car')  # what a kill may leave of a line
    done = hfcart(*command, hub=hub)
    assert done.returncode == 0 and "Resuming: 0 of 5 rows" in done.stderr, done.stderr
    assert "Merging with average" not in done.stderr and "Merging with cart" in done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "compare" / "compare.json").read_text())["rows"]}
    assert rows["average"]["seconds"] == before["seconds"] and rows["average"]["sha256"] == before["sha256"]
    assert rows["linear"]["correct"] == rows["average"]["correct"]  # equal weights: the mean again
    assert rows["linear"]["discordant"] == rows["average"]["discordant"]  # one measured before the kill, one after
    assert not (tmp_path / "compare.partial").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--methods", "cart,tyes"], ["no method 'tyes'", "Did you mean ties?"]),
        (["--methods", "slerp"], ["slerp merges 2 sources, not 3"]),
        (["--references", "published"], ["--references is 'published'", "measured, none"]),
        (["--part", "dev"], ["--part is 'dev'"]),
        (["--tasks", "nothing"], ["nothing"]),
    ],
)
def test_errors(zoo, hfcart: Run, tmp_path: Path, options: list[str], words: list[str]) -> None:
    hub, root = zoo
    done = hfcart("compare", *TOWERS, "--tasks", f"{root}/images1.yaml", *options, hub=hub)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and all(word in done.stderr for word in words), done.stderr
    assert not list(tmp_path.glob("compare*"))


def test_what_adapt_makes_of_a_method_is_a_row_like_any_other(zoo, hfcart: Run, tmp_path: Path) -> None:
    """CART++ beside CART, with the default parameters of `--adapt`."""
    hub, root = zoo
    task = f"{root}/images1.yaml"
    done = hfcart(
        "compare", *TOWERS, "--tasks", task, "--methods", "cart,cart++", "--references", "none", "--part", "train",
        "--json", hub=hub,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cart, adapted = json.loads(done.stdout)["rows"]
    assert adapted["parameters"] == {"rank": 0.08, "steps": 500, "lr": 0.001, "seed": 0}
    assert (cart["needs"], adapted["needs"]) == ("towers only", "towers only, unlabelled images")
    assert adapted["sha256"] != cart["sha256"] and adapted["error"] is None and adapted["correct"][0] > 0
    assert (f"--adapt {task}" in done.stderr) == (adapted["p"] is None)  # how to make it, if it is the best
    refused = hfcart("compare", *TOWERS, "--tasks", task, "--methods", "cart+++", hub=hub)
    assert refused.returncode == 2 and "cart+++" in refused.stderr and "Did you mean cart++" in refused.stderr
