"""`hfcart demo`: the commands a user would type, run for real against a Hub on this machine, on towers trained here."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hfcart.demo.app import run_app
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.demo.zoo import FINETUNE, build_zoo, publish_zoo, write_pictures
from hfcart.errors import HfcartError, OutputError
from hfcart.progress import Progress
from hfcart.quoting import plural
from hfcart.records import EvalRecord
from hfcart.report.accuracy import accuracy, mean_accuracy, mean_reference
from hfcart.results.files import RESULTS, results_in
from hfcart.system.children import python_child

_HFCART = "from hfcart.cli import main; main()"
_USER, _TOKEN = "demo", "hf_demo"
_RANKS, _SCALES = "0.01,0.02,0.04,0.08,0.16,0.32,1.0", "1,1.5,2"
_TA_SCALES = "0.1,0.2,0.3,0.4,0.5,0.6"
_LOAD = """\
import torch
from transformers import CLIPVisionModel
tower = CLIPVisionModel.from_pretrained("demo/merged")
print(tuple(tower(torch.zeros(1, 3, 32, 32)).pooler_output.shape))
"""
_ADAPT = """\
import torch
from peft import PeftModel
from transformers import CLIPVisionModel
tower = CLIPVisionModel.from_pretrained("demo/average")
tower = PeftModel.from_pretrained(tower, "demo/average", subfolder="adapters/TASK", adapter_name="TASK")
print(tower.active_adapters, tuple(tower(torch.zeros(1, 3, 32, 32)).pooler_output.shape))
"""


@dataclass(frozen=True)
class Tour:
    """What the demo ends with.

    Attributes:
        columns: heads of the table.
        rows: one a tower: its accuracy on each task in per cent, and the mean.
        curve: the figure of accuracy over rank.
        card: the model card that was published.
        pictures: some to try, if the Space was asked for.
        space: opens the Space until Ctrl-C, if it was asked for.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    curve: Path
    card: Path
    pictures: Path
    space: Callable[[], None]


@contextmanager
def run_demo(folder: Path, progress: Progress, *, space: bool = False) -> Iterator[Tour]:
    """Train a tiny CLIP and a tower a task, choose rank and scale on validation images, merge, measure on test images.

    The Hub is up until the `with` block ends.

    Args:
        folder: where everything goes; an earlier demo's is replaced, but for the pictures and the base it trained.
        progress: told of every stage.
        space: make a Space of the merge, too.

    Raises:
        OutputError: the folder holds something else.
        HfcartError: one of the commands failed.
    """
    marker, cache = folder / ".hfcart-demo", folder / "zoo"
    if folder.exists() and not marker.exists():
        raise OutputError(f"{folder} exists and is not an earlier demo.", hint="Give another: hfcart demo --out FOLDER")
    for path in folder.iterdir() if folder.exists() else ():
        if path not in (marker, cache):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
    zoo = build_zoo(cache, _USER, progress)
    tasks = sorted(path.stem for path in (zoo / "tasks").glob("*.yaml"))
    shutil.copytree(zoo / "tasks", folder / "tasks")
    with EmbeddedHub(folder / "hub") as server:
        progress.step(f"A Hub of your own is up at {server.url}, for as long as this runs")
        server.add_user(_USER, token=_TOKEN)
        publish_zoo(server, zoo, _USER)
        commands = _Commands(folder, server.url, progress)
        commands.run_all(tasks)
        if space:
            commands.run_space()
            write_pictures(folder / "pictures")
        yield Tour(
            *_table(folder),
            curve=folder / "sweep-cart" / "figures" / "curve.png",
            card=folder / "merged" / "README.md",
            pictures=folder / "pictures",
            space=lambda: run_app(folder / "space", commands.environment),
        )


