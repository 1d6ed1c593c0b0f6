"""The card as a reader sees it: rendered in a real browser, in a column as wide as the Hub's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from browser import tab
from card_page import COLUMN, write_page
from records import HOSTILE, hub_source, make_record, make_result, make_results, poisoned, poisoned_results, published

from hfcart.records import AdaptationRecord, AdaptedTask, DatasetRecord, EvalRecord, MergeRecord, Reference
from hfcart.report.merge_card import render_card
from hfcart.report.plots import draw_accuracy, draw_figures

SEEN = """() => ({
    wide: document.documentElement.scrollWidth,
    right: Math.max(...[...document.querySelectorAll('main *')].filter(e => !e.closest('table, pre'))
        .map(e => e.getBoundingClientRect().right)),
    broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src),
    shown: [...document.images].map(i => [i.getAttribute('src'), i.alt, i.clientWidth]),
    open: [...document.querySelectorAll('details')].filter(d => d.open).length,
    folded: [...document.querySelectorAll('summary')].map(s => s.innerText),
    inside: [...document.querySelectorAll('details')].map(d => d.querySelectorAll('table, pre').length),
    heads: [...document.querySelectorAll('table')].map(t => [...t.querySelectorAll('th')].map(h => h.innerText)),
    ragged: [...document.querySelectorAll('table')].filter(t =>
        [...t.rows].some(r => r.cells.length != t.rows[0].cells.length)).length,
    text: document.querySelector('main').innerText,
    prose: [...document.querySelectorAll('h1, h2, h3, p, li, td, th, summary')].map(e => {
        const c = e.cloneNode(true); c.querySelectorAll('code, pre, i').forEach(x => x.remove()); return c.textContent
    }).join('\\n'),
})"""


def long_names(count: int) -> tuple:
    names = [
        f"a-laboratory-with-a-name/clip-vit-base-patch32-finetuned-on-task-{i:02}-with-a-long-name"
        for i in range(count)
    ]
    facts = dataclasses.replace(hub_source("a/b").facts, datasets=("another-laboratory/a-data-set-of-images",))
    return tuple(hub_source(name, facts) for name in names)


def measured(record: MergeRecord, count: int) -> EvalRecord:
    results = [
        make_result(
            f"task-{i}",
            title=f"A task with a long title {i}",
            pretrained=published(0.4),
            average=Reference("average", 0.5, measured=True),
            individual=published(0.9),
        )
        for i in range(count)
    ]
    return make_results(record, *results)


def adapted() -> tuple[MergeRecord, list[list[float]]]:
    record = make_record()
    data = DatasetRecord("user/images", None, "train", "5" * 40)
    tasks = [AdaptedTask(f"t{i}", f"Task {i}", data, 900, 0, "0" * 64, 1.9, 0.4) for i in range(8)]
    fields = dict(name="cart++", per="tensor", part="train", base="user/clip", base_commit="1" * 40)  # noqa: C408
    numbers = dict(start=1.0, clamped=False, steps=100, lr=1e-3, batch_size=16, rounds=1, seed=0)  # noqa: C408
    learned = AdaptationRecord(tasks=tuple(tasks), precision="float32", processes=1, **fields, **numbers)
    coefficients = {t.name: [0.8 + 0.05 * i for i in range(8)] for t in record.tensors if t.rank}
    recipe = {**record.recipe, "coefficients": coefficients}
    return dataclasses.replace(record, adaptation=learned, recipe=recipe), [[1.9 - 0.01 * s] * 8 for s in range(100)]


def cases() -> dict[str, tuple[MergeRecord, EvalRecord | None, list[list[float]]]]:
    plain, many = make_record(), make_record(long_names(20))
    return {
        "without results": (plain, None, []),
        "with results": (plain, measured(plain, 8), []),
        "twenty long names": (many, measured(many, 20), []),
        "adapted": (adapted()[0], None, adapted()[1]),
    }


@pytest.mark.parametrize("case", list(cases()))
def test_what_a_reader_sees(browser, tmp_path: Path, case: str) -> None:
    record, results, history = cases()[case]
    figures = draw_figures(record, tmp_path, history)
    figures += [draw_accuracy(results, tmp_path)] if results else []
    page_file = write_page(render_card(record, repo="user/merged", results=results), tmp_path)
    with tab(browser) as (page, elsewhere):
        page.goto(page_file.as_uri())
        seen = page.evaluate(SEEN)
        assert seen["open"] == 0 and len(seen["folded"]) == 4 + bool(results)
        assert {"The recipe", "Versions and hashes", "What each tensor got"} <= set(seen["folded"])
        assert all(seen["inside"]), "a table or a block of code in each fold, none left as text"
        # Nothing sticks out, folded or not, on a telephone neither: what is too wide scrolls within itself.
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        for width in (420, 1100):
            page.set_viewport_size({"width": width, "height": 800})
            seen = page.evaluate(SEEN)
            assert seen["wide"] <= width and seen["right"] <= width
            assert all(shown <= min(COLUMN, width) for _, _, shown in seen["shown"])
    assert elsewhere == [] and seen["broken"] == []
    assert sorted(src for src, _, _ in seen["shown"]) == sorted(figures)
    assert all(alt and alt.endswith(".") for _, alt, _ in seen["shown"])
    assert seen["ragged"] == 0
    for rest in ("{{", "{%", "**", "](", "| ", "<details", "<summary", "</", "```", "None", "\\*"):
        assert rest not in seen["prose"].replace("None of the towers", ""), rest
    assert ["Setting", "Value", "How it was chosen"] in seen["heads"]
    if results:
        heads = ["Task", "Accuracy", "95% interval", "Pretrained", "Average", "Individual", "Images"]
        assert heads in seen["heads"]


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_only_text(browser, tmp_path: Path, value: str) -> None:
    """Whatever strangers wrote: no script, no picture, no link and no request of theirs."""
    plain = make_record()
    cards = [render_card(poisoned(value), repo="user/merged")]
    cards += [render_card(plain, repo="user/merged", results=poisoned_results(plain, value))]
    with tab(browser) as (page, elsewhere):
        for text in cards:
            page.goto(write_page(text, tmp_path).as_uri())
            kinds = page.evaluate("[...new Set([...document.querySelectorAll('main *')].map(e => e.tagName))]")
            links = page.evaluate("[...document.links].map(a => a.href)")
            assert not {"SCRIPT", "IFRAME", "FORM", "INPUT", "OBJECT", "STYLE", "B"} & set(kinds)
            known = ("https://huggingface.co/", "https://arxiv.org/", "https://pypi.org/project/hfcart/", "file://")
            assert all(link.startswith(known) for link in links)
    assert elsewhere == []
