"""A stranger's hfcart.json and results.json: every text, number and list of them changed, one after another.

Reading refuses what was changed with an error of ours, or what the card and the terminal show of it is inert.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from card_text import body_of, metadata_of, tokens_of
from json_places import at, changed, places
from records import APACHE, MIT, digest, local_source, make_record, make_result, make_results
from rich.console import Console
from towers import TINY, write_tower

import hfcart
from hfcart import __version__
from hfcart.cli._shared.output import Output
from hfcart.clip.architecture import expected_shapes
from hfcart.commands.verify import run_verify
from hfcart.errors import HfcartError, VerifyError
from hfcart.methods import METHODS
from hfcart.methods.shared.directions import as_hex
from hfcart.progress import Progress
from hfcart.recipes.finished_finetuning import commit_message, read_any
from hfcart.recipes.finished_merge import method_record
from hfcart.recipes.merge_recipe import make
from hfcart.records import (
    AdaptationRecord,
    AdaptedTask,
    Architecture,
    CardFacts,
    DatasetRecord,
    EvalRecord,
    FileRecord,
    FinetuneRecord,
    Look,
    MergeRecord,
    Reference,
    Selected,
    SelectionRecord,
    SourceData,
    SourceRecord,
    Swept,
    TensorRecord,
    TrainedTask,
    TrainingCurve,
    TrainingRecord,
    Validation,
)
from hfcart.report.finetune_card import render_finetune_card
from hfcart.report.merge_card import render_card
from hfcart.results.files import read_results

SMALL = {**TINY, "num_hidden_layers": 1}
HOSTILE = [
    "[x](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "https://evil.example/x",
    "<script>alert(1)</script><!--",
    "` [x](https://evil.example) `",
    "a\n```\n# Owned\n",
    'CLIPVisionModel\nimport os; os.system("x")\nX = CLIPVisionModel',
    "\n---\nlicense: mit\n---\n# Owned\n",
    "x: {y: &a [*a]}\n- !!python/object:os.system x",
    "a | b | c\n|---|",
    "$$\\href{https://evil.example}{x}$$",
    "safe\u202egpj.exe\u2066\u200b",
    "\x1b[31mred\x1b[0m\x07\x00\x7f\x9b31m",
    "{{ record }}{% raw %}{{ 7 * 7 }}",
    "line\u2028separator\u0085x",
    "../../etc/passwd",
    "",
    " ",
    "x" * 100_000,
]
NUMBERS: list[Any] = [float("nan"), float("inf"), -1, 10**30, 10**400, 1e300, True, "1", None, 0.5]


def source(repo: str, facts: CardFacts) -> SourceRecord:
    sha256 = digest(repo)
    return SourceRecord(
        repo, repo, "main", sha256[:40], sha256, (FileRecord("model.safetensors", 9_000, sha256),), facts
    )


def folder(label: str) -> SourceRecord:
    sha256 = digest(label)
    return dataclasses.replace(
        local_source(label), sha256=sha256, files=(FileRecord("model.safetensors", 9_000, sha256),)
    )


FACTS = CardFacts(
    "other", "Aya Terms 1.0", "https://aya.example/terms", ("user/mnist", "mnist"), ("en", "pt-BR"), ("a/b",)
)
SOURCES = (source("a/x", FACTS), folder("my tower"))
BASE = source("b/y", APACHE)
DATASET = DatasetRecord("user/svhn", "cropped digits", "train", "5" * 40)


def tower(**changes: Any) -> MergeRecord:
    """A record as a merge leaves it."""
    record = make_record(SOURCES, cfg=SMALL, **changes)
    return told(record, plain(record.recipe))


def plain(recipe: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in recipe.items() if value is not None}


def told(record: MergeRecord, fields: dict[str, Any], **changes: Any) -> MergeRecord:
    """The record with this recipe, and the method as that has it."""
    recipe = make(fields)
    return dataclasses.replace(record, recipe=fields, method=method_record(recipe, recipe.parameters), **changes)


def learned() -> MergeRecord:
    """A merge whose coefficients were learned."""
    record = tower()
    adaptive = METHODS["cart"].adaptive
    assert adaptive is not None
    task = AdaptedTask("svhn", "SVHN", DATASET, 900, 1, digest("card"), 2.2, 1.1)
    adaptation = AdaptationRecord(
        adaptive.name, "tensor", "train", (task, task), "b/y", "6" * 40, 1.0, adaptive.clamped, 50, 0.001, 16,
        adaptive.rounds, 0, "float32", 1,
    )  # fmt: skip
    names = [tensor.name for tensor in record.tensors if tensor.rank]
    recipe = {k: v for k, v in record.recipe.items() if k not in adaptive.replaces}
    recipe["coefficients"] = {name: [1.0, 0.5] for name in names}
    return told(record, recipe, adaptation=adaptation)


def ranked() -> MergeRecord:
    """A merge whose singular directions were chosen, too."""
    record, adaptive = learned(), METHODS["cart"].adaptive
    assert adaptive is not None and adaptive.ranked is not None and record.adaptation is not None
    full = {tensor.name: tensor.full_rank for tensor in record.tensors if tensor.full_rank}
    directions = {
        name: [as_hex([True] * count), as_hex([True, *[False] * (count - 1)])] for name, count in full.items()
    }
    recipe = {k: v for k, v in record.recipe.items() if k not in adaptive.ranked.replaces}
    recipe |= {"adapt_ranks": 1.0, "directions": directions}
    adaptation = dataclasses.replace(record.adaptation, name=adaptive.ranked.name, rank=adaptive.ranked.rank)
    return told(record, recipe, adaptation=adaptation)


def informed() -> MergeRecord:
    """A merge by a method that looks at images, one of a task of the user's own."""
    card = {
        "id": "own", "title": "Own", "dataset": {"repo": "user/own"}, "templates": ["a {}."], "classnames": ["a", "b"],
    }  # fmt: skip
    record = make_record(SOURCES, cfg=SMALL, method="fisher")
    data = tuple(
        SourceData(each.label, "own", "Own", DATASET, "train", 900, 0, digest("card"), "fisher", digest("values"))
        for each in record.sources
    )
    tasks = [{"task": "svhn", "commit": "5" * 40}, {"card": card}]
    return told(record, {**plain(record.recipe), "tasks": tasks}, data=data)


