"""`hfcart eval` from a tower's name to results in a folder, on its card, and in its Hub repo."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hfcart.commands.evaluate import Evaluation, run_eval
from hfcart.errors import HfcartError, OutputError, UsageError, next_step
from hfcart.progress import Progress
from hfcart.records import EvalRecord
from hfcart.records.file_names import RECORD
from hfcart.report.accuracy import belongs
from hfcart.results.files import check_place, record_in, write_results
from hfcart.sources.stores import LocalStore
from hfcart.zero_shot.measurement import Measurement

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
    measurement: Measurement,
    *,
    out: Path | None = None,
    push: bool = False,
    create_pr: bool = False,
    overwrite: bool = False,
    message: str | None = None,
    progress: Progress,
) -> Measured | None:
    """Evaluate a tower, write the results, and publish them if asked to.

    Args:
        ref: a Hub repo or a folder.
        measurement: on what, and how.
        out: where the results go. Default: a folder of hfcart's itself, whose card then shows them; for anything
            else ./NAME-results.
        push: put them into the tower's Hub repo, in one commit.
        create_pr: as a pull request.
        overwrite: let a sample replace the result of a whole split, in the folder and in the repo.
        message: of the commit.
        progress: told of each stage.

    Returns:
        None in a process that another one of the same launch reports for.

    Raises:
        HfcartError: as `run_eval`; PublishError if the Hub refuses. The folder is written before anything is sent.
    """
    folder = Path(ref).expanduser()
    local = folder.is_dir()
    label = LocalStore(folder).label if local else ref.partition("@")[0]
    place = out or (folder if local and (folder / RECORD).is_file() else Path(f"{label.rpartition('/')[2]}-results"))
    check_place(place)
    if push:
        _check_target(ref, measurement, local=local, create_pr=create_pr, progress=progress)
    done = run_eval(ref, measurement, progress)
    if not done.reports:
        return None
    write_results(place, done.record, done.confusions, progress, cards=done.cards, overwrite=overwrite)
    published = _publish(done, place, create_pr, overwrite, message, progress) if push else None
    return Measured(done.record, place, published)


def _publish(
    done: Evaluation, place: Path, create_pr: bool, overwrite: bool, message: str | None, progress: Progress
) -> Published:
    """Put the results into the tower's repo. What stops it leaves them in their folder, and says how to go on."""
    from hfcart.hub import push_command
    from hfcart.results.publish import publish_results

    record = done.record
    later = [f"The results are complete in {place}."]
    made = record_in(place)
    if made is None or belongs(record, made):
        push = push_command(place, record.tower, False, create_pr, overwrite)
        later.append(f"To publish them without measuring again, run: {push}")
    try:
        return publish_results(
            record.tower,
            record,
            done.confusions,
            cards=done.cards,
            create_pr=create_pr,
            overwrite=overwrite,
            message=message,
            progress=progress,
        )
    except HfcartError as error:
        # What main does not hold any more, nobody can publish there: that is an OutputError.
        error.hint = next_step(error.hint, *(later[:1] if isinstance(error, OutputError) else later))
        raise
    except KeyboardInterrupt as stop:
        stop.add_note(" ".join(later))
        raise


def _check_target(ref: str, measurement: Measurement, *, local: bool, create_pr: bool, progress: Progress) -> None:
    """Whether the results may go where they are meant to go, before the work."""
    from hfcart.results.publish import check_results_target

    if local:
        raise UsageError(
            f"{ref} is a folder: --push puts results into the Hub repo that was evaluated.",
            hint=f"Evaluate the folder, then publish it: hfcart push {shlex.quote(ref)} --push-to user/name",
        )
    repo, at, _ = ref.partition("@")
    progress.step(f"Checking {repo}")
    check_results_target(
        repo,
        create_pr=create_pr,
        tasks=measurement.tasks,
        part=measurement.part,
        limit=measurement.limit,
        measured=ref if at else None,
        progress=progress,
    )
