"""`hfcart space`: one small folder, pinned; nothing of a stranger's in its code, no token; replaced by itself alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from browser import tab
from clips import image
from knowing import serve_knowing
from playwright.sync_api import Browser, Page, expect
from running import HELPERS, LIMIT, ROOT, TOKEN, Commands, Run, contents, ended, run_commands
from safetensors.torch import load_file

from hfcart.commands import space
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.formats.front_matter import FRONT_MATTER

GRADIO = ROOT / ".space"  # Gradio and what it needs, where `make test` has put it
TOWERS = ["user/k1", "user/k2", "user/k3"]
WORDS = ["red", "green", "blue", "yellow"]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Iterator[tuple[EmbeddedHub, Path]]:
    """A Hub with a CLIP model and three towers of it that know four colours; and the folder with the task's card."""
    root = tmp_path_factory.mktemp("known")
    with EmbeddedHub(root / "hub") as hub:
        hub.add_user("user", token=TOKEN)
        serve_knowing(hub, clip, root)
        yield hub, root


@pytest.fixture(scope="module")
def made(known: tuple[EmbeddedHub, Path], clean_env: dict[str, str]) -> tuple[EmbeddedHub, Path]:
    """The merge of the three in its three forms, and a Space of each; the first is published."""
    hub, root = known
    merge = ["merge", *TOWERS, "--rank", "0.1"]
    task = ["--tasks", str(root / "colours.yaml")]
    lines = [
        [*merge, "--out", "m", "--push-to", "user/merged"],
        [*merge, "--out", "p", "--push-to", "user/projected", "--with-projection", "--matrices", "all-2d"],
        [*merge, "--out", "w", "--push-to", "user/whole", "--full-clip", "--base", "user/clip"],
        ["space", "user/merged", *task, "--push-to", "user/try"],
        ["space", "user/projected", *task],
        ["space", "user/whole", *task, "--no-average"],
    ]
    env = {**clean_env, "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "hf-home"), "HF_TOKEN": TOKEN}
    for done in run_commands(lines, root, env):
        assert done.returncode == 0, done.stderr
    return hub, root


def settings(hub: EmbeddedHub, root: Path, env: dict[str, str]) -> dict[str, str]:
    """The environment of an app: no token, Gradio at hand. Without it the test is skipped, but not in CI."""
    if not (GRADIO / "gradio").is_dir():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("No Gradio: `make .space/.ready` installs it.")
    path = os.pathsep.join(map(str, (GRADIO, ROOT, HELPERS)))
    return {**env, "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "app-home"), "PYTHONPATH": path}


def shown(hub: EmbeddedHub, repo: str = "user/try") -> dict:
    return json.loads(hub.files(repo, repo_type="space")["space.json"])


def test_it_is_one_small_folder_pinned_and_published_in_one_commit(made: tuple[EmbeddedHub, Path]) -> None:
    hub, root = made
    folder = contents(root / "merged-space")
    assert sorted(folder) == [
        "README.md", "app.py", "average/config.json", "average/model.safetensors", "requirements.txt", "space.json",
    ]  # fmt: skip
    there = hub.files("user/try", repo_type="space")
    assert {name: data for name, data in there.items() if name != ".gitattributes"} == folder
    assert [message for _, message in hub.commits("user/try", repo_type="space")] == [
        "A Space for user/merged", "initial commit",
    ]  # fmt: skip
    assert sum(len(data) for name, data in folder.items() if not name.startswith("average/")) < 20_000
    record = shown(hub)
    assert [(each["title"], each["commit"]) for each in record["towers"]] == [
        ("user/merged", hub.head("user/merged")),
        ("the average of the 3 towers", None),
        ("its base, user/clip", hub.head("user/clip")),
    ]
    assert record["base"] == {"repo": "user/clip", "commit": hub.head("user/clip")}
    assert record["tasks"][0]["labels"] == WORDS and len(record["tasks"][0]["prompts"]) == 3


def test_the_hub_runs_it_with_the_versions_that_the_requirements_pin(made: tuple[EmbeddedHub, Path]) -> None:
    hub, root = made
    readme = (root / "merged-space" / "README.md").read_text()
    front = yaml.safe_load(FRONT_MATTER.match(readme)[1])
    lines = (root / "merged-space" / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line[0] not in "#-")
    assert front["sdk"] == "gradio" and front["sdk_version"] == pins["gradio"] and front["app_file"] == "app.py"
    assert front["models"] == ["user/merged", "user/clip"] and front["license"] == "mit"
    assert len(front["short_description"]) <= 60
    assert "[its card](https://huggingface.co/user/merged)" in readme and "`mit`" in readme
    app = (root / "merged-space" / "app.py").read_text()  # which takes whatever task is offered
    assert f"MOST_LABELS, MOST_TEXTS, LONGEST = {space._MOST_LABELS}, {space._MOST_TEXTS}, " in app
    ours = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    beside = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "tests" / "space.txt").read_text(), re.MULTILINE))
    # What it runs on is what the tests ran on: Gradio's own needs go before the environment's.
    assert {name: (ours | beside)[name] for name in pins} == pins


