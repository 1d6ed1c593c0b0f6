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
                    "parameters": {p.name: {"default": p.default, "help": p.help} for p in m.parameters},
                    "arxiv": m.arxiv,
                }
                for m in METHODS.values()
            ]
            output.data(json_module.dumps(listed, indent=2, ensure_ascii=False) + "\n")
            return
        rows = [
            (
                m.name,
                "base model" if m.needs_base else "towers only",
                ", ".join(f"--{p.name} {p.default}" for p in m.parameters) or "none",
                f"arXiv {m.arxiv}",
                m.summary,
            )
            for m in METHODS.values()
        ]
        output.table(["method", "needs", "parameters", "paper", "what it does"], rows)
