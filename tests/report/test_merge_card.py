"""The model card: what it says, that it is true, and that nobody can write into it but us."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from card_text import block, blocks, body_of, first_lines, metadata_of, paragraph, table, tables, tokens_of
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from records import (
    APACHE,
    HOSTILE,
    MIT,
    NONE,
    TASKS,
    digest,
    eight_towers,
    hub_source,
    local_source,
    make_record,
    make_result,
    make_results,
    poisoned,
    poisoned_results,
    published,
)
from running import ROOT, ended
from towers import TINY, write_tower

from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.errors import UsageError
from hfcart.formats import markdown
from hfcart.methods import METHODS
from hfcart.records import CardFacts, DatasetRecord, Reference
from hfcart.report.accuracy import accuracy, mean_interval, wilson
from hfcart.report.licences import HUB_LICENSES
from hfcart.report.links import HUB
from hfcart.report.merge_card import front_matter, render_card
from hfcart.system.cards_folder import cards_dir


def run(code: str, *args: str, cwd: Path | None = None, **env: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHONPATH"))}
    done = ended([sys.executable, "-c", code, *args], cwd=cwd or ROOT, env={**clean, "OMP_NUM_THREADS": "1", **env})
    assert done.returncode == 0, done.stderr
    return done.stdout


# What it says


def test_front_matter_of_the_common_case():
    sources = eight_towers()
    assert front_matter(make_record(sources), repo="user/merged") == {
        "library_name": "transformers",
        "pipeline_tag": "image-feature-extraction",
        "base_model": [f"tanganke/clip-vit-base-patch32_{task}" for task in TASKS],
        "base_model_relation": "merge",
        "datasets": ["tanganke/sun397"],
        "tags": ["hfcart", "merge", "clip", "cart"],
    }
    written = metadata_of(render_card(make_record(sources), repo="user/merged"))
    assert list(written.items()) == list(front_matter(make_record(sources)).items())


def test_data_sets_and_languages_are_unions():
    one = CardFacts(datasets=("user/b", "mnist"), languages=("en", "pt-BR"))
    two = CardFacts(datasets=("user/a", "user/b"), languages=("no", "en"))
    metadata = front_matter(make_record((hub_source("a/x", one), hub_source("b/y", two))))
    assert metadata["datasets"] == ["mnist", "user/a", "user/b"]
    assert metadata["language"] == ["en", "no", "pt"]
    text = render_card(make_record((hub_source("a/x", one), hub_source("b/y", two))))
    assert metadata_of(text)["language"] == ["en", "no", "pt"], "YAML must not read Norwegian as False"


def test_local_towers_are_a_name_and_a_hash():
    record = make_record((hub_source("a/x"), local_source("my_tower")))
    text = render_card(record)
    assert metadata_of(text)["base_model"] == ["a/x"]
    assert table(text, "What was merged")[2][1:3] == ["my_tower (local)", "sha256 " + digest("local")[:12]]
    assert digest("local") in block(text, "yaml")
    only_local = front_matter(make_record((local_source("my_tower"), local_source("other"))))
    assert "base_model" not in only_local
    assert "base_model_relation" not in only_local


def test_base_model_of_the_method_is_named_as_an_ingredient():
    base = hub_source("openai/clip-vit-base-patch32", CardFacts("mit"))
    record = make_record((hub_source("a/x", CardFacts("mit")),), method="task_arithmetic", base=base)
    assert front_matter(record)["base_model"] == ["a/x", "openai/clip-vit-base-patch32"]
    assert table(render_card(record), "What was merged")[2][:2] == ["base", "openai/clip-vit-base-patch32"]
    silent = make_record((hub_source("a/x", CardFacts("mit")),), method="task_arithmetic", base=hub_source("b/y"))
    assert "license" not in front_matter(silent)


OWN = CardFacts("other", "Aya Terms 1.0", "https://aya.example/terms")


@pytest.mark.parametrize(
    ("facts", "fields", "sentence"),
    [
        ((MIT, MIT), {"license": "mit"}, "Every tower that went into this one is under `mit`"),
        ((NONE, NONE), {}, "None of the towers that went into this one states a licence, so this card states none."),
        ((CardFacts("unknown"), NONE), {}, "None of the towers"),
        ((MIT, NONE), {}, "Not every tower that went into this one states a licence, so this card states none"),
        ((MIT, NONE), {}, "- `mit`: `a/x0`\n- not stated: `a/x1`"),
        ((MIT, NONE, APACHE), {}, "- `apache-2.0`: `a/x2`\n- `mit`: `a/x0`\n- not stated: `a/x1`"),
        (
            (MIT, APACHE, MIT),
            {
                "license": "other",
                "license_name": "apache-2.0-and-mit",
                "license_link": "https://huggingface.co/user/merged#licence",
            },
            "- `apache-2.0`: `a/x1`\n- `mit`: `a/x0`, `a/x2`",
        ),
        (
            (OWN, OWN),
            {"license": "other", "license_name": "aya-terms-1.0", "license_link": "https://aya.example/terms"},
            "is under `Aya Terms 1.0`",
        ),
        (
            (CardFacts("my-lab-1"), CardFacts("my-lab-1")),
            {
                "license": "other",
                "license_name": "my-lab-1",
                "license_link": "https://huggingface.co/user/merged#licence",
            },
            "is under `my-lab-1`",
        ),
        (
            (CardFacts("other", "lab", "LICENSE"),),
            {
                "license": "other",
                "license_name": "lab",
                "license_link": f"https://huggingface.co/a/x0/blob/{digest('a/x0')[:40]}/LICENSE",
            },
            "is under `lab`",
        ),
    ],
)
def test_licence(facts, fields, sentence):
    record = make_record(tuple(hub_source(f"a/x{i}", fact) for i, fact in enumerate(facts)))
    metadata = front_matter(record, repo="user/merged")
    assert {key: value for key, value in metadata.items() if key.startswith("license")} == fields
    assert sentence in paragraph(render_card(record, repo="user/merged"), "Licence")


def test_the_tables_add_up():
    record = make_record()
    text = render_card(record, repo="user/merged")
    rows = table(text, "How", "Tensors")
    assert rows[0] == ["Tensors", "Shape", "Count", "Parameters", "Rule", "Rank kept", "Energy kept"]
    assert sum(int(row[2]) for row in rows[1:-1]) == int(rows[-1][2]) == len(record.tensors) == 199
    total = sum(int(row[3].replace(",", "")) for row in rows[1:-1])
    assert total == int(rows[-1][3].replace(",", "")) == record.parameters == 87_456_000
    square = [t.energy for t in record.tensors if t.rank and t.shape == (768, 768)]
    assert rows[1] == [
        "q_proj, k_proj, v_proj, out_proj",
        "768\xa0×\xa0768",
        "48",
        "28,311,552",
        "cart",
        "61\xa0of\xa0768",
        f"{100 * min(square):.1f}–{100 * max(square):.1f}%",
    ]
    assert rows[-2][:5] == ["biases", "", "72", "82,944", "average"]
    merged = table(text, "What was merged")
    assert [row[1] for row in merged[1:]] == [source.repo for source in record.sources]
    assert [float(row[5]) for row in merged[1:]] == [float(f"{d:.3g}") for d in record.similarity.distance]
    assert "(ViT-B/32, 87.5 million parameters, float32)" in text
    assert "(ViT of width 32, 2 layers, patch 8, 23,552 parameters, float32)" in render_card(make_record(cfg=TINY))
    for source in record.sources:
        assert f"(https://huggingface.co/{source.repo}/tree/{source.commit})" in text


def test_fused_projections_have_a_row_of_their_own():
    text = render_card(make_record(qkv="fused"))
    rows = table(text, "How", "Tensors")
    assert [row[0] for row in rows[1:3]] == ["q_proj, k_proj, v_proj", "out_proj"]
    assert rows[1][1].replace("\xa0", " ") == "768 × 768, fused to 2304 × 768"
    assert "decomposed together, stacked into one matrix" in text
    assert "decomposed one by one" in render_card(make_record())


def test_methods_without_rank_say_nothing_of_rank():
    text = render_card(make_record(method="average"))
    assert table(text, "How", "Tensors")[0][-1] == "Rule"
    for word in ("SVD", "Energy kept", "energy.png", "How it was chosen", "decomposed"):
        assert word not in text


def test_single_source_and_pinned_revisions():
    text = render_card(make_record((hub_source("a/x", revision="refs/pr/3"),)))
    assert "merged from 1 fine-tuned tower with" in text
    assert "under most methods the result is that tower again" in text
    assert "similarity.png" not in text
    assert table(text, "What was merged")[1][2] == f"{digest('a/x')[:7]} (refs/pr/3)"
    for plain in ("main", digest("a/x")[:40], digest("a/x")[:9]):
        text = render_card(make_record((hub_source("a/x", revision=plain),)))
        assert table(text, "What was merged")[1][2] == digest("a/x")[:7]


def test_what_unrelated_towers_would_show_is_right():
    assert "so 8 towers with nothing in common would show −0.14 everywhere" in render_card(make_record())


def test_fallbacks_and_distant_towers_are_told():
    record = make_record()
    tensors = tuple(dataclasses.replace(t, fallback=t.name.endswith("fc1.weight")) for t in record.tensors)
    text = render_card(dataclasses.replace(record, tensors=tensors))
    assert "In 12 tensors the solver did not converge" in text
    assert "layers.5.mlp.fc1.weight` and 6 more." in text
    assert "may not share an ancestor" not in text
    distant = dataclasses.replace(record, recipe={**record.recipe, "allow_distant": True})
    assert "may not share an ancestor" in render_card(distant)


def test_recipe_and_hashes_can_be_used_as_they_stand(tmp_path):
    record = make_record((hub_source("a/x"), local_source("my_tower")))
    record = dataclasses.replace(record, files={"recipe.yaml": hashlib.sha256(b"recipe").hexdigest()})
    text = render_card(record, repo="user/merged")
    assert yaml.safe_load(block(text, "yaml")) == record.recipe
    (tmp_path / "recipe.yaml").write_bytes(b"recipe")
    ended(["sha256sum", "-c", "-"], cwd=tmp_path, input=block(text, "text")).check_returncode()
    assert block(text, "bash").splitlines() == [
        "pip install hfcart",
        "hf download user/merged recipe.yaml --local-dir .",
        "hfcart merge --recipe recipe.yaml --out again",
        "hfcart verify user/merged",
    ]
    assert block(render_card(record), "bash").splitlines()[-1] == "hfcart verify ."


@pytest.mark.parametrize(("projection", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_the_snippet_of_features_runs(tmp_path, projection, dtype):
    folder = write_tower(tmp_path / "merged", 1, projection=projection, dtype=dtype)
    record = make_record((hub_source("a/x"),), cfg=TINY, projection=projection)
    config = {"architectures": [record.model_class], "model_type": "clip_vision_model", **TINY}
    (folder / "config.json").write_text(json.dumps(config))
    size = {"height": TINY["image_size"], "width": TINY["image_size"]}
    preprocessor = {"crop_size": size, "size": {"shortest_edge": TINY["image_size"]}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    here = blocks(render_card(record), "python")[1]
    published = blocks(render_card(record, repo="user/merged"), "python")[1]
    assert here == published.replace('"user/merged"', '"."  # this folder')
    expected = f"torch.Size([1, {TINY['projection_dim'] if projection else TINY['hidden_size']}])"
    assert f"# {expected}\n" in here
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    assert run(here, cwd=folder, **offline).strip() == expected


# First lines


def told(base: str | None) -> CardFacts:
    return CardFacts(base_models=(base,) if base else (), datasets=("user/images",))


def test_the_first_lines_name_the_base_as_it_is_known():
    used = hub_source("user/clip")
    measured = make_results(make_record())
    link = "[user/clip](https://huggingface.co/user/clip)"
    openai = f"[openai/clip-vit-base-patch32]({HUB}/openai/clip-vit-base-patch32) @ [`{digest('base')[:7]}`]"
    agree = tuple(hub_source(f"a/x{i}", told("user/clip")) for i in range(2))
    for record, results, line in (
        (make_record(), None, "not known; the towers' cards name none."),
        (make_record(), measured, openai),
        (make_record(base=used), None, f"{link} @ [`{used.commit[:7]}`]"),
        (make_record(agree), None, f"{link}, as the towers' own cards say, whose text tower goes with it."),
        (make_record((*agree, hub_source("a/z", told(None)))), None, f"{link}, as the towers' own cards say"),
        (make_record((*agree, hub_source("a/z", told("b/c")))), None, "not known; the towers' cards do not agree"),
    ):
        text = render_card(record, results=results)
        assert f"- **Base:** {line}" in first_lines(text)
        filled = 'base, commit = "user/clip", "main"  # fill in' in block(text, "python")
        assert filled == ("**Fill in the base**" in text) == ("not known" in line)


def test_a_base_that_transformers_does_not_load_is_to_be_filled_in():
    used = hub_source("user/clip")
    theirs = dataclasses.replace(used, files=(dataclasses.replace(used.files[0], name="open_clip_model.safetensors"),))
    for base, own in ((used, True), (theirs, False)):
        text = render_card(make_record(base=base))
        assert f"- **Base:** [user/clip](https://huggingface.co/user/clip) @ [`{used.commit[:7]}`]" in first_lines(text)
        assert (f'base, commit = "user/clip", "{used.commit}"' in block(text, "python")) == own
        assert ("**Fill in the base**" in text) != own


def test_the_first_lines_say_how_good_it_is_and_for_what():
    record = make_record()
    text = first_lines(render_card(record))
    assert "- **Accuracy:** not measured.\n- **Good for:** one tower in place of 8" in text
    assert "- **Tasks:** [tanganke/sun397](https://huggingface.co/datasets/tanganke/sun397)." in text
    assert "by [hfcart](https://pypi.org/project/hfcart/)" in text
    both = [make_result(task, pretrained=published(0.4), individual=published(0.9)) for task in ("a", "b")]
    text = first_lines(render_card(record, results=make_results(record, *both)))
    assert "- **Tasks:** A, B.\n- **Accuracy:** **70.0%** of the test images, zero-shot, the mean of 2 tasks; " in text
    assert "40.0%† for the base alone, 90.0%† for the individual towers, each on its own task († published, " in text
    sample = make_results(record, make_result("a", rows=6300, limit=100))
    assert "**70.0%** of a sample of the test images, zero-shot. " in first_lines(render_card(record, results=sample))
    mixed = make_results(record, make_result("a"), make_result("b", part="validation"))
    assert "**70.0%** of images, zero-shot, the mean of 2" in first_lines(render_card(record, results=mixed))


def test_how_each_setting_was_chosen():
    record = make_record()
    rows = table(render_card(record), "How", "Setting")
    assert rows[1:] == [["rank", "0.08", "hfcart's default"], ["scale, λ", "1.0", "hfcart's default"]]
    given = dataclasses.replace(record.method, parameters={"rank": 0.16, "scale": 1.0})
    rows = table(render_card(dataclasses.replace(record, method=given)), "How", "Setting")
    assert rows[1] == ["rank", "0.16", "given; the record does not say why"]


# Accuracy


def test_without_results_the_card_says_so():
    record = make_record()
    others = dataclasses.replace(make_results(record), weights_sha256=digest("other weights"))
    assert render_card(record, results=others) == render_card(record)
    assert "**Accuracy was not measured.**" in paragraph(render_card(record), "Limits")
    text = render_card(record, results=make_results(record))
    assert "Accuracy was not measured" not in text
    assert "**Accuracy was measured on the tasks above and nothing else.**" in paragraph(text, "Limits")


def test_the_accuracy_table_holds_the_counts():
    measured = Reference("user/two", 0.875, measured=True)
    config = DatasetRecord("ufldl/svhn", "cropped_digits", "test", "5" * 40)
    results = [
        make_result("eurosat", pretrained=published(0.45), individual=published(0.99)),
        make_result("svhn", [(3, 3), (1, 0)], dataset=config, pretrained=published(0.3), individual=measured),
    ]
    record = make_record()
    text = render_card(record, repo="user/merged", results=make_results(record, *results))
    rows = table(text, "Accuracy")
    assert rows[0] == ["Task", "Accuracy", "95% interval", "Pretrained", "Individual", "Images"]
    low, high = wilson(70, 100)
    interval = f"{100 * low:.1f}\xa0to\xa0{100 * high:.1f}"
    assert rows[1] == ["EUROSAT", "70.0", interval, "45.0†", "99.0†", "100"]
    assert rows[2] == ["SVHN", "75.0", "30.1\xa0to\xa095.4", "30.0†", "87.5", "4"]
    low, high = mean_interval([(70, 100), (3, 4)])
    interval = f"{100 * low:.1f}\xa0to\xa0{100 * high:.1f}"
    assert rows[3] == ["mean of 2 tasks", "72.5", interval, "37.5†", "93.2†", ""]
    where = {section[0]: section[1] for section in tables(text, "Accuracy")[1][1:]}
    assert where["SVHN"] == "ufldl/svhn @ 5555555, cropped_digits, test split"
    assert f"https://huggingface.co/datasets/ufldl/svhn/tree/{'5' * 40}" in text
    section = paragraph(text, "Accuracy")
    assert f"CLIP model [openai/clip-vit-base-patch32]({HUB}/openai/clip-vit-base-patch32) @ " in section
    assert "† are published ones and were not measured here" in section
    ratio = 100 * (0.7 / 0.99 + 0.75 / 0.875) / 2
    assert f"**{ratio:.1f}%**, over 2 of 2 tasks, against published figures for 1 of the individual" in section
    assert "Bar chart of the accuracy on each of 2 tasks: from 70.0% to 75.0%, 72.5% on average." in section
    for absent in ("Partial", "Not test images", "could not be decoded"):
        assert absent not in section


def test_a_mean_over_fewer_tasks_is_not_set_beside_the_others():
    record = make_record()
    results = make_results(record, make_result("a", individual=published(0.9)), make_result("b"))
    text = render_card(record, results=results)
    assert [row[3] for row in table(text, "Accuracy")] == ["Individual", "90.0†", "", ""]
    assert "individual towers" not in first_lines(text)
    assert "over 1 of 2 tasks, against published figures for the individual towers." in text


def test_what_is_no_whole_test_split_is_named_and_kept_off_the_model_index():
    record = make_record()
    results = make_results(
        record,
        make_result("a", rows=6300, limit=100),
        make_result("b", part="validation"),
        make_result("c", undecodable=2, rows=102),
        make_result("d", [(0, 0), (0, 0)], rows=2, undecodable=2),
    )
    text = render_card(record, results=results)
    section = paragraph(text, "Accuracy")
    assert "**Partial:** scored on a random sample only, 100 of 6,300 examples of A." in section
    assert "**Not test images:** the `validation` part of B." in section
    assert "not counted: 2 of C, 2 of D." in section
    assert [row[1:] for row in table(text, "Accuracy")][1:5] == [
        ["70.0", "60.4\xa0to\xa078.1", "100 of 6,300"],
        ["70.0", "60.4\xa0to\xa078.1", "100"],
        ["70.0", "60.4\xa0to\xa078.1", "100"],
        ["none", "", "0"],
    ]
    assert table(text, "Accuracy")[5][:2] == ["mean of 3 tasks", "70.0"]
    (model,) = metadata_of(text)["model-index"]
    assert [result["dataset"]["name"] for result in model["results"]] == ["C"]
    assert model["results"][0]["metrics"][0]["name"] == "top-1 accuracy without 2 undecodable images"
    sample = make_results(record, make_result("a", rows=6300, limit=100))
    assert "model-index" not in metadata_of(render_card(record, results=sample))


def test_the_model_index_is_what_the_client_makes_of_the_same_results():
    config = DatasetRecord("ufldl/svhn", "cropped_digits", "test", "5" * 40)
    results = [make_result("eurosat"), make_result("svhn", [(3, 2), (4, 1)], dataset=config)]
    record = make_record()
    evaluation = make_results(record, *results)
    expected = [
        EvalResult(
            task_type="zero-shot-image-classification",
            task_name="Zero-Shot Image Classification",
            dataset_name=result.title,
            dataset_type=result.dataset.repo,
            dataset_config=result.dataset.config,
            dataset_split="test",
            dataset_revision=result.dataset.commit,
            metric_type="accuracy",
            metric_name="top-1 accuracy",
            metric_value=round(accuracy(result), 6),
            source_name="hfcart",
            source_url="https://huggingface.co/user/merged",
        )
        for result in results
    ]
    text = render_card(record, repo="user/merged", results=evaluation)
    assert metadata_of(text)["model-index"] == eval_results_to_model_index("merged", expected)
    data = ModelCard(text).data
    assert data.model_name == "merged" and data.eval_results == expected
    alone = ModelCard(render_card(record, results=evaluation)).data
    assert alone.model_name == "cart-merge"
    assert [result.source_url for result in alone.eval_results] == [None, None], "no repo, no source to name"


# Same input, same text; from a checkout and from a wheel


def test_same_record_same_text_and_no_stray_blanks():
    for record in (
        make_record(),
        make_record(qkv="fused", projection=True),
        make_record((hub_source("a/x", MIT), local_source("my_tower", APACHE)), method="average"),
        make_record((hub_source("a/x", MIT),), method="task_arithmetic", base=hub_source("b/y", APACHE)),
        make_record((local_source("x"),)),
    ):
        some = make_results(record, make_result("a", limit=9, rows=999), make_result("b", individual=published(0.9)))
        for repo, results in ((None, None), ("user/merged", None), (None, make_results(record)), (None, some)):
            text = render_card(record, repo=repo, results=results)
            assert text == render_card(record, repo=repo, results=results)
            assert text.startswith("---\n")
            assert text.endswith("```\n")
            assert "\n\n\n" not in text
            assert not re.search(r"[ \t]$", text, re.MULTILINE)
            assert not re.search(r"[^ \n`]  +[^ \n]", paragraph(text, "How").split("\n\n|")[0])


def test_nothing_heavy_is_imported():
    code = "import sys, hfcart.report.merge_card; print(*sys.modules)"
    loaded = set(run(code).split())
    assert "hfcart.report.merge_card" in loaded
    assert not loaded & {"torch", "numpy", "matplotlib", "huggingface_hub", "transformers", "scipy", "pydantic"}


@pytest.fixture
def copy(tmp_path):
    """A copy of the package and its cards, laid out as a wheel does."""
    ignore = shutil.ignore_patterns("__pycache__", "cards")
    shutil.copytree(ROOT / "hfcart", tmp_path / "hfcart", ignore=ignore)
    shutil.copytree(cards_dir(), tmp_path / "hfcart" / "cards")
    return tmp_path


FIND = "from hfcart.system.cards_folder import cards_dir; print(cards_dir())"


def test_cards_are_found_in_a_wheel_and_in_a_checkout(copy):
    assert (cards_dir() / "model_card.md.jinja").is_file()
    assert run(FIND, cwd=copy).strip() == str(copy / "hfcart" / "cards")
    # A folder of that name beside an installed package is somebody else's.
    (copy / "cards").mkdir()
    assert run(FIND, cwd=copy).strip() == str(copy / "hfcart" / "cards")
    (copy / "pyproject.toml").touch()
    assert run(FIND, cwd=copy).strip() == str(copy / "cards")


RENDER = """
import pickle, sys
from pathlib import Path
from hfcart.report.merge_card import render_card
from hfcart.errors import HfcartError
try:
    sys.stdout.buffer.write(render_card(pickle.loads(Path("record").read_bytes())).encode())
