"""`hfcart methods`."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from hfcart.cli._shared.output import Output, reporting
from hfcart.methods import ADAPTING, ADAPTIVE, BROKEN, METHODS, Adaptive, Chosen, Method, Parameter, method_of
from hfcart.names import key, spelled

_NUMBERS_OF = (
    "published: mean accuracy over the eight tasks of CART's paper in per cent, ViT-B/32 / ViT-L/14. They are for "
    "OpenCLIP's fine-tuned towers: the Hub's give others. Compare only what you measured yourself."
)


def methods(
    name: Annotated[str | None, typer.Argument(metavar="METHOD", help="One method, with all there is to know.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the list, or the one, as JSON.")] = False,
) -> None:
    """List the merge methods: what they do, what they need, their parameters and papers.

    Examples:
        hfcart methods
        hfcart methods ties
    """
    with reporting() as output:
        one = None if name is None or key(name) == "list" else _named(name)
        if json:
            found: Any = _as_json(one) if one else [_as_json(m) for m in METHODS.values()]
            output.data(json_module.dumps(found, indent=2, ensure_ascii=False) + "\n")
        elif one:
            _show_one(one, output)
        else:
            _show_all(output)
        for broken in BROKEN.values():
            output.warn(f"{broken}.")


def _named(name: str) -> Method:
    adaptive = spelled(name, ADAPTIVE)
    return METHODS[ADAPTIVE[adaptive]] if adaptive else method_of(name)


def _as_json(m: Method) -> dict[str, Any]:
    return {
        "name": m.name,
        "title": m.title,
        "summary": m.summary,
        "formula": m.formula,
        "matrices": m.matrices,
        "others": m.others,
        "needs": m.needs,
        "needs_base": m.needs_base,
        "lines": m.task_vectors,
        "svc": m.task_vectors,
        "all_2d": m.any_matrix,
        "parameters": {
            p.name: {"default": p.default, "help": p.help} | ({"choices": p.choices} if p.choices else {})
            for p in m.parameters
        },
        "arxiv": m.arxiv,
        "package": m.package or None,
        "published": {"vit-b-32": m.published[0], "vit-l-14": m.published[1]},
        "note": m.note,
        "adaptive": _adaptive(m.adaptive) if m.adaptive else None,
        "ranked": _adaptive(m.adaptive.ranked) if m.adaptive and m.adaptive.ranked else None,
        "chosen": {m.chosen.parameter: sorted(m.chosen.candidates)} if m.chosen else None,
    }


def _adaptive(a: Adaptive) -> dict[str, Any]:
    return {
        "name": a.name,
        "title": a.title,
        "formula": a.formula,
        "parameters": {p.name: {"default": p.default, "help": p.help} for p in ADAPTING},
        "start": a.start,
        "rank": a.rank,
        "clamped": a.clamped,
        "batches": a.rounds,
        "arxiv": a.arxiv,
        "published": {"vit-b-32": a.published[0], "vit-l-14": a.published[1]},
        "note": a.note,
    }


def _show_all(output: Output) -> None:
    rows = []
    for m in METHODS.values():
        rows.append((m.name, m.needs, _options(m.parameters), _figures(m.published), f"arXiv {m.arxiv}", m.summary))
        if a := m.adaptive:
            own = f"--method {m.name}\n--adapt NAMES\n"
            learned = f"{m.name} with coefficients learned on unlabelled images."
            needs = f"{m.needs}, images"
            rows.append((a.name, needs, own + _options(ADAPTING), _figures(a.published), f"arXiv {a.arxiv}", learned))
        if a and (r := a.ranked):
            own += "--adapt-ranks RANK\n" + (f"--rank {r.rank}\n" if "rank" in r.replaces else "")
            learned = learned.replace("coefficients", "coefficients and singular directions")
            rows.append((r.name, needs, own + _options(ADAPTING), _figures(r.published), f"arXiv {r.arxiv}", learned))
    output.table(["method", "needs", "parameters", "published", "paper", "what it does"], rows)
    output.result()
    output.result(_NUMBERS_OF)
    for m in METHODS.values():
        for each in (m, m.adaptive, m.adaptive and m.adaptive.ranked):
            if each and each.note:
                output.result(f"{each.name}: {each.note}")
    output.result(
        "--lines BETA and --svc ALPHA go with " + ", ".join(m.name for m in METHODS.values() if m.task_vectors) + "."
    )
    output.result("--matrices all-2d goes with " + ", ".join(m.name for m in METHODS.values() if m.any_matrix) + ".")
    output.result("All about one of them: hfcart methods NAME")


def _show_one(m: Method, output: Output) -> None:
    """One method in full: what its card will say of it, its parameters and their ranges."""
    output.result(m.title)
    output.result()
    options = [
        ("--lines BETA", m.task_vectors),
        ("--svc ALPHA", m.task_vectors),
        ("--matrices all-2d", m.any_matrix),
        ("--adapt NAMES", m.adaptive),
        ("--adapt-ranks RANK", m.adaptive and m.adaptive.ranked),
    ]
    tensors = [("every tensor gets", m.matrices)]
    if not m.alike:
        tensors = [("attention and MLP weights get", m.matrices), ("every other tensor gets", m.others)]
    facts = [
        ("needs", m.needs),
        *tensors,
        ("formula", m.formula),
        (
            "goes with",
            ", ".join(option for option, taken in options if taken) or "none of --lines, --svc, --matrices, --adapt",
        ),
        ("published", _figures(m.published) or "no figure for those towers and tasks"),
        *([("note", m.note)] if m.note else []),
        *((option, ", ".join(filter(None, (a.title, _figures(a.published))))) for option, a in _learned(m)),
        *([("with --tasks", _chosen(m.chosen))] if m.chosen else []),
        ("paper", f"https://arxiv.org/abs/{m.arxiv}"),
        *([("brought by", m.package)] if m.package else []),
    ]
    output.table(["method", m.name], facts)
    if m.parameters:
        output.result()
        shown = [(p.option, "" if p.default is None else str(p.default), _values(p), p.help) for p in m.parameters]
        output.table(["parameter", "default", "takes", "meaning"], shown)
    output.result()
    output.result(m.citation)
    if any(m.published):
        output.result()
        output.result(_NUMBERS_OF)


def _learned(m: Method) -> Iterator[tuple[str, Adaptive]]:
    """What the method becomes by which options."""
    if m.adaptive:
        yield "with --adapt", m.adaptive
        if m.adaptive.ranked:
            yield "and --adapt-ranks", m.adaptive.ranked


def _chosen(c: Chosen) -> str:
    values = ", ".join(f"{value:g}" for value in sorted(c.candidates))
    return f"each source's {c.parameter} is chosen from {values} on labelled validation images of its own task"


def _options(parameters: Sequence[Parameter]) -> str:
    return "\n".join(p.option + ("" if p.default is None else f" {p.default}") for p in parameters) or "none"


def _figures(published: tuple[float | None, float | None]) -> str:
    return " / ".join("–" if f is None else f"{f:.1f}" for f in published) if any(published) else ""


def _values(p: Parameter) -> str:
    """What a parameter takes, in a few words: a choice, or a range."""
    if p.choices:
        return " or ".join(p.choices)
    kind = {"rank": "a share or a whole number", "whole": "a whole number", "numbers": "one for each source"}
    kind["each"] = "a number, or one for each source"
    bounds = [("at least", p.least), ("above", p.above), ("at most", p.most)]
    limits = [f"{word} {bound:.6g}" for word, bound in bounds if bound is not None]
    return ", ".join([kind.get(p.kind, "a number"), *limits])