def test_no_token_and_nothing_of_a_stranger_is_in_its_code(made: tuple[EmbeddedHub, Path], hfcart: Run) -> None:
    hub, root = made
    for name, data in contents(root / "merged-space").items():
        assert TOKEN.encode() not in data, name
    hostile = "\"); import os; os._exit(3) #{{ 7 * 7 }}'''\\"
    hub.create("user/hostile")
    card = f"---\nlicense: other\nlicense_name: {json.dumps(hostile)}\nbase_model: user/clip\n---\n"
    files = {"README.md": card.encode()} | {
        name: data for name, data in hub.files("user/k1").items() if name != "README.md"
    }
    hub.commit("user/hostile", files)
    task = {
        "id": "hostile",
        "title": hostile,
        "dataset": {"repo": "user/none"},
        "templates": [f"{hostile} {{}}"],
        "classnames": [hostile, "b"],
    }
    (root / "hostile.yaml").write_text(json.dumps(task))
    done = hfcart("space", "user/hostile", "--tasks", root / "hostile.yaml", "--out", root / "h", hub=hub)
    assert done.returncode == 0, done.stderr
    assert (root / "h" / "app.py").read_bytes() == (ROOT / "cards" / "space" / "app.py").read_bytes()
    assert json.loads((root / "h" / "space.json").read_text())["tasks"][0]["labels"] == [hostile, "b"]
    readme = (root / "h" / "README.md").read_text()
    assert hostile not in readme and yaml.safe_load(FRONT_MATTER.match(readme)[1])["license"] == "other"


CHECK = """
import importlib.util, json, sys
from pathlib import Path
import torch
from clips import image
from PIL import Image
from hfcart.clip.images import decode
from hfcart.clip.pixels import normalised, to_pixels
from hfcart.progress import Progress
from hfcart.tasks.task_cards import read_card
from hfcart.zero_shot.heads import make_head, open_base
from hfcart.zero_shot.loaded_tower import load_tower
from hfcart.zero_shot.scoring import Scorer
from hfcart.system.device import Machine

root, names = Path(sys.argv[1]), sys.argv[2:]
task = read_card(root / "colours.yaml")
odd = image(1, 7, 40).convert("RGBA").rotate(30, expand=True)  # transparent corners
files = []
for i, picture in enumerate([image(0, 5), image(2, 6, 60).resize((90, 30)), odd, image(3, 1).convert("L")]):
    files.append(root / f"picture-{i}.png")
    picture.save(files[-1])
base = open_base("user/clip", Progress())
head = make_head(base, task, Progress())
machine = Machine.on(torch.device("cpu"), "float32", None, None)
worst, best = 0.0, []
for name in names:
    spec = importlib.util.spec_from_file_location(name, root / f"{name}-space" / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    said = app.SPACE["towers"]
    towers = [load_tower(str(root / f"{name}-space" / t["folder"]) if t["folder"] else f"{t['repo']}@{t['commit']}",
                         Progress()) for t in said]
    for file in files:
        found = app.classify(Image.open(file), ", ".join(task.classnames), "\\n".join(task.templates))
        best.append(max(found[0], key=found[0].get))
        for tower, t, shares in zip(towers, said, found, strict=True):
            scorer = Scorer(tower.model, base.projection, t["image_processor"], machine)
            pixels = to_pixels(decode(file.read_bytes()), t["image_processor"])[None]
            features = scorer.features(normalised(pixels, t["image_processor"]), "float32")
            expected = (base.logit_scale * features[0] @ head.T).softmax(-1)
            worst = max(worst, float((expected - torch.tensor(list(shares.values()))).abs().max()))
            assert list(shares) == list(task.classnames)
print(json.dumps([worst, best]))
"""


