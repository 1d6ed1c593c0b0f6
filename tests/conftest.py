"""Fixtures: jaxtyping's shapes checked at run time, small towers, and a Hub on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from jaxtyping import install_import_hook

sys.path.insert(0, str(Path(__file__).parent / "helpers"))
# Every annotated shape in the numerical modules is checked on every call of every test.
NUMERICAL = ("block_iteration", "low_rank", "low_rank_batch", "moments", "thin_svd", "thin_svd_batch")
_HOOK = install_import_hook(
    [*(f"hfcart.maths.{name}" for name in NUMERICAL), "hfcart.methods"],
    "beartype.beartype",
)

import torch  # noqa: E402
from hints import faults, faults_in_python  # noqa: E402
from running import ROOT, TOKEN, Commands, Run, ended, run_commands, works_when_typed  # noqa: E402
from towers import write_tower  # noqa: E402

from hfcart import errors  # noqa: E402
from hfcart.demo.embedded_hub.hub import EmbeddedHub  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

torch.set_num_threads(1)
# Whoever runs tests in the background ignores Ctrl-C, and what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What `make quick` runs: in these rooms, whatever draws no examples and, as far as its fixtures and names tell, neither
# starts a server or a process nor merges.
_QUICK = {"records", "maths", "formats", "clip", "system", "methods", "report", "recipes", "tasks", "test_house.py"}
_SLOW_FIXTURES = {"clean_env", "hub", "hfcart", "commands", "clip", "zoo", "browser"}
_SLOW_CALLS = {"subprocess", "run", "merge", "merge_folder"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not isinstance(item, pytest.Function) or getattr(item.function, "is_hypothesis_test", False):
            continue
        room = item.path.relative_to(Path(__file__).parent).parts[0]
        slow = _SLOW_FIXTURES & set(item.fixturenames) or _SLOW_CALLS & set(item.function.__code__.co_names)
        if room in _QUICK and not slow:
            item.add_marker("quick")


@pytest.fixture(autouse=True)
def _every_hint_works(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What errors raised in this process tell people to type, tried when the test is over."""
    hints: list[str] = []
    init = errors.HfcartError.__init__

    def noted(self: errors.HfcartError, message: str, *, hint: str | None = None) -> None:
        init(self, message, hint=hint)
        hints.append(hint or "")

    monkeypatch.setattr(errors.HfcartError, "__init__", noted)
    yield
    assert not [wrong for hint in hints for wrong in (*faults(hint), *faults_in_python(hint))]


@pytest.fixture
def drawn() -> None:
    """For tests that need the figures of merges in this process; those of commands and wider fixtures are drawn."""


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take nine tenths of the time of a small merge: they are drawn for tests that need them."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("hfcart.report.plots.draw_figures", lambda *_: [])


@pytest.fixture(scope="session")
def clean_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment for subprocesses: no Hub settings of the machine, no terminal width of the terminal."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k not in ("COLUMNS", "PYTHONPATH")}
    env = {k: v for k, v in env.items() if not k.lower().endswith("_proxy")}
    env |= {
        "HF_HOME": str(tmp_path_factory.mktemp("hf-home")),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HFCART_RETRY_BASE": "0.01",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    return env


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[EmbeddedHub]:
    """A Hub of its own for one test, with a writer `user` and a reader `reader`."""
    with EmbeddedHub(tmp_path / "hub-content") as server:
        server.add_user("user", token=TOKEN)
        server.add_user("reader", token="hf_reader_secret")
        yield server


@pytest.fixture
def hfcart(clean_env: dict[str, str], tmp_path: Path) -> Run:
    """Run the real command line in a fresh folder's subprocess: hfcart("merge", ..., hub=server, token=...)."""

    def run(
        *args: str | Path, hub: EmbeddedHub | None = None, token: str | None = TOKEN, cwd: Path = tmp_path, **env: str
    ) -> subprocess.CompletedProcess[str]:
        # Without a Hub every request must fail at once: nothing listens on port 9 of loopback.
        settings = {**clean_env, "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9", **env}
        settings["HF_HOME"] = str(tmp_path / "hf-home")
        if token:
            settings["HF_TOKEN"] = token
        done = ended(
            [sys.executable, "-m", "hfcart", *map(str, args)],
            warm=True,
            cwd=cwd,
            env=settings,
        )
        works_when_typed([str(arg) for arg in args], done)
        return done

    return run


@pytest.fixture
def commands(clean_env: dict[str, str], tmp_path: Path) -> Commands:
    """Several commands one after another in one process: most of the time of each would be the same imports again."""

    def run(
        hub: EmbeddedHub, lines: Sequence[Sequence[str]], *, apart: bool = True, **more: str
    ) -> list[subprocess.CompletedProcess[str]]:
        env = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf-home"), "HF_TOKEN": TOKEN} | more
        return run_commands(lines, tmp_path, env, apart=apart)

    return run


@pytest.fixture
def four(tmp_path: Path) -> list[Path]:
    """Four towers in folders."""
    return [write_tower(tmp_path / f"t{i}", i) for i in (1, 2, 3, 4)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP whose tower tells images apart."""
    from three_towers import write_telling_clip

    return write_telling_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Iterator[tuple[EmbeddedHub, Path]]:
    """A Hub with `clip`, three towers of it and a dataset for each; and the folder with the towers and task cards."""
    from three_towers import served

    root = tmp_path_factory.mktemp("zoo")
    with served(root, clip) as hub:
        yield hub, root


@pytest.fixture(scope="module")
def tasks(zoo: tuple[EmbeddedHub, Path]) -> str:
    """Tasks of the zoo's towers with 40 validation images each: enough for candidates to differ."""
    from three_towers import with_many_images

    return with_many_images(*zoo)


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads are cached in the Hub's cache, whose place the client read from the environment at import."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path_factory.mktemp("assets")))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for `browser.tab`: what is looked at there is looked at as people see it."""
    from browser import started

    with started() as found:
        yield found