except HfcartError as error:
    print(type(error).__name__, error)
"""


def test_a_user_may_edit_the_template_and_hears_of_mistakes(copy):
    template = copy / "hfcart" / "cards" / "model_card.md.jinja"
    (copy / "record").write_bytes(pickle.dumps(make_record()))
    assert run(RENDER, cwd=copy) == render_card(make_record())
    words = template.read_text()
    template.write_text(words.replace("## Use it", "## How to use it"))
    assert "## How to use it" in run(RENDER, cwd=copy)
    template.write_text(words + "{{ record.surprise }}")
    assert re.search(
        r"UsageError The card template .*model_card.md.jinja does not render: .*surprise", run(RENDER, cwd=copy)
    )
    template.write_text(words + "{% if %}")
    assert "UsageError The card template" in run(RENDER, cwd=copy)
    template.unlink()
    assert "cannot be read: No such file" in run(RENDER, cwd=copy)


@pytest.mark.parametrize("repo", ["merged", "user/", "a/b/c", "user/x y", "user/x\n", 'user/"+x', "user/--x", "../x"])
def test_targets_that_are_no_repo(repo):
    with pytest.raises(UsageError, match="is not a Hub repo"):
        render_card(make_record(), repo=repo)


# Nobody writes into the card but us

LINKS = re.compile(r"https://(huggingface\.co|arxiv\.org|pypi\.org)/[A-Za-z0-9_./-]+|#[a-z]+")
FOLDS = {"</details>\n"} | {
    f"<details>\n<summary>{title}</summary>\n"
    for title in (
        "Image features, without the base",
        "How this was measured",
        "What each tensor got",
        "The recipe",
        "Versions and hashes",
    )
}
HEADINGS = [
    "merged",
    "Use it",
    "What was merged",
    "How",
    "Energy kept",
    "Make it again",
    "Limits",
    "Licence",
    "Citation",
]


def check_harmless(value: str) -> None:
    record = poisoned(value)
    text = render_card(record, repo="user/merged")
    text.encode()
    invisible = [c for c in text if not c.isprintable() and c not in "\n\N{NO-BREAK SPACE}"]
    assert not invisible
    tokens = tokens_of(text)
    assert not [t for t in tokens if t.type == "html_inline"]
    assert {t.content for t in tokens if t.type == "html_block"} <= FOLDS
    assert all(LINKS.fullmatch(str(t.attrGet("href"))) for t in tokens if t.type == "link_open")
    assert [t.attrGet("src") for t in tokens if t.type == "image"] == ["figures/energy.png"]
    assert not [t for t in tokens if t.type == "text" and re.search(r"https?:|www\.|@", t.content)], "autolinks"
    headings = [after.content for t, after in zip(tokens, tokens[1:], strict=False) if t.type == "heading_open"]
    assert headings == HEADINGS
    assert text.count("$$") == 2 + block(text, "yaml").count("$$")
    assert "\\\\(" not in text.replace(block(text, "yaml"), "")
    rows = table(text, "What was merged")
    assert [row[0] for row in rows] == ["#", "1", "2", "3", "4"]
    assert [row[5] for row in rows] == ["Distance", "0.100", "0.200", "0.300", "0.400"]
    assert yaml.safe_load(block(text, "yaml")) == record.recipe
    metadata = metadata_of(text)
    assert metadata == front_matter(record, repo="user/merged")
    assert set(metadata) <= {
        "license",
        "license_name",
        "license_link",
        "language",
        "library_name",
        "pipeline_tag",
        "base_model",
        "base_model_relation",
        "datasets",
        "tags",
    }
    assert set(metadata["datasets"]) - {"user/good"} <= {value}
    for name in (*metadata["datasets"], *metadata["base_model"]):
        assert re.fullmatch(r"[A-Za-z0-9_./-]+", name)
    assert metadata.get("license") in HUB_LICENSES | {None}


def check_harmless_results(value: str) -> None:
    record = make_record((hub_source("a/x", MIT), hub_source("b/y", MIT)), cfg=TINY, method="average")
    text = render_card(record, repo="user/merged", results=poisoned_results(record, value))
    text.encode()
    assert not [c for c in text if not c.isprintable() and c not in "\n\N{NO-BREAK SPACE}"]
    tokens = tokens_of(text)
    assert not [t for t in tokens if t.type == "html_inline"]
    assert {t.content for t in tokens if t.type == "html_block"} <= FOLDS
    assert all(LINKS.fullmatch(str(t.attrGet("href"))) for t in tokens if t.type == "link_open")
    assert [t.attrGet("src") for t in tokens if t.type == "image"] == ["figures/accuracy.png"]
    assert not [t for t in tokens if t.type == "text" and re.search(r"https?:|www\.|@[^ ]", t.content)], "autolinks"
    headings = [after.content for t, after in zip(tokens, tokens[1:], strict=False) if t.type == "heading_open"]
    plain = render_card(record, repo="user/merged")
    expected = [after.content for t, after in zip(tokens_of(plain), tokens_of(plain)[1:], strict=False)
                if t.type == "heading_open"]  # fmt: skip
    assert [heading for heading in headings if heading != "Accuracy"] == expected and len(headings) == len(expected) + 1
    assert body_of(text).count("$$") == body_of(plain).count("$$")
    rows = table(text, "Accuracy")
    references = ["50.0†", "50.0†"]
    images = ["3", "3", "3 of 9", ""]
    assert [row[3:] for row in rows[1:]] == [[*references, count] for count in images]
    metadata = metadata_of(text)
    (model,) = metadata.pop("model-index")
    assert metadata == metadata_of(plain)
    (result,) = model["results"]
    assert result["dataset"]["type"] == "user/good" and set(result) == {"task", "dataset", "metrics", "source"}
    assert all(isinstance(field, str) and field and field.isprintable() for field in result["dataset"].values())


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_values(value):
    check_harmless(value)
    check_harmless_results(value)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(st.characters(), max_size=40) | st.text("`|\\<>[]()!$-_*#~:/.@&\n\r a1", max_size=40))
def test_any_value(value):
    check_harmless(value)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.text(st.characters(), max_size=40) | st.text("`|\\<>[]()!$-_*#~:/.@&\n\r a1", max_size=40))
def test_any_value_in_results(value):
    check_harmless_results(value)


def test_our_own_words_keep_their_meaning():
    words = r"Σ_t *not bold* `no code` <b>no tag</b> [no](link) a|b \ ~~x~~ $$y$$ &amp;"
    rendered = MarkdownIt("commonmark").enable("table").parse(markdown.text(words))[1].children
    assert "".join(t.content for t in rendered) == words
    assert {t.type for t in rendered} <= {"text", "text_special"}


def test_formulas_stay_formulas():
    record = make_record()
    odd = dataclasses.replace(record.method, formula=r"k <\rank $$ <b>x</b>")
    text = render_card(dataclasses.replace(record, method=odd))
    assert "$$\nk \\lt \\rank  \\lt b>x\\lt /b>\n$$\n" in text
    assert f"$$\n{record.method.formula}\n$$\n" in render_card(record)


def test_fences_outlast_what_they_hold():
    held = "a\n```\n# b\n`````\n"
    tokens = MarkdownIt("commonmark").parse(markdown.fence(held, "yaml"))
    assert [(t.type, t.info, t.content) for t in tokens] == [("fence", "yaml", held)]


# The Hub takes it

VALIDATE = """
import json, sys
from pathlib import Path
from huggingface_hub import ModelCard
for file in sorted(Path(sys.argv[1]).iterdir()):
    try:
        ModelCard(file.read_bytes().decode()).validate()
    except ValueError as error:
        print(file.name, str(error).replace("\\n", " "))
