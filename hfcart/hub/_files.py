"""A few files of a repo that exists, in one commit that touches nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants

from hfcart.hub._calls import call
from hfcart.hub._publish import Published, _Commit, _holds, _publishing, _quiet_client, digests


def publish_files(
    repo: str,
    head: str,
    files: Mapping[str, bytes],
    *,
    message: str,
    delete: Collection[str] = (),
    create_pr: bool = False,
    again: str | None = None,
) -> Published:
    """Write a few files in one commit on top of `head`, and delete those named; all the rest stays. Safe to repeat.

    Args:
        repo: `user/name`.
        head: commit of main that the files were made for.
        files: path -> content.
        message: of the commit; its first line is the title.
        delete: paths that go in the same commit; they must be there.
        create_pr: open a pull request, and leave main alone.
        again: how to try again, for the hint of an error.

    Raises:
        PublishError: refused, failed, or main is not at `head` any more.
    """
    with _publishing(again), _quiet_client():
        local = {path: digests(content) for path, content in files.items()}
        url = f"{constants.ENDPOINT}/{repo}"
        if not delete and _holds(repo, head, local):
            return Published(url, head, None, changed=False)
        added = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
        gone = [CommitOperationDelete(path) for path in sorted(delete)]
        commit = _Commit(repo, head, [*added, *gone], local, message, create_pr)
        made, pull_request = call(commit.what, commit.send, repo=repo)
        return Published(url, made, pull_request)
