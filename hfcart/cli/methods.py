"""`hfcart methods`."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from hfcart.cli._output import reporting
from hfcart.methods import ADAPTING, METHODS, Adaptive, Parameter


def methods(json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False) -> None:
    """List the merge methods: what they do, what they need, their parameters and papers."""
    with reporting() as output:
        if json:
            listed = [
                {
                    "name": m.name,
                    "title": m.title,
                    "summary": m.summary,
                    "formula": m.formula,
                    "needs_base": m.needs_base,
                    "lines": m.task_vectors,
                    "parameters": {
                        p.name: {"default": p.default, "help": p.help} | ({"choices": p.choices} if p.choices else {})
                        for p in m.parameters
                    },
                    "arxiv": m.arxiv,
                    "published": {"vit-b-32": m.published[0], "vit-l-14": m.published[1]},
                    "note": m.note,
                    "adaptive": _adaptive(m.adaptive) if m.adaptive else None,
                }
                for m in METHODS.values()
            ]
            output.data(json_module.dumps(listed, indent=2, ensure_ascii=False) + "\n")
            return
        rows = []
        for m in METHODS.values():
            rows.append((m.name, m.needs, _options(m.parameters), _figures(m.published), f"arXiv {m.arxiv}", m.summary))
            if a := m.adaptive:
                own = f"--method {m.name}\n--adapt NAMES\n"
                learned = f"{m.name} with coefficients learned on unlabelled images."
                needs = f"{m.needs}, images"
                rows.append(
                    (a.name, needs, own + _options(ADAPTING), _figures(a.published), f"arXiv {a.arxiv}", learned)
                )
        output.table(["method", "needs", "parameters", "published", "paper", "what it does"], rows)
        output.result()
        output.result(
            "published: mean accuracy over the eight tasks of CART's paper in per cent, ViT-B/32 / ViT-L/14. They are "
            "for OpenCLIP's fine-tuned towers: the Hub's give others. Compare only what you measured yourself."
        )
        for m in METHODS.values():
            for each in (m, m.adaptive):
                if each and each.note:
                    output.result(f"{each.name}: {each.note}")
        output.result("--lines BETA goes with " + ", ".join(m.name for m in METHODS.values() if m.task_vectors) + ".")


def _options(parameters: Sequence[Parameter]) -> str:
    return "\n".join(p.option + ("" if p.default is None else f" {p.default}") for p in parameters) or "none"


def _figures(published: tuple[float | None, float | None]) -> str:
    return " / ".join("–" if f is None else f"{f:.1f}" for f in published) if any(published) else ""


def _adaptive(a: Adaptive) -> dict[str, Any]:
    return {
        "name": a.name,
        "title": a.title,
        "formula": a.formula,
        "parameters": {p.name: {"default": p.default, "help": p.help} for p in ADAPTING},
        "start": a.start,
        "clamped": a.clamped,
        "batches": a.rounds,
        "arxiv": a.arxiv,
        "published": {"vit-b-32": a.published[0], "vit-l-14": a.published[1]},
        "note": a.note,
    }
