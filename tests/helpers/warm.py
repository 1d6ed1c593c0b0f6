"""Python processes that need not import torch and the like first, as most of a short command's time would be that.

Each is a fork of one that has done so, with nothing in it of what reads its settings from the environment at import:
hfcart and Hugging Face's libraries are imported in each, as they are in a process of a user's.
"""

from __future__ import annotations

import atexit
import os
import runpy
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, get_context
from pathlib import Path
from unittest.mock import patch

_HEAVY = [
    "torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.nn",
    "scipy.linalg", "scipy.stats", "scipy.optimize", "sklearn.metrics", "pandas", "pyarrow.parquet",
    "pyarrow.dataset", "pyarrow.json", "pyarrow.csv", "PIL.ImageOps", "matplotlib.figure", "matplotlib.style",
    "matplotlib.backends.backend_agg", "pydantic.main", "pydantic.type_adapter", "jinja2.sandbox", "rich.console",
    "httpx2", "httpcore2", "h11", "truststore", "anyio.abc", "multiprocess.pool", "multiprocess.shared_memory",
    "dill", "fsspec.archive", "fsspec.asyn", "fsspec.implementations.local", "filelock", "regex", "yaml",
    "jaxtyping", "tokenizers", "safetensors.torch", "xxhash", "tqdm.auto", "tqdm.contrib",
]  # fmt: skip
_OWN = ("HF_", "HFCART_", "COLUMNS")  # settings that nothing above reads
_TESTS = str(Path(__file__).parents[1])
_context = get_context("forkserver")
_begun: dict[str, str] = {}


def suits(command: Sequence[str | Path], env: Mapping[str, str] | None) -> bool:
    """Whether a command is one of this Python's, in the environment that the first such command had."""
    own = {name: value for name, value in (env or os.environ).items() if not name.startswith(_OWN)}
    if str(command[0]) != sys.executable or str(command[1])[:1] == "-" and command[1] not in ("-c", "-m", "-W"):
        return False
    _begun.update(own if not _begun else {})
    return own == _begun


class Warm:
    """Such a process; as subprocess.Popen, as far as it goes."""

    def __init__(
        self,
        command: Sequence[str | Path],
        files: Sequence[str],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Begin a command that suits, the first of its session. It reads the first of three files, and writes two."""
        self.args = command
        words = [str(word) for word in command[1:]]
        with patch.dict(os.environ, _begun, clear=True):
            _context.set_forkserver_preload(_HEAVY)
            forkserver.ensure_running()
        settings = str(cwd or Path.cwd()), dict(env or os.environ)
        self._process = _context.Process(target=_run, args=(words, files, *settings))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode


def _run(words: list[str], files: list[str], cwd: str, env: dict[str, str]) -> None:
    os.setsid()
    for number, name in enumerate(files):
        file = os.open(name, os.O_RDWR | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    while words[0] == "-W":
        sys.warnoptions.append(words[1])
        words = words[2:]
    kind, what, *rest = words if words[0] in ("-c", "-m") else ("", *words)
    libraries = [path for path in sys.path if path and not path.startswith(_TESTS)]
    place = {"-m": cwd, "-c": ""}.get(kind, str(Path(what).parent))
    sys.path[:] = [place, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *libraries]
    warnings._processoptions(sys.warnoptions)  # type: ignore[attr-defined]
    sys.argv[:] = [kind or what, *rest]
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        elif not kind:
            runpy.run_path(what, run_name="__main__")
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
