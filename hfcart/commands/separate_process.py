"""One merge in a process of its own, for what only such a one can tell: its time and its peak memory.

The peak of a process that has done something else before is not the merge's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcart.commands.merge import merge_folder
from hfcart.errors import HfcartError
from hfcart.progress import Progress
from hfcart.quoting import plural
from hfcart.recipes.merge_recipe import make
from hfcart.records import Environment
from hfcart.report.accuracy import weights_sha256
from hfcart.system.children import python_child
from hfcart.system.disk import explain_os_errors
from hfcart.system.journal import Line
from hfcart.system.processes import Team, alone
from hfcart.system.shared_progress import SharedProgress, shared_label
from hfcart.system.work_folder import SharedFolder, SharedJournal

_MAIN = "from hfcart.commands.separate_process import main; main()"
_STATUS = Path("/proc/self/status")
_LOOK = 1.0  # seconds between two looks at what else happens


@dataclass(frozen=True)
class Apart:
    """How a merge in a process of its own ended, and what it took.

    Attributes:
        seconds: wall time of the merge, torch's import within it.
        peak: bytes of resident memory at the peak of the whole process.
        sha256: digest of the weights written, as SourceRecord.sha256; None if it failed.
        error: why it failed, in one sentence; None if it did not.
        warnings: what it said on the way.
    """

    seconds: float
    peak: int
    sha256: str | None
    error: str | None
    warnings: tuple[str, ...]


def merge_apart(fields: dict[str, Any], look: Callable[[], object] = lambda: None) -> Apart:
    """Merge as a recipe's fields say, in a new process, and wait for it. It ends when this one does, even if killed.

    Args:
        fields: of a recipe that is known to be valid; values as JSON has them.
        look: called now and then meanwhile; what it raises ends the merge.
    """
    # The very modules that are running here, whatever the folder of the call holds.
    path = f"import sys; sys.path[:] = {sys.path!r}"
    pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    # Not a pipe: what of a long recipe it does not take at once would have to be sent between two looks.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as told,
        python_child(_MAIN, flags=["-P"], first=path) as (command, inherited),
    ):
        json.dump(fields, told)
        told.seek(0)
        pipes |= {"text": True, "encoding": "utf-8", "env": alone(), "pass_fds": (inherited,)}
        with subprocess.Popen(command, stdin=told, **pipes) as merging:
            try:
                said = _said(merging, look)
            except BaseException:
                merging.kill()
                raise
    try:
        found = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        how = f"was killed (signal {-merging.returncode})" if merging.returncode < 0 else "ended without a word"
        return Apart(0.0, 0, None, f"The merge {how}: there may be too little memory.", ())
    return Apart(found["seconds"], found["peak"], found["sha256"], found["error"], tuple(found["warnings"]))


@dataclass(frozen=True)
class Merges:
    """Several merges to make, each in a process of its own; shared among the processes of a launch, if there are any.

    Attributes:
        names: of the methods, as `Merges.made` tells of them.
        fields: of each merge's recipe, but for its output and its device.
        folder: where the outputs go, each into a folder of its own.
        device: what was asked for.
    """

    names: tuple[str, ...]
    fields: tuple[dict[str, Any], ...]
    folder: Path
    device: str

    def made(
        self, note: Callable[[Line], None], progress: Progress, team: Team | None = None
    ) -> Iterator[tuple[str, Apart, Line | None]]:
        """Make them. Yields of each its name, how it ended, and its line for the journal unless it failed.

        Args:
            note: called with the line of each merge that this process has made, as soon as it is made.
            progress: told of each merge.
            team: the processes that share the merges: each of them calls this, and gets what all have made.

        Raises:
            OutputError: there is no room for them.
        """
        if team is None:
            for name, fields in zip(self.names, self.fields, strict=True):
                progress.step(f"Merging with {name}")
                yield name, *self._made(name, fields, note)
            return
        number, stage, own = len(self.names), team.stage(), dict[str, tuple[Apart, Line | None]]()
        told = SharedProgress(progress, team, stage)
        progress.start(shared_label(f"Merging with {plural(number, 'method')}", team), number, "merges")
        try:
            while (place := team.take(stage)) < number:
                name, beside = self.names[place], min(number, team.number)
                own[name] = self._made(name, self.fields[place], note, told.look, beside)
                told.advance(1)
            every = team.exchange(f"{stage}/made", own, lambda: told.advance(0))
            told.advance(0)
        finally:
            progress.finish()
        made = {name: each for theirs in every for name, each in theirs.items()}
        for name in self.names:
            yield name, *made[name]

    def _made(
        self, name: str, fields: dict[str, Any], note: Callable[[Line], None],
        look: Callable[[], object] = lambda: None, processes: int = 1,
    ) -> tuple[Apart, Line | None]:  # fmt: skip
        from hfcart.system.device import choose_device  # imports torch, whose time is a merge's

        with explain_os_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
            # A name of its own: a killed comparison may have left a merge that is still writing.
            place = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        device = str(choose_device(self.device))  # of several each process has its own; the new one is alone
        found = merge_apart(fields | {"out": str(place / "merged"), "device": device}, look)
        if found.error is not None:
            shutil.rmtree(place, ignore_errors=True)
            return found, None
        line = {"merged": name, "folder": place.name, "seconds": round(found.seconds, 2), "peak": found.peak}
        line |= {"sha256": found.sha256, **({"processes": processes} if processes > 1 else {})}
        note(line)
        return found, line


def is_there(folder: Path, line: Line) -> bool:
    """Whether the merge that a line of the journal tells of waits in this folder, in one of its own."""
    name = line["folder"]
    return "/" not in name and name.startswith(f"{line['merged']}-") and (folder / name).is_dir()


def merge_too(team: Team, work: Merges, folder: SharedFolder, environment: Environment) -> None:
    """Make what merges the other processes leave. What it notes, `WorkFolder.lines` gives a later run.

    Args:
        team: of this process.
        work: of the first.
        folder: its work folder.
        environment: of the first.

    Raises:
        UsageError: another kind of machine.
        OutputError: another folder, or one without room.
    """
    from hfcart.system.device import choose_device
    from hfcart.system.environment import refuse_another_kind

    refuse_another_kind(team, choose_device(work.device), environment)
    for _ in work.made(SharedJournal(folder, team.place).note, Progress(), team):
        pass


def _said(merging: subprocess.Popen[str], look: Callable[[], object]) -> str:
    """What a process says until it ends."""
    while True:
        try:
            return merging.communicate(timeout=_LOOK)[0]
        except subprocess.TimeoutExpired:
            look()


def main() -> None:
    """The other process: a recipe's fields on stdin, one line of JSON on stdout."""
    told = _Warnings()
    fields = json.loads(sys.stdin.read())
    error, sha256 = None, None
    start = time.perf_counter()
    try:
        record = merge_folder(make(fields), told)
        files = [digest for name, digest in sorted(record.files.items()) if name.endswith(".safetensors")]
        sha256 = weights_sha256(files)
    except HfcartError as failure:
        error = failure.message
    except KeyboardInterrupt:  # whoever waits for this was interrupted as well, and says so
        sys.exit(130)
    except Exception as failure:
        error = f"hfcart met something it did not expect ({type(failure).__name__}): {failure}"
    seconds = time.perf_counter() - start
    found = {"seconds": seconds, "peak": _peak(), "sha256": sha256, "error": error, "warnings": told.said}
    sys.stdout.write(f"\n{json.dumps(found)}\n")


class _Warnings(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


def _peak() -> int:
    """Bytes. Not getrusage where it can be helped: on Linux its peak is inherited from whoever started us."""
    if _STATUS.is_file():
        lines = (line.split() for line in _STATUS.read_text().splitlines())
        for words in lines:
            if words[:1] == ["VmHWM:"]:
                return 1024 * int(words[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
