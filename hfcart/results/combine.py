"""Evaluations of the same weights put together, task by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hfcart.progress import Progress
from hfcart.records import EarlierResults, EvalRecord, TaskResult
from hfcart.report.accuracy import whole_test_split


@dataclass(frozen=True)
class Combined:
    """Results together with those that a place had of the same weights.

    Attributes:
        record: all of them.
        less: the tasks of which the new ones say less than the earlier ones, which stay.
        kept: the earlier results that stay.
    """

    record: EvalRecord
    less: Sequence[str]
    kept: Sequence[TaskResult]


def combined(
    earlier: EvalRecord | None, new: EvalRecord, where: str, progress: Progress, *, overwrite: bool
) -> Combined:
    """An evaluation with those tasks of an earlier one that it did not measure, or measured less of.

    A task that was measured again has the new result, unless that is of less than the earlier one: a sample does not
    replace a whole split, nor validation images the test split; that is said. What an earlier result was measured with
    goes along with it, where that is not what the new ones were.

    Args:
        earlier: what a place has already; of other weights it counts for nothing.
        new: what was measured now.
        where: the place, for what is said.
        progress: told which new results are left out.
        overwrite: let every new result replace the earlier one of its task.

    Returns:
        The earlier tasks in their order, then those that are new; `earlier` itself if nothing of it is replaced.
    """
    less = [] if overwrite else _lesser(earlier, new)
    if less:
        progress.warn(
            f"{where} has results of more than a sample for {', '.join(less)}: those stay. "
            "With --overwrite the new ones take their place."
        )
    measured = {result.task: result for result in new.results if result.task not in less}
    record = _together(earlier, new, measured)
    return Combined(record, less, [result for result in record.results if result.task not in measured])


def _together(earlier: EvalRecord | None, new: EvalRecord, measured: Mapping[str, TaskResult]) -> EvalRecord:
    """The earlier record with these of the new results."""
    if earlier is None or earlier.weights_sha256 != new.weights_sha256:
        return new
    if not measured:
        return earlier
    old = {result.task for result in earlier.results}
    results = [measured.get(result.task, result) for result in earlier.results]
    results += [result for name, result in measured.items() if name not in old]
    settings: dict[EarlierResults, list[str]] = {}
    for result in results:
        setting = _setting(new if result.task in measured else earlier, result.task)
        settings.setdefault(setting, []).append(result.task)
    settings.pop(_own(new), None)
    others = tuple(replace(setting, tasks=tuple(tasks)) for setting, tasks in settings.items())
    return replace(new, results=tuple(results), earlier=others)


def _lesser(earlier: EvalRecord | None, new: EvalRecord) -> list[str]:
    """The tasks of which a new evaluation of the same weights measured less than the earlier one did."""
    if earlier is None or earlier.weights_sha256 != new.weights_sha256:
        return []
    had = {result.task: _extent(result) for result in earlier.results}
    return [result.task for result in new.results if _extent(result) < had.get(result.task, 0)]


def _extent(result: TaskResult) -> int:
    """How much a result says of its task: a whole test split, another whole part, a sample, nothing."""
    if whole_test_split(result):
        return 3
    return 0 if not result.n else 1 if result.partial else 2


def _own(record: EvalRecord) -> EarlierResults:
    return EarlierResults((), record.base, record.base_commit, record.precision, record.environment)


def _setting(record: EvalRecord, task: str) -> EarlierResults:
    """What a task of a record was measured with."""
    found = next((each for each in record.earlier if task in each.tasks), None)
    return _own(record) if found is None else replace(found, tasks=())