"""


def validate(cards: dict[str, str], folder: Path) -> dict[str, str]:
    """Names of the cards that the Hub refuses, and what it says, by the real client."""
    (folder / "cards").mkdir(parents=True)
    for name, text in cards.items():
        (folder / "cards" / name).write_bytes(text.encode())
    with EmbeddedHub(folder / "hub") as hub:
        out = run(
            VALIDATE,
            str(folder / "cards"),
            HF_ENDPOINT=hub.url,
            HF_HOME=str(folder / "home"),
            HF_HUB_DISABLE_XET="1",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
        assert sum(request.path == "/api/validate-yaml" for request in hub.requests) == len(cards)
    return dict(line.split(" ", 1) for line in out.splitlines())


def test_the_hub_takes_our_cards(tmp_path):
    good = {
        "common": make_record(),
        "local": make_record((local_source("x"), local_source("y"))),
        "mixed": make_record((hub_source("a/x", MIT), hub_source("b/y", APACHE))),
        "own": make_record((hub_source("a/x", CardFacts("other", "Böse *Lizenz* v1.+", "LICENSE")),)),
        "languages": make_record((hub_source("a/x", CardFacts(languages=("en", "no", "zh-Hant", "multilingual"))),)),
    }
    cards = {name: render_card(record, repo="user/merged") for name, record in good.items()}
    cards |= {f"{name}-alone": render_card(record) for name, record in good.items()}
    cards |= {f"{n}-results": render_card(r, results=make_results(r)) for n, r in good.items()}
    for name in sorted(HUB_LICENSES):
        cards[f"license-{name}"] = render_card(make_record((hub_source("a/x", CardFacts(name)),), cfg=TINY))
    for i, value in enumerate(HOSTILE):
        cards[f"hostile-{i}"] = render_card(poisoned(value), repo="user/merged")
        record = make_record(cfg=TINY)
        cards[f"hostile-results-{i}"] = render_card(record, results=poisoned_results(record, value))
    assert validate(cards, tmp_path) == {}


def test_the_hub_refuses_bad_cards(tmp_path):
    text = render_card(make_record((hub_source("a/x", MIT), hub_source("b/y", MIT))), repo="user/merged")

    def with_field(**fields: object) -> str:
        return "---\n" + yaml.safe_dump({**metadata_of(text), **fields}) + "---" + body_of(text)

    # What the client lets through, and the Hub does not: a result without a value.
    result = {"task": {"type": "t"}, "dataset": {"type": "d", "name": "D"}, "metrics": [{"type": "a", "value": None}]}
    bad = {
        "license": with_field(license="no-such-license"),
        "base_model": with_field(base_model=["not a repo id!"]),
        "path": with_field(base_model=["/home/me/tower"]),
        "relation": with_field(base_model_relation="blend"),
        "language": with_field(language=["English"]),
        "model-index": with_field(**{"model-index": [{"name": "merged", "results": [result]}]}),
    }
    refused = validate({**bad, "good": with_field()}, tmp_path)
    assert set(refused) == set(bad)
    for name, what in {
        "license": "license",
        "base_model": "base_model",
        "path": "base_model",
        "relation": "base_model_relation",
        "language": "language",
        "model-index": "model-index",
    }.items():
        assert what in refused[name]


@pytest.mark.parametrize("method", list(METHODS))
def test_every_symbol_of_the_formula_is_told(method: str) -> None:
    """The formula's letters are the paper's: which option each one is, and which tensors get what, stands under it."""
    used = METHODS[method]
    text = render_card(make_record(method=method, base=hub_source("b/y", APACHE) if used.needs_base else None))
    if used.parameter("scale"):
        factor = "α" if r"\alpha" in used.formula else "λ"
        assert f"| `scale`, {factor} |" in text
    if method == "consensus":
        assert (
            "| `threshold`, λ |" in text
            and "| `agree`, k |" in text
            and "hfcart's defaults, 0.4 and 0.3, are its own" in text
        )
    if method in ("dare", "della"):
        assert "| `density`, 1 − p |" in text
    alike = "Every tensor gets" in text and "every other tensor" not in text
    assert alike is used.alike
    assert "\n\n\n" not in text