def test_its_numbers_are_those_of_an_evaluation(made: tuple[EmbeddedHub, Path], clean_env: dict[str, str]) -> None:
    """The same head and features, to 1e-5: of the merge in each of its forms, of the average and of the base."""
    hub, root = made
    command = [sys.executable, "-c", CHECK, str(root), "merged", "projected", "whole"]
    done = ended(command, env=settings(hub, root, clean_env))
    assert done.returncode == 0, done.stderr[-3000:]
    worst, best = json.loads(done.stdout.splitlines()[-1])
    assert worst < 1e-5
    assert best[:2] == ["red", "blue"]


OPEN = """
import sys
from pathlib import Path
from hfcart.demo.app import run_app
run_app(Path(sys.argv[1]), {"HF_ENDPOINT": sys.argv[2], "HF_HOME": sys.argv[3], "HF_HUB_DISABLE_XET": "1"})
"""


def test_in_a_browser_the_right_bar_is_longest(
    made: tuple[EmbeddedHub, Path], clean_env: dict[str, str], browser: Browser
) -> None:
    """As `hfcart demo --space` opens it: on loopback, at the address that it prints, until Ctrl-C."""
    hub, root = made
    picture = root / "blue.png"
    image(2, 9, 64).save(picture)
    command = [sys.executable, "-u", "-c", OPEN, str(root / "merged-space"), hub.url, str(root / "app-home")]
    env = settings(hub, root, clean_env) | {"HF_TOKEN": "hf_of_the_machine"}
    with (
        tab(browser) as (page, elsewhere),
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, start_new_session=True, text=True) as app,
    ):
        try:
            address = next(found[0] for line in app.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
            page.goto(address)
            expect(page.locator("h1")).to_have_text("user/merged, zero-shot")
            expect(page.get_by_role("link", name="its card")).to_have_attribute("href", f"{hub.url}/user/merged")
            expect(page.locator("#labels textarea")).to_have_value("\n".join(WORDS))
            page.locator("#image input[type=file]").set_input_files(picture)
            for i, title in enumerate(("user/merged", "the average of the 3 towers", "its base, user/clip")):
                bars = page.locator(f"#bars-{i}")
                expect(bars).to_contain_text(title)
                expect(bars.locator("meter")).to_have_count(4)
            lengths = lengths_of(page)
            assert max(lengths, key=lengths.__getitem__) == "blue" and lengths["blue"] > 2 * lengths["red"] > 0
            assert sorted(lengths) == sorted(WORDS)
            page.locator("#labels textarea").fill("yellow, blue")
            page.get_by_role("button", name="Compare").click()
            expect(page.locator("#bars-0 meter")).to_have_count(2)
            lengths = lengths_of(page)
            assert max(lengths, key=lengths.__getitem__) == "blue"
            page.locator("#labels textarea").fill("blue")
            page.get_by_role("button", name="Compare").click()
            expect(page.get_by_text("Type two labels or more")).to_be_visible()
            assert elsewhere == []
            app.send_signal(signal.SIGINT)
            assert app.wait(LIMIT) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(app.pid, signal.SIGKILL)
    assert not [request for request in hub.requests if "hf_of_the_machine" in request.path]


def lengths_of(page: Page) -> dict[str, float]:
    """Label -> width of its bar in pixels, of the tower's own bars."""
    return {bar.get_attribute("aria-label"): bar.bounding_box()["width"] for bar in page.locator("#bars-0 meter").all()}


def test_pushed_again_nothing_is_sent_and_another_towers_space_stays(
    made: tuple[EmbeddedHub, Path], commands: Commands
) -> None:
    hub, root = made
    folder, other = str(root / "merged-space"), str(root / "projected-space")
    head = hub.head("user/try", repo_type="space")
    hub.create("user/theirs", "space")
    hub.commit("user/theirs", {"app.py": b"print()"}, repo_type="space")
    again, refused, theirs, empty, gone = commands(
        hub,
        [
            ["push", folder, "--to", "user/try"],
            ["push", other, "--to", "user/try"],
            ["space", "user/merged", "--no-average", "--out", "x", "--push-to", "user/theirs"],
            ["push", other, "--to", "user/other", "--private"],
            ["space", "user/merged", "--no-average", "--out", "y", "--push-to", "user/try", "-q"],
        ],
    )
    assert again.returncode == 0 and "nothing was sent" in again.stderr
    assert refused.returncode == 1 and "user/try shows user/merged, and this one shows user/projected" in refused.stderr
    assert theirs.returncode == 1 and "hfcart did not make what it holds" in theirs.stderr
    assert not (root / "x").exists() and empty.returncode == 0
    # An earlier state of the same Space is replaced, with what it does not bring.
    assert gone.returncode == 0 and gone.stdout.strip() == f"{hub.url}/spaces/user/try"
    assert hub.head("user/try", repo_type="space") != head and len(shown(hub)["towers"]) == 2
    assert not [name for name in hub.files("user/try", repo_type="space") if name.startswith("average/")]


def test_what_cannot_be_shown_is_refused_before_the_work(
    made: tuple[EmbeddedHub, Path], commands: Commands, tmp_path: Path
) -> None:
    hub, root = made
    (tmp_path / "there").mkdir()
    hub.create("user/pickled")
    files = {n: d for n, d in hub.files("user/k1").items() if n not in (".gitattributes", "model.safetensors")}
    torch.save(load_file(root / "k1" / "model.safetensors"), root / "k1.bin")
    hub.commit("user/pickled", {**files, "pytorch_model.bin": root / "k1.bin"})
    folder, name, base, there, other, reader, pickled = commands(
        hub,
        [
            ["space", str(root / "m")],
            ["space", "merged"],
            ["space", "user/k1", "--base", str(root.parent / root.name / "hub-clip")],
            ["space", "user/merged", "--out", "there"],
            ["space", "user/merged", "--base", "user/k1", "--out", "z"],
            ["space", "user/merged", "--push-to", "somebody/space", "--out", "z"],
            ["space", "user/pickled", "--out", "z"],
        ],
    )
    assert folder.returncode == 2 and f"hfcart push {root / 'm'} --push-to user/name" in folder.stderr
    assert name.returncode == 2 and "is not the name of a Hub repo" in name.stderr
    assert base.returncode == 1 and there.returncode == 1 and "exists already" in there.stderr
    assert other.returncode == 1 and "vision tower only" in other.stderr
    assert reader.returncode == 1 and "somebody/space" in reader.stderr
    assert pickled.returncode == 1 and "is not stored as transformers loads it" in pickled.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf-home", "there"]


def test_without_an_average_it_says_why(made: tuple[EmbeddedHub, Path], commands: Commands) -> None:
    """A tower that is no merge, a source in a folder, a source that not everybody may read."""
    hub, root = made
    hub.create("user/closed", gated=True)
    hub.commit("user/closed", {n: d for n, d in hub.files("user/k2").items() if n != ".gitattributes"})
    merge = ["merge", "user/k1", "user/k3", "--rank", "0.1"]
    single, _, local, _, gated = commands(
        hub,
        [
            ["space", "user/k1", "--out", "a"],
            [*merge, str(root / "k2"), "--out", "l", "--push-to", "user/of-folder"],
            ["space", "user/of-folder", "--out", "b"],
            [*merge, "user/closed", "--out", "g", "--push-to", "user/of-closed"],
            ["space", "user/of-closed", "--out", "c"],
        ],
    )
    assert single.returncode == 0 and "not a merge of hfcart's" in single.stderr
    assert local.returncode == 0 and "The average is left out: it is of k2" in local.stderr
    assert gated.returncode == 0 and "The average is left out: it is of user/closed" in gated.stderr


def test_a_closed_tower_needs_a_secret_that_is_never_written(
    made: tuple[EmbeddedHub, Path], commands: Commands, tmp_path: Path
) -> None:
    hub, _ = made
    hub.create("user/private", private=True)
    hub.commit("user/private", {n: d for n, d in hub.files("user/k1").items() if n != ".gitattributes"})
    (done,) = commands(hub, [["space", "user/private", "--push-to", "user/closed-space", "--private"]])
    assert done.returncode == 0, done.stderr
    assert f"in {hub.url}/spaces/user/closed-space/settings, give the" in done.stdout
    folder = contents(tmp_path / "private-space")
    assert b"**It needs a secret:** `user/private` is not open to everybody." in folder["README.md"]
    assert not [name for name, data in folder.items() if TOKEN.encode() in data]


def test_the_demos_space_needs_gradio_and_says_how_to_get_it(hfcart: Run, tmp_path: Path) -> None:
    done = hfcart("demo", "--space")
    assert done.returncode == 1 and not (tmp_path / "hfcart-demo").exists()
    assert "Gradio" in done.stderr and "pip install 'hfcart[space]'" in done.stderr
