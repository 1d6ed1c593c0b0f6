"""`hfcart.push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from hfcart.api._calling import calling, plain, text_of
from hfcart.api.options import PushOptions, StrPath

if TYPE_CHECKING:
    from hfcart.api.results import Published
    from hfcart.progress import Progress


def push(
    folder: StrPath,
    push_to: str,
    *,
    progress: bool | Progress = False,
    **options: Unpack[PushOptions],
) -> Published:
    """Publish a folder that hfcart made on the Hub, in one commit, as `hfcart push` does. Safe to repeat.

        hfcart.push("merged", "user/merged").url

    Args:
        folder: what `hfcart.merge`, `hfcart.finetune` or `hfcart.evaluate` wrote.
        push_to: the Hub repo, `user/name`; made if it is not there.
        progress: True draws in a terminal or a notebook, a `Progress` of your own is told of every stage; False prints
            nothing, and warnings are Python's (HfcartWarning).

    Options:
        Output:
            overwrite (bool): Replace whatever is there.
        Publishing:
            private (bool): Make the repo private if it is created.
            create_pr (bool): Open a pull request instead of committing to main.
            commit_message (str): Message of the commit.

    Returns:
        The repo's page, the commit, and the pull request if one was opened.

    Raises:
        hfcart.errors.HfcartError: each kind of failure has its class; the message says what is wrong, and a hint, which
            a traceback shows, what to do next.
        hfcart.errors.KeywordError: a keyword that there is not (a TypeError, too).
    """
    with calling("push", options, PushOptions.__annotations__, progress) as listener:
        from hfcart.api.results import Published
        from hfcart.commands.push import run_push

        given = {"overwrite": False, "private": False, "create_pr": False, "commit_message": None, **plain(options)}
        message = given.pop("commit_message")
        done = run_push(Path(text_of(folder)), push_to, message=message, progress=listener, **given)
        return Published.of(done, revision=done.revision)
