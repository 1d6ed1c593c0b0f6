"""Task cards: the benchmark's facts are all there, users' own are read strictly, the command line shows them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hfcart.cli.tasks import app
from hfcart.errors import UsageError
from hfcart.formats.safe_yaml import MAX_LENGTH
from hfcart.system.cards_folder import cards_dir
from hfcart.tasks.task_cards import GROUPS, TaskCard, all_tasks, read_card, read_tasks

# From the published lists, not from the cards: classes, prompts, test rows, the digest of the class names (one a
# line), of the prompts, and published per cent (pretrained, fine-tuned) of B/32, B/16 and L/14.
PUBLISHED = {
    "sun397": (397, 2, 19850, "dd1277b1cfcf09ba", "c97a3d1ad5819800", (63.18, 74.86), (65.54, 78.92), (68.22, 82.76)),
    "stanford-cars": (
        196,
        8,
        8041,
        "93d089469409bbd0",
        "255ecc632c41182c",
        (59.58, 78.52),
        (64.68, 85.9),
        (77.86, 92.77),
    ),
    "resisc45": (45, 18, 6300, "3c2177013901f0ef", "8f390b8578e5c3bf", (60.27, 95.14), (66.38, 96.56), (71.33, 97.38)),
    "eurosat": (10, 3, 2700, "ee2e41b9973e7206", "9bc85d9f1798d03b", (45.0, 99.07), (54.11, 99.0), (61.19, 99.11)),
    "svhn": (10, 1, 26032, "29dd21f55e4611d4", "c0341e0a1fdfd8fb", (31.63, 97.27), (51.99, 97.61), (58.43, 97.92)),
    "gtsrb": (43, 3, 12630, "953036bc5aedbe6b", "a6794061485dcfa2", (32.53, 98.91), (43.45, 98.99), (50.52, 99.24)),
    "mnist": (10, 1, 10000, "29dd21f55e4611d4", "c0341e0a1fdfd8fb", (48.26, 99.58), (51.73, 99.7), (76.31, 99.76)),
    "dtd": (47, 8, 1880, "681d23b9cd3c2ede", "1f6888d2130f62a4", (44.2, 79.68), (45.0, 82.34), (55.53, 85.48)),
    "oxford_flowers102": (
        102,
        1,
        6149,
        "f5a3bda044faf55b",
        "bfcd4bbb214d5015",
        (66.45, 88.55),
        (71.31, 94.88),
        (79.25, 97.67),
    ),
    "pcam": (2, 1, 32768, "27352df7ede1fd87", "7c7758b084ef77fa", (60.64, 87.96), (54.02, 90.55), (51.21, 91.13)),
    "fer2013": (7, 6, 7178, "0fece1ddf1a3ebf7", "ae805dccc6d01c6a", (41.25, 71.61), (46.39, 72.76), (49.96, 75.93)),
    "oxford-iiit-pet": (
        37,
        1,
        3669,
        "8e35ab44db27d55a",
        "16a0790f0e45e97e",
        (83.32, 92.45),
        (88.44, 94.49),
        (93.21, 95.75),
    ),
    "stl10": (10, 2, 8000, "08b234ce7b11dbd3", "c97a3d1ad5819800", (97.12, 97.55), (98.25, 98.15), (99.36, 99.23)),
    "cifar100": (100, 18, 10000, "3e2584150e2896e2", "9bbf912e1144ca4c", (63.72, 88.38), (66.33, 88.78), (75.05, 93.0)),
    "cifar10": (10, 18, 10000, "bb3914949cecedee", "9bbf912e1144ca4c", (89.83, 97.6), (90.77, 98.28), (95.59, 99.13)),
    "food101": (101, 1, 25250, "9c0eeb5a368baacb", "77a79bac7d9cf25b", (82.36, 88.41), (87.01, 91.87), (91.18, 94.77)),
    "fashion_mnist": (
        10,
        2,
        10000,
        "249370ed4284a97d",
        "c97a3d1ad5819800",
        (63.01, 94.75),
        (67.3, 94.53),
        (66.96, 95.28),
    ),
    "emnist_letters": (
        26,
        1,
        20800,
        "cfa4f846a6dbeb24",
        "df7d55ac799e2a3b",
        (11.98, 95.62),
        (12.44, 95.28),
        (12.34, 95.43),
    ),
    "kmnist": (10, 1, 10000, "420ad158d8f0775d", "12c1113974e99b08", (9.95, 98.23), (11.21, 98.1), (9.71, 98.3)),
    "rendered-sst2": (
        2,
        1,
        1821,
        "2e61aa7558046c2c",
        "9034019e8a14384c",
        (58.65, 71.28),
        (60.57, 75.73),
        (68.92, 80.45),
    ),
}
BASES = ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14")
DATASETS = {
    "sun397": "tanganke/sun397",
    "stanford-cars": "tanganke/stanford_cars",
    "resisc45": "tanganke/resisc45",
    "eurosat": "tanganke/eurosat",
    "svhn": "ufldl-stanford/svhn",
    "gtsrb": "tanganke/gtsrb",
    "mnist": "ylecun/mnist",
    "dtd": "tanganke/dtd",
    "oxford_flowers102": "dpdl-benchmark/oxford_flowers102",
    "pcam": "1aurent/PatchCamelyon",
    "fer2013": "clip-benchmark/wds_fer2013",
    "oxford-iiit-pet": "timm/oxford-iiit-pet",
    "stl10": "tanganke/stl10",
    "cifar100": "tanganke/cifar100",
    "cifar10": "tanganke/cifar10",
    "food101": "ethz/food101",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "emnist_letters": "tanganke/emnist_letters",
    "kmnist": "tanganke/kmnist",
    "rendered-sst2": "nateraw/rendered-sst2",
}
ODD = {
    "svhn": {"config": "cropped_digits"},
    "fer2013": {"image_column": "jpg", "label_column": "cls"},
    "food101": {"test_split": "validation"},
}
MINE = """
id: mine
title: My own
dataset: {repo: user/mine}
templates: ["a photo of a {}."]
classnames: [cat, dog]
"""


def digest(lines: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_benchmark_s_facts(name: str) -> None:
    (task,) = read_tasks([name])
    classes, prompts, rows, names, templates, *figures = PUBLISHED[name]
    assert (len(task.classnames), len(task.templates), task.dataset.test_size) == (classes, prompts, rows)
    assert (digest(task.classnames), digest(task.templates)) == (names, templates)
    assert tuple(task.published) == tuple(task.fine_tuned) == BASES
    assert [(p.pretrained, p.fine_tuned) for p in task.published.values()] == figures
    for base, tower in task.fine_tuned.items():
        assert tower == f"tanganke/{base.removeprefix('openai/')}_{name}"
    expected = {"config": None, "revision": None, "test_split": "test", "train_split": "train"}
    expected |= {"image_column": "image", "label_column": "label", "repo": DATASETS[name], "test_size": rows}
    expected |= dict.fromkeys(("folder", "labels", "sha256"))
    assert task.dataset.model_dump() == expected | ODD.get(name, {})


def test_groups_are_the_papers_settings_in_their_order() -> None:
    assert [task.id for task in all_tasks()] == list(PUBLISHED) == list(GROUPS["20"])
    assert {name: len(ids) for name, ids in GROUPS.items()} == {"8": 8, "14": 14, "20": 20}
    assert GROUPS["20"][:14] == GROUPS["14"] and GROUPS["14"][:8] == GROUPS["8"]
    assert {path.stem for path in (cards_dir() / "tasks").iterdir()} == set(PUBLISHED)


def test_oddities_that_published_numbers_rest_on_are_kept_and_documented() -> None:
    by_id = {task.id: task for task in all_tasks()}
    assert by_id["cifar100"].classnames[26] == "cra" and "aquarium_fish" in by_id["cifar100"].classnames
    assert "american_pit_bull_terrier" in by_id["oxford-iiit-pet"].classnames
    assert by_id["fashion_mnist"].classnames[0] == "T - shirt / top"
    assert "highway or road" in by_id["eurosat"].classnames
    assert by_id["kmnist"].classnames[0] == "お"
    assert by_id["svhn"].prompts(3) == ('a photo of the number: "3".',)
    for name in ("cifar100", "oxford-iiit-pet", "fer2013", "pcam", "dtd", "emnist_letters", "resisc45"):
        assert by_id[name].note, name
    for name in ("cifar100", "oxford-iiit-pet", "fashion_mnist", "eurosat", "food101"):
        comments = [
            line for line in (cards_dir() / "tasks" / f"{name}.yaml").read_text().splitlines() if line[0] == "#"
        ]
        assert len(comments) > 1, name


def test_names_groups_and_paths(tmp_path: Path) -> None:
    mine = tmp_path / "a,b.yaml"
    mine.write_text(MINE)
    found = read_tasks(["svhn, mnist", str(mine), "8", "svhn"])
    rest = [name for name in GROUPS["8"] if name not in ("svhn", "mnist")]
    assert [task.id for task in found] == ["svhn", "mnist", "mine", *rest]
    other = tmp_path / "other.yaml"
    other.write_text(MINE.replace("cat", "cow"))
    with pytest.raises(UsageError, match="both have the id 'mine'"):
        read_tasks([str(mine), str(other)])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mnits", "Did you mean mnist"),
        ("CIFAR-11", "Did you mean cifar10 or cifar100"),
        ("qqqqqq", r"Known: sun397, .*, 8, 14, 20\."),
        (" , ", "No task is named"),
        ("./none.yaml", "cannot be read: No such file"),
    ],
)
def test_unknown_names(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        read_tasks([name])
    assert "`hfcart tasks" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("user/mine", "mine", "dataset.repo: expected a dataset on the Hub, user/name, found 'mine'"),
        ("id: mine", "id: ../mine", "id: expected .*found '../mine'"),
        ("[cat, dog]", "[cat, no]", r"classnames.1: expected text, found False; write it in quotes"),
        ("[cat, dog]", "[cat, cat]", "classnames: 'cat' is there twice, at places 0 and 1"),
        ("[cat, dog]", "[cat]", "classnames: expected at least 2 items, found 1"),
        ("[cat, dog]", '[cat, "a\\u202eb"]', r"classnames.1: expected one line of text, found 'a"),
        ("title: My own", 'title: "My\\nown"', r"title: expected one line of text, found 'My\\nown'"),
        ("user/mine}", 'user/mine, config: "\\e[2J"}', "dataset.config: expected one line of text"),
        ("of a {}.", "of a cat.", "templates: expected {} where the class name goes, found 'a photo of a cat.'"),
        ('["a photo of a {}."]', "a photo of {}", "templates: expected a list, found 'a photo of {}'"),
        ("title: My own", "titel: My own", "title: it is missing; titel: there is no such field"),
        ("user/mine}", "user/mine, train_split: test}", "train_split and test_split are both 'test'"),
        ("user/mine}", "user/mine, revision: a..b}", "dataset.revision: expected a branch, .*found 'a..b'"),
        ("user/mine}", "user/mine, test_size: 0}", "dataset.test_size: .*found 0"),
        ("id: mine", "id: [mine", "is not valid YAML at line"),
        ("id: mine", "id: &x mine", "it has anchors or aliases"),
        ("id: mine", "id: !!python/name:os.system mine", "it has tags"),
    ],
)
def test_a_wrong_card_says_what_is_wrong(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "card.yaml"
    assert old in MINE
    path.write_text(MINE)
    assert read_card(path).dataset.train_split == "train"
    path.write_text(MINE.replace(old, new))
    with pytest.raises(UsageError, match=said) as caught:
        read_card(path)
    assert str(path) in caught.value.message and caught.value.hint


@pytest.mark.parametrize("content", [b"\xff\xfe", b"- 1", b"", b"a: " + b"x" * (4 * MAX_LENGTH), b"[" * 100])
def test_files_that_are_no_cards(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "card.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is not"):
        read_card(path)


@settings(deadline=None, max_examples=25)
@given(st.recursive(st.none() | st.booleans() | st.text(max_size=9), lambda x: st.lists(x, max_size=3), max_leaves=5))
def test_no_value_of_a_field_escapes_the_errors(value: object) -> None:
    good = yaml.safe_load(MINE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "card.yaml"
        for field in TaskCard.model_fields:
            path.write_text(yaml.safe_dump({**good, field: value}))
            try:
                read_card(path)
            except UsageError as error:
                assert field in error.message or "valid YAML" in error.message


def test_the_digest_is_of_what_decides_a_measurement() -> None:
    fields = yaml.safe_load(MINE)
    card = TaskCard(**fields)
    same = [{"title": "x"}, {"note": "x"}, {"license": "mit"}, {"dataset": {"repo": "user/mine", "test_size": 4}}]
    other = [
        {"classnames": ["dog", "cat"]},
        {"templates": ["{}"]},
        {"dataset": {"repo": "user/mine", "revision": "v1"}},
        {"dataset": {"repo": "user/mine", "test_split": "val"}},
    ]
    assert {TaskCard(**fields | change).sha256 for change in same} == {card.sha256}
    assert len({TaskCard(**fields | change).sha256 for change in other} | {card.sha256}) == 5


def test_braces_in_class_names_are_text() -> None:
    card = TaskCard(**yaml.safe_load(MINE) | {"classnames": ["{0.__class__}", "b"], "templates": ["a {} in {}"]})
    assert card.prompts(0) == ("a {0.__class__} in {0.__class__}",)


def test_the_command_line_lists_and_shows(tmp_path: Path) -> None:
    run = CliRunner().invoke
    listed = run(app, [])
    assert listed.exit_code == 0 and listed.stdout.index("sun397") < listed.stdout.index("rendered-sst2")
    facts = json.loads(run(app, ["--json"]).stdout)
    assert [task["id"] for task in facts] == list(PUBLISHED) and facts[8]["groups"] == ["14", "20"]
    shown = run(app, ["show", "sun397"]).stdout
    for text in ("tanganke/sun397", "19,850", "a photo of the {}.", "396  youth hostel", "63.18", "74.86"):
        assert text in shown, text
    one = json.loads(run(app, ["show", "svhn", "--json"]).stdout)
    assert one["dataset"]["config"] == "cropped_digits" and one["sha256"] == read_tasks(["svhn"])[0].sha256
    mine = tmp_path / "mine.yaml"
    mine.write_text(MINE)
    assert "user/mine" in run(app, ["show", str(mine)]).stdout
    wrong = run(app, ["show", "mnits"])
    assert wrong.exit_code == 2 and "Did you mean mnist" in wrong.stderr
