"""`hfcart methods`."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from hfcart.cli._output import reporting
from hfcart.methods import METHODS


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
                }
                for m in METHODS.values()
            ]
            output.data(json_module.dumps(listed, indent=2, ensure_ascii=False) + "\n")
            return
        rows = [
            (
                m.name,
                m.needs,
                "\n".join(p.option + ("" if p.default is None else f" {p.default}") for p in m.parameters) or "none",
                " / ".join("–" if figure is None else f"{figure:.1f}" for figure in m.published)
                if any(m.published)
                else "",
                f"arXiv {m.arxiv}",
                m.summary,
            )
            for m in METHODS.values()
        ]
        output.table(["method", "needs", "parameters", "published", "paper", "what it does"], rows)
        output.result()
        output.result(
            "published: mean accuracy over the eight tasks of CART's paper in per cent, ViT-B/32 / ViT-L/14. They are "
            "for OpenCLIP's fine-tuned towers: the Hub's give others. Compare only what you measured yourself."
        )
        for m in METHODS.values():
            if m.note:
                output.result(f"{m.name}: {m.note}")
        output.result("--lines BETA goes with " + ", ".join(m.name for m in METHODS.values() if m.task_vectors) + ".")
