"""The one sink of the command line: human, --json or --quiet. Data on stdout, everything else on stderr.

The only importer of rich. Text that came from a repo may hold terminal escapes: it is cleaned here, once.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hfcart.cli._shared.command import running
from hfcart.errors import HfcartError, MismatchError
from hfcart.progress import Progress
from hfcart.quoting import MOST_ROWS, plural, printable
from hfcart.system.addresses import Formatter, without_queries
from hfcart.system.patience import silence
from hfcart.system.processes import may_tell

if TYPE_CHECKING:
    from rich.progress import Progress as Bars


_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
_SECONDS_APART = 5.0  # between two plain lines of progress


def clean(text: object) -> str:
    """Text without control and format characters (escapes, bidi overrides), line breaks kept."""
    return "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf") else "�" for c in str(text))


class Output(Progress):
    """What the user sees. Also the Progress that the work reports to.

    Args:
        quiet: only results, warnings and errors.
        json: stdout is for the record alone; the rest goes to stderr as always.
    """

    def __init__(self, *, quiet: bool = False, json: bool = False) -> None:
        """Open the two streams; nothing is printed yet."""
        self.quiet, self.json = quiet, json
        self.warnings: list[str] = []
        self._err = _console(sys.stderr)
        self._out = _console(sys.stdout)
        self._live = self._err.is_terminal and not quiet
        self._bars: Bars | None = None
        self._lock = threading.Lock()
        self._label, self._unit, self._total, self._done, self._shown, self._said = "", "", 1, 0, 0, 0.0

    def step(self, text: str) -> None:
        """A stage begins: one line."""
        if not self.quiet:
            self._line("›", "cyan", text)

    def note(self, text: str) -> None:
        """A fact: one line."""
        if not self.quiet:
            self._line(" ", "", text)

    def warn(self, text: str) -> None:
        """A warning, shown in every mode."""
        self.warnings.append(text)
        self._line("Warning:", "yellow", text)

    def start(self, label: str, total: int, unit: str) -> None:
        """A counted stage: a bar with rate and remaining time on a terminal, plain lines elsewhere."""
        self._label, self._unit, self._total, self._done, self._shown = label, unit, max(total, 1), 0, 0
        self._said = time.monotonic()
        if self._live:
            self._bars = _bars(self._err, unit)
            self._bars.add_task(label, total=self._total)
            self._bars.start()
        else:
            self.step(f"{label} ({self._amount(total)})")

    def advance(self, amount: int) -> None:
        """Move the bar, or say each further quarter in a plain line, at most one in a few seconds."""
        with self._lock:
            self._done += amount
            if self._bars is not None:
                self._bars.advance(self._bars.task_ids[0], amount)
                return
            quarter = 4 * self._done // self._total
            if self._shown < quarter < 4 and time.monotonic() - self._said >= _SECONDS_APART:
                self.note(f"{self._label}: {25 * quarter} %")
                self._said = time.monotonic()
                self._shown = quarter

    def finish(self) -> None:
        """Take the bar away; a line says what was done."""
        if self._bars is not None:
            elapsed = self._bars.tasks[0].finished_time or self._bars.tasks[0].elapsed or 0
            self._bars.stop()
            self._bars = None
            self.step(f"{self._label} ({self._amount(self._done)} in {elapsed:.1f} s)")

    def result(self, text: str = "") -> None:
        """A line of the result: on stdout, unless stdout is for JSON."""
        if not self.quiet:
            (self._err if self.json else self._out).print(Text(clean(text)))

    def essential(self, text: str) -> None:
        """The one line that even --quiet prints (where the output is); not with --json."""
        if not self.json:
            self._out.print(Text(clean(text)))

    def table(self, columns: Sequence[str], rows: Sequence[tuple[str, ...]], *, to_stderr: bool = False) -> None:
        """A table; plain and whole when not on a terminal."""
        console = self._err if to_stderr or self.json else self._out
        table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(clean(cell)) for cell in row))
        console.print(table, soft_wrap=False)

    def data(self, text: str) -> None:
        """JSON for programs, on stdout, as it is."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def error(self, error: HfcartError) -> None:
        """An error: the sentence, its table if it has one, and what to do next."""
        self.abandon()
        if isinstance(error, MismatchError):
            self.table(["source", "what", "expected", "found"], error.rows, to_stderr=True)
        self._line("Error:", "bold red", error.message)
        for line in typed_here(error.hint or ""):
            self._line("→", "bold", line)

    def abandon(self) -> None:
        """Remove a bar that an error left on the screen."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _amount(self, count: float) -> str:
        return size(count) if self._unit == "bytes" else plural(round(count), self._unit.removesuffix("s"))

    def _line(self, mark: str, style: str, text: str) -> None:
        line = Text()
        line.append(mark, style=style)
        line.append(" " + clean("\n".join(map(printable, text.split("\n")[:MOST_ROWS]))))
        self._err.print(line)


def typed_here(hint: str) -> list[str]:
    """The lines of a hint, as far as they are for the command that runs."""
    if not running:
        return hint.splitlines()
    lines = without_foreign_options(hint, running["options"])
    return lines if lines or not hint else [f"What can be said here: {running['name']} --help"]


def without_foreign_options(hint: str, options: Collection[str]) -> list[str]:
    """The lines of a hint, without sentences about an option that is none of `options`.

    What stands in a command line of its own, in backticks or to the end of the line, is another command's matter.
    """
    lines = []
    for line in hint.splitlines():
        sentences = re.split(r"(?<=\.) (?=[A-Z])", line)
        own = [re.sub(r"`[^`]*`|\b(?:hfcart|hf|accelerate) .*", "", sentence) for sentence in sentences]
        kept = [s for s, text in zip(sentences, own, strict=True) if set(_OPTION.findall(text)) <= set(options)]
        lines += [" ".join(kept)] if kept else []
    return lines


@contextlib.contextmanager
def reporting(*, quiet: bool = False, json: bool = False, debug: bool = False) -> Iterator[Output]:
    """Give a command its output; turn what it raises into a sentence and an exit code.

    Exit codes: 0 ok, 1 failed, 2 wrong usage, 130 for Ctrl-C, 143 for a termination signal.
    """
    output = Output(quiet=quiet, json=json)
    silence.restart()
    logs = logging.StreamHandler()
    logs.setFormatter(Formatter("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.ERROR, handlers=[logs])
    if debug:
        for name in ("hfcart", "huggingface_hub"):  # the client blanks out tokens in what it logs
            logging.getLogger(name).setLevel(logging.DEBUG)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        yield output
    except KeyboardInterrupt as stop:
        output.abandon()
        if may_tell(stop):
            if debug:
                raise
            output.warn(" ".join(["Stopped.", *getattr(stop, "__notes__", [])]))
        raise typer.Exit(143 if stop.args == (signal.SIGTERM,) else 130) from None
    except HfcartError as error:
        output.abandon()
        if not may_tell(error):
            raise typer.Exit(error.exit_code) from None
        if debug:
            _show(error)
        output.error(error)
        raise typer.Exit(error.exit_code) from None
    except BrokenPipeError:
        # Whoever read our output went away: nothing more to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:
        output.abandon()
        if not may_tell(error):
            raise typer.Exit(1) from None
        if debug:
            _show(error)
        bug = HfcartError(
            f"hfcart met something it did not expect ({type(error).__name__}).",
            hint="Run the same command with --debug and report what it prints.",
        )
        output.error(bug)
        raise typer.Exit(1) from None


def _bars(console: Console, unit: str) -> Bars:
    from rich import progress  # not needed for --help, which should be there at once

    counts: list[progress.ProgressColumn] = [progress.DownloadColumn(), progress.TransferSpeedColumn()]
    if unit != "bytes":
        counts = [progress.MofNCompleteColumn(), progress.TextColumn(unit)]
    return progress.Progress(
        progress.TextColumn("[cyan]›[/] {task.description}"),
        progress.BarColumn(),
        *counts,
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _console(stream: TextIO) -> Console:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # a terminal that has no λ still gets the rest of the line
    # A file or a pipe has no width: tables must not be folded to an imagined one.
    return Console(file=stream, highlight=False, soft_wrap=True, width=None if stream.isatty() else 200)


def _show(error: Exception) -> NoReturn:
    """The whole traceback, as Python would print it, but for the queries of addresses in it."""
    sys.stderr.write(without_queries("".join(traceback.format_exception(error))))
    raise typer.Exit(getattr(error, "exit_code", 1)) from None


def _terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signal.SIGTERM)


def size(count: float) -> str:
    """Bytes for people: "349.8 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
