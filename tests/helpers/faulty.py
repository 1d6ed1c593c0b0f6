"""Commands run one after another in one process, against a Hub that fails in a different way for each."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from clips import write_clip, write_images
from running import TOKEN
from towers import write_tower

from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.formats.safetensors_file import sha256_of

SECRET = "0123456789abcdef"
COLOURS = ["red", "green", "blue", "yellow"]
# Each line of stdin is a command and a file, which gets all that it writes, by whatever way.
RUNNER = """
import json, logging, os, sys
answers = os.fdopen(os.dup(1), "w")
from hfcart.cli import app
for line in sys.stdin:
    args, log, level = json.loads(line)
    logging.getLogger().setLevel(level)
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1), os.dup2(file, 2), os.close(file)
    code = 0
    try:
        app(args)
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 99
    sys.stdout.flush(), sys.stderr.flush()
    print(code, file=answers, flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, all that it wrote, and after how many seconds."""

    code: int
    text: str
    seconds: float


class Site:
    """A Hub, a second server to which signed addresses lead, a folder, and a process that runs commands there."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder
        self.hub, self.cdn = EmbeddedHub(folder / "hub"), EmbeddedHub(folder / "cdn")
        self.cdn.store = self.hub.store
        self.hub.add_user("user", token=TOKEN)
        write_clip(folder / "clip", 0)
        self.images = write_images(8, 4, 1, names=COLOURS)
        self.towers = [write_tower(folder / name, seed, shards=2) for seed, name in enumerate("ab", start=1)]
        self.count = 0
        settings = {
            **env,
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(folder / "home"),
            "HF_TOKEN": TOKEN,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUNNER],
            cwd=folder,
            env=settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        self.hub.__enter__()
        self.cdn.__enter__()
        self.fresh()
        first = self.run("merge", "user/a1", "user/b1", "--out", "done")
        assert first.code == 0, first.text
        self.done = {path.name: path for path in (self.folder / "done").iterdir() if path.is_file()}
        self.weights = {name: sha256_of(path) for name, path in self.done.items() if path.suffix == ".safetensors"}
        return self

    def __exit__(self, *error: object) -> None:
        self.hub.__exit__(None, None, None)
        self.cdn.__exit__(None, None, None)
        self.process.communicate(timeout=60)

    def fresh(self) -> int:
        """New repos, which no cache knows: towers a and b, a merge m (after the first), a dataset and its card."""
        self.count += 1
        n = self.count
        for name, tower in zip("ab", self.towers, strict=True):
            self.hub.create(f"user/{name}{n}")
            self.hub.commit(f"user/{name}{n}", {path.name: path for path in tower.iterdir()})
        if n > 1:
            self.hub.create(f"user/m{n}")
            self.hub.commit(f"user/m{n}", self.done)
        self.hub.create(f"user/images{n}", "dataset")
        files = {"data/test-00000-of-00001.parquet": self.images, "README.md": b"---\nlicense: mit\n---\n"}
        self.hub.commit(f"user/images{n}", files, repo_type="dataset")
        card = {"id": "images", "title": "Images", "dataset": {"repo": f"user/images{n}"}, "classnames": COLOURS}
        (self.folder / f"card{n}.yaml").write_text(json.dumps(card | {"templates": ["a photo of {}."]}))
        return n

    def lead_away(self) -> None:
        """Weights and data lie behind signed addresses, as on the real Hub."""
        address = f"{self.cdn.url}{{path}}?X-Amz-Signature={SECRET}"
        self.hub.fail(r"(GET|HEAD) .*/resolve/.*\.(safetensors|parquet)$", redirect=address, times=None)

    def run(self, *args: str, level: str = "ERROR") -> Ended:
        """Run a command, with all loggers at a level."""
        assert self.process.stdin is not None and self.process.stdout is not None
        log = self.folder / "log"
        begun = time.monotonic()
        self.process.stdin.write(json.dumps([args, str(log), level]) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return Ended(code, log.read_text(errors="replace"), time.monotonic() - begun)


COMMANDS: dict[str, list[str]] = {
    "merge": ["merge", "user/a{n}", "user/b{n}", "--out", "out{n}"],
    "stream": ["merge", "user/a{n}", "user/b{n}", "--out", "out{n}", "--stream"],
    "push": ["push", "done", "--push-to", "user/p{n}"],
    "propose": ["push", "done", "--push-to", "user/a{n}", "--create-pr"],
    "eval": [
        *("eval", "user/m{n}", "--tasks", "card{n}.yaml", "--base", "./clip", "--out", "out{n}"),
        *("--push", "--device", "cpu", "--workers", "1"),
    ],
}


def command(name: str, n: int) -> list[str]:
    return [arg.format(n=n) for arg in COMMANDS[name]]


def sentence_of(text: str) -> str:
    """The one error of a command, with its hint."""
    found = re.findall(r"^Error: .*(?:\n(?!› ).*)*", text, re.MULTILINE)
    assert len(found) == 1, text
    return str(found[0])
