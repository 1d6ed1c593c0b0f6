"""`hfcart eval` from a tower's name to results in a folder, on its card, and in its Hub repo."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcart.errors import UsageError
from hfcart.evaluation import check_options, run_eval
from hfcart.merged import RECORD
from hfcart.progress import Progress
from hfcart.records import EvalRecord
from hfcart.results.files import write_results
from hfcart.tasks import TaskCard

if TYPE_CHECKING:
    from hfcart.hub import Published


@dataclass(frozen=True)
class Measured:
    """Results and where they went: a folder, and the Hub if that was asked for."""

    record: EvalRecord
    folder: Path
    published: Published | None


def run_measure(
    ref: str,
    tasks: Sequence[TaskCard],
    *,
    out: Path | None = None,
    push: bool = False,
    create_pr: bool = False,
    message: str | None = None,
    progress: Progress,
    **options: Any,  # noqa: ANN401
) -> Measured | None:
    """Evaluate a tower, write the results, and publish them if asked to.

    Args:
        ref: a Hub repo or a folder.
        tasks: what to measure.
        out: where the results go. Default: a folder of hfcart's itself, whose card then shows them; for anything
            else ./NAME-results.
        push: put them into the tower's Hub repo, in one commit.
        create_pr: as a pull request.
        message: of the commit.
        progress: told of each stage.
        **options: those of `run_eval`.

    Returns:
        None in a process that another one of the same launch reports for.

    Raises:
        HfcartError: as `run_eval`; PublishError if the Hub refuses. The folder is written before anything is sent.
    """
    check_options(options)
    folder = Path(ref).expanduser()
    local = folder.is_dir()
    if push:
        _check_target(ref, local=local, create_pr=create_pr)
    done = run_eval(ref, tasks, progress=progress, **options)
    if not done.reports:
        return None
    name = done.record.tower.rpartition("/")[2]
    place = out or (folder if local and (folder / RECORD).is_file() else Path(f"{name}-results"))
    write_results(place, done.record, done.confusions, progress)
    published = None
    if push:
        from hfcart.results.publish import publish_results

        published = publish_results(
            done.record.tower, done.record, done.confusions, create_pr=create_pr, message=message, progress=progress
        )
    return Measured(done.record, place, published)


def _check_target(ref: str, *, local: bool, create_pr: bool) -> None:
    """Whether the results may go where they are meant to go, before the work."""
    from hfcart.results.publish import check_results_target

    if local:
        raise UsageError(
            f"{ref} is a folder: --push puts results into the Hub repo that was evaluated.",
            hint=f"Evaluate the folder, then publish it: hfcart push {shlex.quote(ref)} --to user/name",
        )
    check_results_target(ref.partition("@")[0], create_pr=create_pr)