def chosen() -> MergeRecord:
    """A merge with a parameter that was chosen on labelled images."""
    record = tower(method="consensus", base=BASE)
    selected = tuple(
        Selected(each.label, "svhn", "SVHN", DATASET, 90, 0, digest("card"), (40, 50), 0.4) for each in record.sources
    )
    formula = METHODS["consensus"].chosen.formula
    selection = SelectionRecord("threshold", (0.2, 0.4), formula, "validation", "b/y", "6" * 40, "float32", selected)
    return told(record, {**record.recipe, "threshold": [0.4, 0.4]}, selection=selection)


def swept() -> MergeRecord:
    return dataclasses.replace(
        tower(), swept=Swept("validation", ("svhn", "dtd"), 900, 24, 0.61, 0.52, digest("sweep"))
    )


def tuned() -> FinetuneRecord:
    """A record as a fine-tuning leaves it."""
    arch = Architecture(**SMALL)
    base, own = source("b/y", MIT), make_record(SOURCES, cfg=SMALL)
    tensors = tuple(
        TensorRecord(name, shape, "F32", "fine-tuned", None, None, None, False, digest(name))
        for name, shape in expected_shapes(arch, projection=False).items()
    )
    numbers = {"lr": 1e-5, "weight_decay": 0.1, "steps": 50, "batch_size": 16, "seed": 0, "max_grad_norm": 1.0}
    return FinetuneRecord(
        {
            "base": f"{base.repo}@{base.commit}",
            "tasks": ["svhn", "own"],
            **numbers,
            "warmup": 5,
            "precision": "float32",
            "validate_every": 25,
            "keep": "best",
        },
        TrainingRecord("joint", "AdamW", (0.9, 0.999), 1e-8, "cosine", 1, 2.5, 0.5),
        (base,),
        (
            TrainedTask("svhn", "SVHN", DATASET, 900, 3, digest("c")),
            TrainedTask("own", "Own", DATASET, 90, 0, digest("d")),
        ),
        arch,
        "CLIPVisionModel",
        own.parameters,
        "float32",
        tensors,
        own.environment,
        own.files,
        TrainingCurve(
            (25, 50), (2.5, 0.5), 25, Validation((90, 9), (Look(0, (20, 2)), Look(25, (80, 8)), Look(50, (79, 8))))
        ),
    )


def measured() -> EvalRecord:
    reference = Reference("user/one", 0.5, measured=False)
    part = make_result("own", rows=900, limit=100, dataset=DATASET, individual=reference, pretrained=reference)
    return make_results(tower(), make_result("svhn"), part)


