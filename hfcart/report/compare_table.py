"""CompareRecord -> the table of a comparison, for a terminal and as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hfcart.formats import markdown
from hfcart.quoting import plural
from hfcart.records import CompareRecord, CompareRow
from hfcart.report.paired_test import HOW, LEVEL, MARKS, mark, verdict


def columns(record: CompareRecord) -> list[str]:
    """Headings of the table."""
    return ["method", "needs", "average", "normalised", *(title for _, title in record.tasks), "merge s", "peak GB"]


def cells(record: CompareRecord, row: CompareRow) -> tuple[str, ...]:
    """One line of it: accuracies in per cent, "–" for what is not known."""

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f}"

    return (
        row.name,
        row.needs or "–",
        "failed" if row.error else percent(record.average(row)) + marked(record, row),
        percent(record.normalised(row)),
        *map(percent, record.accuracies(row)),
        "–" if row.seconds is None else f"{row.seconds:.1f}",
        "–" if row.peak is None else f"{row.peak / 1e9:.2f}",
    )


def marked(record: CompareRecord, row: CompareRow) -> str:
    """The mark behind a merge's mean; none on test images, which are no ground to choose by."""
    if record.part == "test" or len(record.merges) < 2:
        return ""
    return mark(row.p, best=row is record.best, stands_out=all(o.p < LEVEL for o in record.merges if o.p is not None))


def evidence(record: CompareRecord) -> list[str]:
    """What the images say of the methods, in sentences; none of fewer than two."""
    best = record.best
    said = best and verdict(best.name, [(row.name, row.p) for row in record.merges if row.p is not None],
                            sum(record.images), record.part)  # fmt: skip
    if not best or not said:
        return []
    rivals = [best, *(row for row in record.merges if row.p is not None and row.p >= LEVEL)]
    fastest = min(rivals, key=lambda row: row.seconds or 0.0)
    if fastest is not best and record.part != "test":
        said += f" Of {'these' if len(rivals) > 2 else 'the two'}, {fastest.name} took the least time."
    return [said, HOW]


def bars(record: CompareRecord) -> list[tuple[float, CompareRow]]:
    """Mean accuracy in [0, 1] and row of all that was measured on every task, the best first."""
    known = [(value, row) for row in record.rows if (value := record.average(row)) is not None]
    return sorted(known, key=lambda pair: -pair[0])


def explain(record: CompareRecord) -> str:
    """What the numbers of the table are."""
    tasks = plural(len(record.tasks), "task")
    sample = f", a sample of at most {record.limit:,} a task" if record.limit else ""
    text = (
        f"Top-1 accuracy in % on {sum(record.images):,} {record.part} images of {tasks}{sample}; every method with its "
        "default parameters. "
    )
    if record.processes > 1:
        text += (
            f"Time and peak memory are those of each merge in a process of its own; up to {record.processes} ran at "
            "once, and one that runs alone takes less time."
        )
    else:
        text += "Time and peak memory are those of the merge alone, in a process of its own."
    if record.normalised(record.rows[-1]) is not None:
        text += " Normalised: mean share in % of what each task's own tower reaches."
    return f"{text} {MARKS}" if any(marked(record, row) for row in record.merges) else text


def as_markdown(record: CompareRecord) -> str:
    """The table as Markdown, with the settings below it."""

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(row) + " |"

    heads = [markdown.words(head) for head in columns(record)]
    rows = [(markdown.code(name), *rest) for name, *rest in (cells(record, row) for row in record.rows)]
    marks = ["---", "---", *["--:"] * (len(heads) - 2)]
    sources = [markdown.code(label + (f"@{commit}" if commit else ""), 200) for label, commit in record.sources]
    parts = [
        "# Comparison of merge methods",
        f"{plural(len(sources), 'tower')}, base {markdown.code(record.base)}, {record.precision}.",
        "\n".join([line(heads), line(marks), *(line([cell.replace("*", r"\*") for cell in row]) for row in rows)]),
        *([markdown.text(" ".join(said))] if (said := evidence(record)) else []),
        markdown.text(explain(record)),
        *(["![Average accuracy of each method](figures/compare.png)"] if len(bars(record)) > 1 else []),
        "## Settings",
        "\n".join(f"- {markdown.code(row.name)}: {_stated(row)}" for row in record.rows if row.needs),
        "## Sources",
        "\n".join(f"- {source}" for source in sources),
    ]
    if errors := [f"- {markdown.code(row.name)}: {markdown.text(row.error)}" for row in record.rows if row.error]:
        parts += ["## Failed", "\n".join(errors)]
    return "\n\n".join(parts) + "\n"


def _stated(row: CompareRow) -> str:
    return markdown.text(", ".join(f"{name} {value}" for name, value in row.parameters.items()) or "no parameters")
