"""A Space's folder to the Hub: in one commit, and over nothing but an earlier state of the same Space."""

from __future__ import annotations

from pathlib import Path

from hfcart import hub
from hfcart.errors import OutputError, PublishError
from hfcart.formats.safetensors_file import strict_json
from hfcart.progress import Progress
from hfcart.quoting import some
from hfcart.records.file_names import AVERAGE, SPACE_RECORD
from hfcart.records.repo_id import is_repo_id
from hfcart.report.space_card import APP, REQUIREMENTS
from hfcart.results.card import CARD
from hfcart.system.disk import explain_os_errors

_OWN = (APP, REQUIREMENTS, CARD, SPACE_RECORD)


def is_space(folder: Path) -> bool:
    """Whether a folder is a Space of hfcart's."""
    return (folder / SPACE_RECORD).is_file()


def push_space(
    folder: Path,
    repo: str,
    *,
    overwrite: bool,
    private: bool,
    create_pr: bool,
    message: str | None,
    progress: Progress,
    target: hub.Target | None = None,
) -> hub.Published:
    """Publish a Space's folder. Safe to repeat; what hfcart did not write stays behind.

    Args:
        folder: made by `run_space`.
        repo: `user/name` of the Space.
        overwrite: replace whatever is there.
        private: for a Space that has to be created.
        create_pr: open a pull request, and leave main alone.
        message: of the commit.
        progress: told of each stage.
        target: `repo` as `space_target` found it before the work.

    Raises:
        OutputError: the folder is no Space of hfcart's.
        PublishError: no write access, a Space that may not be replaced (without overwrite), or the Hub refused.
    """
    hub.set_notifier(progress.note)
    with explain_os_errors(folder):
        tower = _tower_of((folder / SPACE_RECORD).read_bytes())
    if tower is None:
        raise OutputError(
            f"{folder / SPACE_RECORD} does not say which tower the Space is of.",
            hint="Make it again: hfcart space USER/NAME --out NEW",
        )
    if target is None:
        target = space_target(repo, tower, overwrite=overwrite, private=private, create_pr=create_pr)
    left = [name for name in hub.publishable(folder) if name not in _OWN and not name.startswith(f"{AVERAGE}/")]
    if left:
        progress.note(f"Not published, for hfcart did not write it: {some(left, 5)}.")
    progress.step(f"Publishing to the Space {repo}")
    published = hub.publish(
        folder,
        target,
        private=private,
        create_pr=create_pr,
        message=message or f"A Space for {tower}",
        overwrite=overwrite,
        leave=left,
    )
    if not published.changed:
        progress.note(f"{repo} holds exactly this already: nothing was sent.")
    return published


def space_target(repo: str, tower: str, *, overwrite: bool, private: bool, create_pr: bool) -> hub.Target:
    """The Space to publish to, if it may be: a new one, or one of the same tower.

    Args:
        repo: `user/name` of the Space.
        tower: `user/name` of what it shows.
        overwrite: replace whatever is there.
        private: whether a public Space will not do.
        create_pr: whether it will be a pull request, which replaces nothing by itself.

    Raises:
        PublishError: no write access, or something else is there.
    """
    target = hub.check_target(repo, private=private, overwrite=overwrite, create_pr=create_pr, kind="space")
    if target.record is not None and not overwrite and not create_pr:
        old = _tower_of(target.record)
        if old is None or old.casefold() != tower.casefold():
            raise PublishError(
                f"The Space {repo} shows {old or 'a tower that it does not name'}, and this one shows {tower}.",
                hint="Choose another name, or replace what is there with --overwrite.",
            )
    return target


def _tower_of(record: bytes) -> str | None:
    """The repo that a space.json, of anyone's, is of; None if it names none."""
    try:
        found = strict_json(record)["towers"][0]["repo"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    return found if isinstance(found, str) and is_repo_id(found, namespace=True) else None