RECORDS: dict[str, Callable[[], MergeRecord | FinetuneRecord]] = {
    "plain": lambda: tower(),
    "whole base": lambda: tower(method="task_arithmetic", base=BASE),
    "learned": learned,
    "ranked": ranked,
    "informed": informed,
    "chosen": chosen,
    "swept": swept,
    "tuned": tuned,
}


def variants(tree: Any, leave: Collection[str]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The record with one thing changed, but of the parts that are left; and the names that lead to what was."""
    for path in places(tree):
        if set(path[:1]) & set(leave):
            continue
        value = at(tree, path)
        if isinstance(value, dict):
            for key in value if len(value) <= 24 else list(value)[:1]:
                for text in HOSTILE:
                    yield (*path, key), changed(tree, path, {text if k == key else k: v for k, v in value.items()})
                yield (*path, key), changed(tree, path, {k: v for k, v in value.items() if k != key})
            yield path, changed(tree, path, {**value, HOSTILE[5]: HOSTILE[5]})
        elif isinstance(value, list):
            for other in ([], value[:-1], [*value, *value[-1:]], value * 3, "x", None, {}):
                yield path, changed(tree, path, other)
        elif isinstance(value, str):
            for other in (*HOSTILE, None, 7, ["x"], {}):
                yield path, changed(tree, path, other)
        else:
            for other in (*NUMBERS, HOSTILE[0], [], {}):
                yield path, changed(tree, path, other)


def check_named(error: HfcartError, path: tuple[Any, ...]) -> None:
    """One sentence, which names the file and the field that was changed, or one that it no longer agrees with."""
    message = str(error)
    assert message.startswith("m/") and message.endswith("."), message
    said = message.partition(".json")[2].replace("_", " ").lower()
    names = [name.replace("_", " ").removesuffix("s").lower() for name in path if isinstance(name, str)]
    assert not names or any(name in said for name in names) or _names_the_new(said), f"{path}: {message}"


def _names_the_new(said: str) -> bool:
    """Of a field that is called otherwise, the name that nobody knows; what has no kind, is read as a merge's."""
    return "longer than any" in said or "no evaluation writes such a" in said or "method.title: field required" in said


# Which base it is depends on what the record says: a name and a commit, in the form of such.
KNOWN_BASE = re.compile(
    r"""^base, commit = "[\w.-]+(/[\w.-]+)?", "(main|[0-9a-f]{40})"(  # fill in: [\w -]+)?$""", re.MULTILINE
)


OURS = re.compile(r"^https://(huggingface\.co|arxiv\.org|pypi\.org)/[\w./-]*$|^#\w+$")


def outline(card: str) -> dict[str, Any]:
    """What a reader of Markdown would make of a card, apart from its words."""
    tokens = tokens_of(card)
    return {
        "kinds": sorted({t.type for t in tokens} & {"html_block", "html_inline", "hr", "blockquote_open"}),
        "headings": [after.content for t, after in zip(tokens, tokens[1:], strict=False) if t.type == "heading_open"],
        "images": [t.attrGet("src") for t in tokens if t.type == "image"],
        "code": [(t.info, t.content.count("\n")) for t in tokens if t.type in ("fence", "code_block")],
        "python": [
            re.sub(KNOWN_BASE, "base, commit = …", t.content)
            for t in tokens
            if t.type == "fence" and t.info in ("python", "bibtex")
        ],
        "hosts": {re.sub(OURS, "ours", str(t.attrGet("href"))) for t in tokens if t.type == "link_open"},
        "autolinks": [t.content for t in tokens if t.type == "text" and re.search(r"https?:|www\.", t.content)],
        "formulas": re.sub(r"```yaml\n.*?\n```", "", body_of(card), flags=re.DOTALL).count("$$"),
        "keys": set(metadata_of(card)),
    }  # fmt: skip


def check_inert(card: str, plain: str) -> None:
    """The card of a changed record shows what was changed, and is in nothing else another one than that of the true."""
    card.encode()
    assert not [c for c in card if not c.isprintable() and c not in "\n\N{NO-BREAK SPACE}"]
    found, true = outline(card), outline(plain)
    # An optional part, such as a licence, may be gone; nothing may be new.
    assert found["keys"] <= true["keys"] | {"license", "license_name", "license_link", "language", "datasets"}
    assert found["kinds"] == true["kinds"] and found["autolinks"] == []
    assert set(found["headings"]) <= set(true["headings"]) and set(found["images"]) <= set(true["images"])
    assert found["python"] == true["python"] and found["formulas"] <= true["formulas"]
    assert [info for info, _ in found["code"]] == [info for info, _ in true["code"]]
    assert all(lines <= most + 1 for (_, lines), (_, most) in zip(found["code"], true["code"], strict=True))
    assert found["hosts"] <= {"ours"} and len(card) < len(plain) + 3_000


def check_printed(text: str) -> None:
    """What the command line prints of it."""
    stream = io.StringIO()
    output = Output()
    output._err = Console(file=stream, width=200)
    output.note(text)
    printed = stream.getvalue()
    assert all(c.isprintable() or c == "\n" for c in printed) and len(printed) < 4_000


def render(record: MergeRecord | FinetuneRecord, results: EvalRecord | None = None) -> str:
    if isinstance(record, FinetuneRecord):
        return render_finetune_card(record, results=results)
    return render_card(record, results=results)


@pytest.mark.parametrize("kind", RECORDS)
def test_a_true_record_is_read_as_it_was_written(kind: str) -> None:
    record = RECORDS[kind]()
    read = read_any(record.to_json().encode(), "m/hfcart.json")
    assert read.to_json() == record.to_json() and render(read) == render(record)


@pytest.mark.parametrize("kind", RECORDS)
def test_a_changed_record_is_refused_or_inert(kind: str) -> None:
    record = RECORDS[kind]()
    true, seen = render(record), set()
    count = 0
    own = ("recipe", "base", "adaptation", "data", "selection", "swept")
    leave = () if kind in ("plain", "tuned") else {field.name for field in dataclasses.fields(record)} - {*own}
    for path, tree in variants(json.loads(record.to_json()), leave):
        count += 1
        try:
            read = read_any(json.dumps(tree).encode(), "m/hfcart.json")
        except HfcartError as error:
            assert isinstance(error, VerifyError) and error.exit_code == 1
            assert str(error).isprintable() and len(str(error)) < 1_500, str(error)[:3000]
            check_named(error, path)
            check_printed(str(error)[:5_000]) if str(error) not in seen else None
            seen.add(str(error))
            continue
        card = render(read)
        if card not in seen:
            check_inert(card, true)
            check_printed(commit_message(read))
        seen.add(card)
    assert count > 500


def test_changed_results_are_refused_or_inert() -> None:
    merge, record = tower(), measured()
    true, seen = render(merge, record), set()
    assert read_results(record.to_json().encode(), "r") == record
    for path, tree in variants(json.loads(record.to_json()), ("environment",)):
        try:
            read = read_results(json.dumps(tree).encode(), "m/results.json")
        except HfcartError as error:
            assert isinstance(error, VerifyError) and str(error).isprintable() and len(str(error)) < 500
            check_named(error, path)
            continue
        card = render(merge, dataclasses.replace(read, weights_sha256=record.weights_sha256))
        if card not in seen:
            check_inert(card, true)
        seen.add(card)


def test_what_a_method_is_called_and_does_is_not_taken_from_the_file() -> None:
    record = tower()
    lies = {
        "title": "CLIP",
        "formula": "x",
        "matrices": "gold",
        "others": "lead",
        "arxiv": "2401.00001",
        "uses_base": True,
    }
    other = dataclasses.replace(record, method=dataclasses.replace(record.method, **lies, parameters={"rank": 0.9}))
    assert read_any(other.to_json().encode(), "m") == record
    unknown = json.loads(record.to_json())
    unknown["method"]["name"] = "alchemy"
    with pytest.raises(
        VerifyError, match=rf"^m is of the method 'alchemy', which hfcart {__version__} does not know\.$"
    ):
        read_any(json.dumps(unknown).encode(), "m")


def test_a_list_that_is_too_short_is_named() -> None:
    similarity = json.loads(tower().to_json())
    similarity["similarity"]["distance"] = [0.1]
    with pytest.raises(VerifyError, match="its similarity is not that of 2 sources"):
        read_any(json.dumps(similarity).encode(), "m")


def test_verify_tells_of_lies_about_the_method(tmp_path: Path) -> None:
    sources = [write_tower(tmp_path / f"s{i}", i, SMALL) for i in (1, 2)]
    hfcart.merge(sources, out=tmp_path / "m", method="average")
    path = tmp_path / "m" / "hfcart.json"
    tree = json.loads(path.read_text())
    tree["method"]["title"] = "CART"
    path.write_text(json.dumps(tree))
    with contextlib.chdir(tmp_path):
        verdict = run_verify("m", device="cpu", stream=False, progress=Progress())
    assert not verdict.identical and "but method in hfcart.json should read otherwise" in verdict.sentence
