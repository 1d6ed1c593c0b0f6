"""`hfcart push`: a finished folder to the Hub, in one commit."""

from __future__ import annotations

from pathlib import Path

from hfcart import hub
from hfcart.errors import OutputError
from hfcart.merged import RECORD, commit_message, read_record
from hfcart.progress import Progress


def run_push(
    folder: Path,
    repo: str,
    *,
    overwrite: bool,
    private: bool,
    create_pr: bool,
    message: str | None,
    progress: Progress,
) -> hub.Published:
    """Publish a folder that hfcart made. Safe to repeat: what is there already is not sent again.

    Raises:
        OutputError: the folder is not a finished merge, or a file is not what its record says.
        PublishError: no write access, a target hfcart did not make (without overwrite), or the Hub refused.
    """
    if folder.name.endswith(".partial") or not (folder / RECORD).is_file():
        raise OutputError(
            f"{folder} is not a finished merge: it has no {RECORD}.",
            hint="Finish it first with the same `hfcart merge` command.",
        )
    hub.set_notifier(progress.note)
    progress.step(f"Checking {folder}")
    record = read_record((folder / RECORD).read_bytes(), str(folder / RECORD))
    record.check_files(folder)
    progress.step(f"Publishing to {repo}")
    target = hub.check_target(repo, private=private, overwrite=overwrite, create_pr=create_pr)
    text = message or commit_message(record.method, len(record.recipe.sources))
    return hub.publish(folder, target, private=private, create_pr=create_pr, message=text)
