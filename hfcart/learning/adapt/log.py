"""What each step of an adaptation saw, as the CSV file beside the tower."""

from __future__ import annotations

from collections.abc import Sequence

from hfcart.records import MergeRecord

LOG = "results/adaptation.csv"


def adaptation_log(record: MergeRecord, history: Sequence[Sequence[float]]) -> bytes:
    """An adaptation as CSV, a row for each step of its history; entropies are in nats."""
    if record.adaptation is None:
        return b""
    names = [f"entropy of {task.task}" for task in record.adaptation.tasks]
    names += [f"mean coefficient of tower {i + 1}" for i in range(len(record.sources))]
    if record.adaptation.rank is not None:
        names += [f"share of directions of tower {i + 1}" for i in range(len(record.sources))]
    names += [f"agreement on {task.task}" for task in record.adaptation.tasks if task.first_agreement is not None]
    lines = [",".join(["step", *names])]
    lines += [",".join([str(step + 1), *(f"{value:.8g}" for value in row)]) for step, row in enumerate(history)]
    return ("\n".join(lines) + "\n").encode()
