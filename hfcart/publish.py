"""`hfcart push`: a finished folder to the Hub, in one commit."""

from __future__ import annotations

from pathlib import Path

from hfcart import hub
from hfcart.card import render_card
from hfcart.errors import OutputError
from hfcart.merged import RECORD, check_files, commit_message, read_record
from hfcart.progress import Progress
from hfcart.records import MergeRecord

_PARTS = ("figures/",)  # folders that are published with the files that the record lists


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
    if not folder.is_dir():
        raise OutputError(f"There is no folder {folder}.", hint="Give the folder that `hfcart merge` made.")
    if not (folder / RECORD).is_file():
        raise OutputError(
            f"{folder} is not a finished merge: it has no {RECORD}.",
            hint="Finish it first with the same `hfcart merge` command.",
        )
    hub.set_notifier(progress.note)
    progress.step(f"Checking {folder}")
    record = read_record((folder / RECORD).read_bytes(), str(folder / RECORD))
    check_files(record, folder)
    target = hub.check_target(repo, private=private, overwrite=overwrite, create_pr=create_pr)
    _name_the_repo(record, folder / "README.md", repo)
    own = {*record.files, RECORD, "README.md"}
    if left := [name for name in hub.publishable(folder) if name not in own and not name.startswith(_PARTS)]:
        progress.note(f"Not published, for no merge wrote it: {', '.join(left[:5])}{', …' if len(left) > 5 else ''}.")
    progress.step(f"Publishing to {repo}")
    published = hub.publish(
        folder,
        target,
        private=private,
        create_pr=create_pr,
        message=message or commit_message(record),
        overwrite=overwrite,
        leave=left,
    )
    if not published.changed:
        progress.note(f"{repo} holds exactly this already: nothing was sent.")
    return published


def _name_the_repo(record: MergeRecord, card: Path, repo: str) -> None:
    """A card made without a repo speaks of "this folder": let it name the repo, unless somebody has edited it."""
    if card.is_file() and card.read_text(encoding="utf-8") == render_card(record):
        card.write_text(render_card(record, repo=repo), encoding="utf-8")
