"""Every way hfcart can refuse, as one tree.

    HfcartError                     exit 1
    ├── UsageError                  exit 2: the command line or the recipe is wrong
    │   └── KeywordError            a function of hfcart's was called with a keyword that it has not
    ├── SourceError                 a source cannot be used
    │   ├── RepoNotFoundError       no such repo, or not visible to this token
    │   ├── AccessError             gated, private, or a token that is not valid
    │   ├── RevisionNotFoundError   the repo is there, the revision is not
    │   ├── NotATowerError          the repo holds no CLIP vision tower
    │   ├── CorruptFileError        a file breaks the safetensors format, or its own index
    │   ├── MismatchError           the sources are not one architecture (carries the table)
    │   ├── DistantError            the sources do not come from one ancestor
    │   └── NonFiniteError          a tensor holds NaN or Inf
    ├── HubError                    the Hub did not answer, or not as it should
    │   └── PublishError            the push was refused or failed; the folder is intact
    ├── OutputError                 the output folder: exists, is not writable, or the disk is full
    └── VerifyError                 an output is not what its record says

Each carries a sentence that names the repo, the tensor, what was expected and what was found, and a
`hint`: the next thing to do, a command where there is one. Neither ever holds a token. A hint may have several
lines; a command in it stands in backticks, or from its name to the end of the line, so that it works when typed.

What does not stop the work is a warning: on the command line a line of its own, from Python HfcartWarning.
"""

from __future__ import annotations

from hfcart.quoting import MOST_ROWS, plural, printable

AGAIN = "then run the same command again."


def together(*hints: str | None) -> str | None:
    """Several hints as one: a line each, so that nothing runs on into a command. None if there is none."""
    lines = [hint.rstrip() for hint in hints if hint]
    return "\n".join(lines) or None


class HfcartError(Exception):
    """Base of every error a user can meet."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Take the message (what went wrong, a few sentences) and the hint (what to do next).

        Whatever they quote from a file or a server, they are printable and no longer than a screen.
        """
        self.message = printable(message)
        super().__init__(self.message)
        self.hint = None if hint is None else "\n".join(map(printable, hint.split("\n")[:MOST_ROWS]))


class HfcartWarning(UserWarning):
    """What a merge or an evaluation from Python should not pass over in silence, and that does not stop it."""


class UsageError(HfcartError):
    """The command line or the recipe asks for something that makes no sense."""

    exit_code = 2


class KeywordError(UsageError, TypeError):
    """A keyword that the function called does not have: Python's own kind of error for it, and one of this tree."""


class SourceError(HfcartError):
    """A source cannot be used."""


class RepoNotFoundError(SourceError):
    """No such repo, or one that this token may not see (the Hub tells the two apart to nobody)."""


class AccessError(SourceError):
    """The repo is gated or private, or the token is not valid."""


class RevisionNotFoundError(SourceError):
    """The repo exists; the branch, tag or commit asked for does not."""


class NotATowerError(SourceError):
    """The repo or folder holds no CLIP vision tower."""


class CorruptFileError(SourceError):
    """A file breaks the safetensors format, or an index names what is not there."""


class MismatchError(SourceError):
    """The sources differ in architecture."""

    def __init__(self, message: str, rows: list[tuple[str, str, str, str]], *, hint: str | None = None) -> None:
        """Take the summary, one (source, what, expected, found) for every difference, and the hint."""
        super().__init__(message, hint=hint)
        shown = rows if len(rows) <= MOST_ROWS else rows[: MOST_ROWS - 1]
        self.rows = [(*(printable(cell, 200) for cell in row),) for row in shown]
        if len(shown) < len(rows):
            self.rows.append(("…", f"{plural(len(rows) - len(shown), 'more difference')}", "", ""))


class DistantError(SourceError):
    """The sources are too far apart to be fine-tuned from one ancestor."""


class NonFiniteError(SourceError):
    """A tensor of a source holds NaN or Inf."""


class HubError(HfcartError):
    """The Hub did not answer, or not as it should."""


class PublishError(HubError):
    """Publishing was refused or failed; the local folder is intact."""


class OutputError(HfcartError):
    """The output folder exists already, is not writable, or does not fit the disk."""


class VerifyError(HfcartError):
    """An output is not what its record says."""


def next_step(hint: str | None, *steps: str) -> str:
    """A hint that ends with `steps`, in place of running the same command again where the state is not so any more."""
    kept = hint.removesuffix(f", {AGAIN}") + "." * hint.endswith(AGAIN) if hint else ""
    return together(kept, *steps) or ""
