"""One merge in a process of its own, for what only such a one can tell: its time and its peak memory.

The peak of a process that has done something else before is not the merge's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcart.commands.merge import merge_folder
from hfcart.errors import HfcartError
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import make
from hfcart.report.accuracy import weights_sha256
from hfcart.system.processes import alone

_STATUS = Path("/proc/self/status")


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


def merge_apart(fields: dict[str, Any]) -> Apart:
    """Merge as a recipe's fields say, in a new process, and wait for it.

    Args:
        fields: of a recipe that is known to be valid; values as JSON has them.
    """
    # The very modules that are running here, whatever the folder of the call holds.
    code = f"import sys; sys.path[:] = {sys.path!r}; from hfcart.commands.separate_process import main; main()"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(
        command, input=json.dumps(fields), capture_output=True, text=True, encoding="utf-8", env=alone()
    )
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        how = f"was killed (signal {-done.returncode})" if done.returncode < 0 else "ended without a word"
        return Apart(0.0, 0, None, f"The merge {how}: there may be too little memory.", ())
    return Apart(found["seconds"], found["peak"], found["sha256"], found["error"], tuple(found["warnings"]))


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