class _Commands:
    """Runs hfcart's own commands in the demo's folder, against its Hub."""

    def __init__(self, folder: Path, url: str, progress: Progress) -> None:
        self._folder, self._progress = folder, progress
        # The machine's own settings of the Hub and of proxies must not come between the commands and this server.
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")
        }
        self.environment = {
            **inherited,
            "HF_ENDPOINT": url,
            "HF_TOKEN": _TOKEN,
            "HF_HOME": str((folder / "hf-home").resolve()),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def run_all(self, tasks: Sequence[str]) -> None:
        """Fine-tune a tower a task, sweep, merge, measure, publish, load."""
        self._progress.step(f"Fine-tuning {plural(len(tasks), 'tower')}, one a task, two at a time")
        options = [part for name, value in FINETUNE.items() for part in (f"--{name}", value)]
        train = ["finetune", f"{_USER}/base", *options]
        commands = [[*train, "--tasks", f"tasks/{task}.yaml", "--push-to", f"{_USER}/tower-{task}"] for task in tasks]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._beside, commands))
        towers = [f"{_USER}/tower-{task}" for task in tasks]
        cards = "tasks/"
        grid, ta = ["--rank", _RANKS, "--scale", _SCALES], ["--method", "task_arithmetic"]
        self._run_side_by_side(
            ["sweep", *towers, "--tasks", cards, *grid, "--out", "sweep-cart"],
            ["sweep", *towers, "--tasks", cards, *ta, "--scale", _TA_SCALES, "--out", "sweep-ta"],
        )
        arithmetic = [*ta, "--sweep", "sweep-ta", "--out", "task-arithmetic", "--eval", cards]
        cart = ["--sweep", "sweep-cart", "--out", "merged"]
        adapters = ["--adapters", "8%", "--out", "average", "--eval", cards, "--push-to", f"{_USER}/average"]
        self._run_side_by_side(
            ["merge", *towers, *arithmetic], ["merge", *towers, *cart], ["merge", *towers, *adapters]
        )
        self._run(["eval", "merged", "--tasks", cards, "--references", "measured"])
        self._run(["push", "merged", "--push-to", f"{_USER}/merged"])
        self._run(["verify", f"{_USER}/merged"])
        self._python(_LOAD)
        if find_spec("peft"):  # no dependency of ours
            self._python(_ADAPT.replace("TASK", tasks[0]))

    def run_space(self) -> None:
        """A Space of the merge, on this Hub."""
        self._run(["space", f"{_USER}/merged", "--tasks", "tasks/", "--out", "space", "--push-to", f"{_USER}/try-it"])

    def _run(self, command: list[str]) -> None:
        _show(shlex.join(["hfcart", *command]))
        self._check(self._done(_HFCART, *command))

    def _run_side_by_side(self, *commands: list[str]) -> None:
        """Commands that do not wait for each other, side by side; each one's output when all are done."""
        with ThreadPoolExecutor(len(commands)) as pool:
            for command, done in zip(commands, list(pool.map(self._apart, commands)), strict=True):
                _show(shlex.join(["hfcart", *command]))
                sys.stderr.write(done.stdout)
                self._check(done)

    def _beside(self, command: list[str]) -> None:
        """One of several at once: its output is shown only if it fails."""
        done = self._apart([*command, "--quiet"])
        _show(shlex.join(["hfcart", *command]))
        if done.returncode:
            sys.stderr.write(done.stdout)
        self._check(done)

    def _apart(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        kept: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return self._done(_HFCART, *command, env={**self.environment, "OMP_NUM_THREADS": "1"}, **kept)

    def _python(self, code: str) -> None:
        _show("python\n" + code.rstrip())
        quiet = ["-W", "ignore::FutureWarning"]  # what one library says to another
        self._check(self._done(code, flags=quiet))

    def _done(
        self,
        code: str,
        *args: str,
        flags: Sequence[str] = (),
        **settings: Any,  # noqa: ANN401
    ) -> subprocess.CompletedProcess[str]:
        """A process that runs this code in the demo's folder, and has ended; settings are those of subprocess."""
        settings = {"env": self.environment, **settings}
        with python_child(code, *args, flags=flags) as (command, pipe):
            return subprocess.run(command, cwd=self._folder, check=False, pass_fds=(pipe,), **settings)

    def _check(self, done: subprocess.CompletedProcess[Any]) -> None:
        if done.returncode:
            raise HfcartError(
                f"The command above ended with exit code {done.returncode}.", hint="Run `hfcart demo` again."
            )


def _show(command: str) -> None:
    lines = command.split("\n")
    sys.stderr.write("\n" + "\n".join(f"{'$' if i == 0 else '>'} {line}" for i, line in enumerate(lines)) + "\n")
    sys.stderr.flush()


def _table(folder: Path) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Every tower's accuracy on the test images, in per cent, as this run measured it."""
    merged, arithmetic = _results(folder / "merged"), _results(folder / "task-arithmetic")

    def others(name: str, record: EvalRecord = merged) -> tuple[str, ...]:
        found = [getattr(result, name) for result in record.results]
        return tuple(_percent(reference.accuracy if reference else None) for reference in found) + (
            _percent(mean_reference(found).value),
        )

    def own(record: EvalRecord) -> tuple[str, ...]:
        mean = mean_accuracy(record.results)
        return (*(_percent(accuracy(result)) for result in record.results), _percent(mean.value))

    rows = (
        ("pretrained", *others("pretrained")),
        ("average", *others("average")),
        ("task arithmetic", *own(arithmetic)),
        ("CART", *own(merged)),
        ("average + adapters", *others("adapter", _results(folder / "average"))),
        ("individual", *others("individual")),
    )
    return ("test accuracy %", *(result.title for result in merged.results), "mean"), rows


def _results(folder: Path) -> EvalRecord:
    record = results_in(folder)
    if record is None:
        raise HfcartError(f"{folder} has no {RESULTS}.", hint="Run `hfcart demo` again.")
    return record


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
