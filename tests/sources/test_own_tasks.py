"""Every source gets the one task it was fine-tuned on, or the user is told which has none and what to type."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from towers import write_tower

from hfcart.errors import UsageError
from hfcart.progress import Progress
from hfcart.records import CardFacts
from hfcart.sources.own_tasks import Known, fits, match, own_task, own_tower, own_towers
from hfcart.sources.places import pin
from hfcart.sources.towers import Tower
from hfcart.tasks.task_cards import TaskCard, read_tasks


def card(name: str, repo: str, tower: str | None = None) -> TaskCard:
    return TaskCard(
        id=name,
        title=name,
        dataset={"repo": repo},
        templates=["{}"],
        classnames=["a", "b"],
        fine_tuned={"user/clip": tower} if tower else {},
    )


ONE, TWO = card("one", "user/d1", "user/t1"), card("two", "user/d2", "user/t2")


def said(*datasets: str) -> CardFacts:
    return CardFacts(datasets=datasets)


def test_a_task_s_card_goes_before_the_tower_s() -> None:
    assert fits(Known("user/t1", said("user/d2")), ONE) == 2 and fits(Known("user/t1", said("user/d2")), TWO) == 1
    assert own_task(Known("user/t1", said("user/d2")), [TWO, ONE]) is ONE
    assert own_tower(TWO, [("a", Known("user/t1", said("user/d2"))), ("b", Known("user/t2", said()))]) == "b"


def test_a_dataset_counts_only_if_it_is_the_only_one() -> None:
    assert own_task(Known(None, said("user/d2")), [ONE, TWO]) is TWO
    assert own_task(Known(None, said("user/d1", "user/d2")), [ONE, TWO]) is None
    assert own_task(Known(None, said()), [ONE, TWO]) is None and own_task(Known(None, said("user/d1")), []) is None
    assert own_tower(ONE, [("a", Known(None, said("user/d2")))]) is None and own_tower(ONE, []) is None


@pytest.fixture
def towers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Tower]:
    """Three folders: the first two say what they were trained on, the third does not."""
    monkeypatch.chdir(tmp_path)
    for i in (1, 2, 3):
        readme = f"---\ndatasets: [user/d{i}]\n---\n" if i < 3 else "---\nlicense: mit\n---\n"
        write_tower(tmp_path / f"t{i}", i, card=readme)
        (tmp_path / f"c{i}.yaml").write_text(
            json.dumps(card(f"task{i}", f"user/d{i}").model_dump(mode="json", exclude_defaults=True))
        )
    (tmp_path / "a=b").mkdir()
    for name in ("c3.yaml", "c,3.yaml"):
        (tmp_path / "a=b" / name).write_text((tmp_path / "c3.yaml").read_text())
    return [pin(f"t{i}", Progress()) for i in (1, 2, 3)]


TYPED = ["t1", "./t2/", "t3"]


@pytest.mark.parametrize(
    "entries",
    [
        ["c1.yaml,c2.yaml", "t3=c3.yaml"],
        ["t3=c3.yaml,c2.yaml,c1.yaml,8"],
        ["c1.yaml", "./t2=c2.yaml", "t3=c3.yaml"],
        ["c1.yaml", "./t2/=c2.yaml", "t3=a=b/c3.yaml"],
        ["./", "t3=c3.yaml"],
        ["c1.yaml,c2.yaml", "t3=c3.yaml", "a=b/c,3.yaml"],
    ],
)
def test_by_cards_and_by_word(towers: list[Tower], entries: list[str]) -> None:
    assert [task.id for task in match(towers, TYPED, entries)] == ["task1", "task2", "task3"]


def test_what_is_said_goes_before_what_cards_say(towers: list[Tower]) -> None:
    found = match(towers, TYPED, ["t1=c2.yaml", "t2=mnist", "t3=mnist"])
    assert [task.id for task in found] == ["task2", "mnist", "mnist"]


def test_tasks_are_learned_in_the_order_in_which_they_are_given(towers: list[Tower]) -> None:
    tasks, places = own_towers(towers, TYPED, ["t3=mnist,c2.yaml", "c1.yaml", "dtd"])
    assert [task.id for task in tasks] == ["mnist", "task2", "task1", "dtd"] and places == (2, 1, 0, None)


def test_towers_of_the_benchmark_are_known_by_name() -> None:
    for task in read_tasks(["20"]):
        for repo in task.fine_tuned.values():
            assert own_task(Known(repo, said()), read_tasks(["20"])) == task


@pytest.mark.parametrize(
    ("entries", "words", "hint"),
    [
        (["c1.yaml"], ["trained into t2, t3:", "names them,"], "--tasks c1.yaml,./t2/=c1.yaml,t3=c1.yaml"),
        (["c1.yaml,c2.yaml"], ["trained into t3:", "names it,"], "--tasks c1.yaml,c2.yaml,t3=c1.yaml"),
        (["t4=c1.yaml"], ["t4=c1.yaml: t4 is none of the sources", "t1"], "SOURCE=TASK"),
        (["t3=8"], ["t3=8 names 8 tasks: a source has one"], None),
        (["t3=mnist,t3=dtd"], ["t3 is given two tasks, mnist and dtd"], None),
        (["t3=nothing"], ["no task 'nothing'"], "hfcart tasks"),
        (["t3=mnist", "other.yaml", "c1.yaml"], ["both have the id 'task1'"], "id of its own"),
        (["t3=mnist", "again.yaml", "c1.yaml,c2.yaml"], ["not certain", "again and task1 fit t1."], ",t1=again.yaml"),
        ([], ["No task is named"], "hfcart tasks"),
    ],
)
def test_what_is_refused(towers: list[Tower], entries: list[str], words: list[str], hint: str | None) -> None:
    fields = json.loads(Path("c1.yaml").read_text())
    Path("other.yaml").write_text(json.dumps({**fields, "templates": ["{}!"]}))
    Path("again.yaml").write_text(json.dumps({**fields, "id": "again"}))
    with pytest.raises(UsageError) as error:
        match(towers, TYPED, entries)
    assert all(word in error.value.message for word in words), error.value.message
    assert hint is None or hint in (error.value.hint or "")
    if "such as --tasks" in (error.value.hint or ""):  # what is proposed works in the place of what was typed
        proposed = shlex.split(error.value.hint.partition("--tasks ")[2])
        assert len(match(towers, TYPED, proposed)) == 3
