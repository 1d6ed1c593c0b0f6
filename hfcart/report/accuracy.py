"""Accuracy of an evaluation: of a task, over tasks, with its interval. Pure arithmetic on the records."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hfcart.records import EvalRecord, FinetuneRecord, Look, MergeRecord, Reference, TaskResult, Validation
from hfcart.records.adapters import is_adapter_file

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution: both sides together leave out 5 %


@dataclass(frozen=True)
class Mean:
    """A mean over tasks, and what it rests on.

    Attributes:
        value: the mean; None if no task has the figure.
        tasks: how many tasks it is over.
        published: in how many of them the other tower's figure is a published one, not measured by the run.
    """

    value: float | None
    tasks: int
    published: int = 0


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, J. Am. Stat. Assoc. 22, 1927), which holds near 0 and 1 as well.

    Args:
        correct: successes, 0 to n.
        n: trials, 0 or more.

    Returns:
        (low, high) in [0, 1]; (0, 1) for n = 0, where nothing is known.

    Raises:
        ValueError: counts that cannot be.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} are no counts")
    if n == 0:
        return 0.0, 1.0
    share, spread = correct / n, _Z * _Z / n
    centre = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # At the ends the formula gives 0 and 1, and rounding may miss them by a bit.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == n else centre + half)


def mean_interval(counts: Iterable[tuple[int, int]]) -> tuple[float, float]:
    """The 95 % interval of a mean of independent shares, from Wilson's of each (Zou and Donner, Stat. Med. 27, 2008).

    Args:
        counts: successes and trials of each, at least one pair; of a single pair it is Wilson's own interval.

    Returns:
        (low, high) in [0, 1].
    """
    shares = [(c / n if n else 0.5, *wilson(c, n)) for c, n in counts]
    mean = math.fsum(share for share, _, _ in shares) / len(shares)
    below = math.hypot(*(share - low for share, low, _ in shares)) / len(shares)
    above = math.hypot(*(high - share for share, _, high in shares)) / len(shares)
    return mean - below, mean + above


def look_interval(validation: Validation, look: Look) -> tuple[float, float]:
    """The 95 % interval of a look's mean accuracy, in [0, 1]."""
    return mean_interval(zip(look.correct, validation.images, strict=True))


def described(validation: Validation, look: Look) -> str:
    """A look's mean accuracy with its 95 % interval, for people: "88.1 % (86.6 to 89.5)"."""
    low, high = look_interval(validation, look)
    return f"{100 * validation.accuracy(look):.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def accuracy(result: TaskResult) -> float | None:
    """Top-1 accuracy in [0, 1]; None if no image was scored."""
    return result.correct / result.n if result.n else None


def mean_accuracy(results: Iterable[TaskResult]) -> Mean:
    """Mean of the tasks' accuracies, each task counting once however many images it has."""
    values = [value for result in results if (value := accuracy(result)) is not None]
    return Mean(_mean(values), len(values))


def mean_reference(references: Iterable[Reference | None]) -> Mean:
    """Mean of other towers' accuracies, over the tasks where there is one."""
    known = [reference for reference in references if reference is not None]
    published = sum(not reference.measured for reference in known)
    return Mean(_mean([reference.accuracy for reference in known]), len(known), published)


def normalised(results: Iterable[TaskResult]) -> Mean:
    """Mean of accuracy / accuracy of the task's own individual tower, over the tasks where both are known.

    1 means as good as one tower a task. `published` tells how many of the individual towers' accuracies were
    not measured on these images: a mean of both kinds must say so.
    """
    pairs = [
        (value / result.individual.accuracy, result.individual.measured)
        for result in results
        if (value := accuracy(result)) is not None and result.individual is not None and result.individual.accuracy > 0
    ]
    return Mean(_mean([ratio for ratio, _ in pairs]), len(pairs), sum(not measured for _, measured in pairs))


def has_chart(results: Sequence[TaskResult]) -> bool:
    """Whether there are two bars or more to set beside each other."""
    values = [(accuracy(r), r.adapter, r.pretrained, r.average, r.individual) for r in results]
    return sum(value is not None for row in values for value in row) > 1


def whole_test_split(result: TaskResult) -> bool:
    """Whether this is a result to report as the tower's: all of the test split, no sample, no validation part."""
    return result.part == "test" and not result.partial and result.n > 0


def weights_sha256(digests: Sequence[str]) -> str:
    """Digest of the weight files' digests (64 hex digits each, in name order), as in SourceRecord.sha256."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def weights_of(record: MergeRecord | FinetuneRecord) -> str | None:
    """Digest of the weights that a record's folder was written with; None if it names none."""
    files = sorted(record.files.items())
    weights = [sha256 for name, sha256 in files if name.endswith(".safetensors") and not is_adapter_file(name)]
    return weights_sha256(weights) if weights else None


def belongs(results: EvalRecord, record: MergeRecord | FinetuneRecord) -> bool:
    """Whether the results were measured with the very weights that this record's folder was written with."""
    return results.weights_sha256 == weights_of(record)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
