"""The parts of the documentation that follow from declarations: `make docs` writes them, `make lint` checks them.

python -m hfcart.cli._reference [--check], in a checkout.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from hfcart.cli import app
from hfcart.cli._shared.python_reference import python_documents
from hfcart.methods import METHODS, Method

README, REFERENCE = Path("README.md"), Path(".github/REFERENCE.md")
_BEGIN, _END = "<!-- methods: made by `make docs` -->", "<!-- end of methods -->"


def methods_table() -> str:
    """The README's table of hfcart's own methods."""
    rows = ["| method | what it does | the rest gets | needs |", "|---|---|---|---|"]
    for m in METHODS.values():
        if not m.package:
            rest = "the same" if m.alike else m.others
            rows.append(f"| `{m.name}` | {m.summary.removesuffix('.')} ({_paper(m)}) | {rest} | {m.needs} |")
    return "\n".join(rows)


def reference() -> str:
    """Every command with all its options, and every parameter of the methods."""
    root: Any = typer.main.get_command(app)
    parts = ["# Reference", "", "Made from the declarations in the code by `make docs`.", ""]
    for name, command in sorted(_commands(root, "hfcart"), key=lambda found: found[0]):
        parts += [f"## `{name}`", "", _sentences(command.help), ""]
        if command.examples:
            parts += ["```bash", _sentences(command.examples), "```", ""]
        rows = [row for parameter in command.params if (row := _row(parameter))]
        if rows:
            parts += ["| option | meaning | default |", "|---|---|---|", *rows, ""]
    parts += ["## Parameters of the methods", "", "| parameter | of | default | meaning |", "|---|---|---|---|"]
    for m in METHODS.values():
        for p in m.parameters if not m.package else ():
            default = "" if p.default is None else f"{p.default}"
            parts.append(f"| `{p.option}` | `{m.name}` | {default} | {_cell(p.help)} |")
    return "\n".join([*parts, ""])


def documents(readme: str) -> dict[Path, str]:
    """What every generated file must hold; those that are made in part, around the rest of them."""
    before, _, rest = readme.partition(_BEGIN)
    after = rest.partition(_END)[2]
    table = f"{before}{_BEGIN}\n{methods_table()}\n{_END}{after}"
    return {README: table, REFERENCE: reference(), **python_documents()}


def _commands(group: Any, name: str) -> list[tuple[str, Any]]:  # noqa: ANN401 (Typer's own classes are not public)
    found = []
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            found += _commands(command, f"{name} {word}")
        found.append((f"{name} {word}", command))
    return found


def _row(parameter: Any) -> str | None:  # noqa: ANN401 (Typer's classes)
    written = (
        ", ".join(f"`{option}`" for option in parameter.opts if option.startswith("-")) or f"`{parameter.metavar}`"
    )
    if parameter.name == "help" or parameter.hidden or not getattr(parameter, "help", None):
        return None
    meaning, _, default = parameter.help.partition(" Default: ")
    more = getattr(parameter, "more", "")
    return f"| {written} | {_cell(f'{meaning} {more}'.strip())} | {_cell(default.removesuffix('.'))} |"


def _paper(m: Method) -> str:
    return f"[{m.arxiv}](https://arxiv.org/abs/{m.arxiv})"


def _sentences(text: str | None) -> str:
    return "\n".join(line.strip() for line in (text or "").splitlines()).strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def main() -> None:
    """Write what differs, or with --check say which files do and exit with 1."""
    wanted = documents(README.read_text(encoding="utf-8"))
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        if stale:
            sys.exit(f"{', '.join(map(str, stale))}: not what the declarations say. Run: make docs")
        return
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")


if __name__ == "__main__":
    main()
