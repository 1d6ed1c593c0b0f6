"""The command: merged towers measured and published, in one process or two, and what is refused."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from running import TOKEN, Commands, Run, ended
from three_towers import COLOURS, TOWERS

from hfcart.errors import UsageError

pytestmark = pytest.mark.usefixtures("own_cache")


def test_merge_eval_push(zoo, hfcart: Run, tmp_path: Path) -> None:
    """The whole way: merge with --eval, evaluate the repo beside its parents, put the numbers on its card."""
    from huggingface_hub import ModelCard

    hub, root = zoo
    tasks = f"{root}/images1.yaml,{root}/images2.yaml"
    merged = hfcart(
        "merge", *TOWERS, "--rank", "0.25", "--scale", "2", "--eval", tasks, "--push-to", "user/merged", hub=hub
    )
    assert merged.returncode == 0, merged.stderr
    there = hub.files("user/merged")
    assert {"results.json", "figures/accuracy.png", "results/confusion-images1.csv"} <= there.keys()
    first = json.loads(there["results.json"])
    assert first["results"][0]["pretrained"] is None and "Accuracy was not measured" not in there["README.md"].decode()
    assert len(hub.commits("user/merged")) == 2  # the one that made the repo, and ours
    done = hfcart(
        "eval", "user/merged", "--tasks", tasks, "--references", "measured", "--push", "--json", "--workers", "1",
        "--batch-size", "7", hub=hub,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert [r["classes"] for r in record["results"]] == [r["classes"] for r in first["results"]]
    # Towers that differ: one taken for another would show.
    shares = [
        {result[name]["accuracy"] for name in ("pretrained", "average", "individual")} for result in record["results"]
    ]
    assert max(map(len, shares)) > 1
    for i, result in enumerate(record["results"], start=1):
        assert result["individual"]["tower"] == f"user/t{i}" and result["individual"]["measured"]
        assert result["pretrained"]["tower"] == "user/clip" and result["average"]["measured"]
        assert result["dataset"]["commit"] == hub.head(f"user/images{i}", repo_type="dataset")
    readme = hub.files("user/merged")["README.md"].decode()
    found = ModelCard(readme).data.eval_results
    assert {r.dataset_type for r in found} == {"user/images1", "user/images2"}
    assert {r.dataset_revision for r in found} == {hub.head(f"user/images{i}", repo_type="dataset") for i in (1, 2)}
    assert hfcart("verify", "user/merged", hub=hub).returncode == 0


def test_two_processes_give_the_same_numbers(zoo, clean_env: dict[str, str], tmp_path: Path) -> None:

    hub, root = zoo
    env = clean_env | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": TOKEN,
        "ACCELERATE_USE_CPU": "true",
    }
    records = []
    for processes in (1, 2):
        launch = ["-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
        launch += ["--dynamo_backend", "no", "--main_process_port", "0", "--num_processes", str(processes)]
        launch += ["--multi_gpu"] * (processes > 1)  # with ACCELERATE_USE_CPU: that many processes, over gloo
        command = ["-m", "hfcart", "eval", "user/t1", "--tasks", f"{root}/images1.yaml", "--batch-size", "8"]
        command += ["--out", f"out{processes}", "--json", "--device", "cpu"]
        done = ended(
            [sys.executable, *launch, *command],
            cwd=tmp_path,
            env=env,
        )
        assert done.returncode == 0, done.stderr
        assert f"{processes} processes" in done.stderr or processes == 1
        records.append(json.loads(done.stdout))
    assert records[0] == records[1]
    files = [sorted(p.relative_to(tmp_path / f"out{i}") for p in (tmp_path / f"out{i}").rglob("*.*")) for i in (1, 2)]
    assert files[0] == files[1]
    for name in files[0]:
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes()


@pytest.mark.parametrize("option", [{"part": "dev"}, {"precision": "float64"}, {"references": "all"}, {"seed": -1}])
def test_python_is_told_of_wrong_options_too(clip: Path, option: dict) -> None:
    import hfcart

    with pytest.raises(UsageError, match=f"`{next(iter(option))}` is"):
        hfcart.evaluate(clip, ["mnist"], **option)


def test_python_is_warned_of_what_an_evaluation_could_not_measure(zoo, clean_env: dict[str, str], tmp_path) -> None:
    hub, root = zoo
    code = (
        "import hfcart, sys\n"
        "hfcart.evaluate('user/t1', [sys.argv[1]], references='measured', limit=4)\n"
    )  # fmt: skip
    env = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf-home")}
    command = [sys.executable, "-c", code, f"{root}/images1.yaml"]
    done = ended(command, warm=True, cwd=tmp_path, env=env)
    assert done.returncode == 0 and not done.stdout, done.stderr
    assert done.stderr.startswith("<string>:2: HfcartWarning: user/t1 is not a merge of hfcart's: only its base")


def test_a_merge_of_merges_is_scored_by_the_base_of_its_towers(zoo, commands: Commands) -> None:
    hub, root = zoo
    quick = ("--tasks", f"{root}/images1.yaml", "--limit", "8", "--json")
    first, second, found, told = commands(
        hub,
        [
            ["merge", "user/t1", "user/t2", "--method", "average", "--push-to", "user/two"],
            ["merge", "user/two", "user/t3", "--method", "average", "--out", "of-merges"],
            ["eval", "of-merges", *quick],
            ["eval", "of-merges", "--base", "user/clip", *quick],
        ],
    )
    assert first.returncode == second.returncode == found.returncode == 0, (first.stderr, second.stderr, found.stderr)
    assert json.loads(found.stdout)["base"] == "user/clip" and found.stdout == told.stdout


def test_a_whole_clip_model_is_not_its_own_pretrained_base(zoo, hfcart: Run) -> None:
    """A merge with --full-clip holds its base's text tower: what was measured beside it was the merge itself."""
    hub, root = zoo
    merge = hfcart(
        "merge", "user/t1", "user/t2", "--full-clip", "--base", "user/clip", "--push-to", "user/whole", hub=hub
    )
    assert merge.returncode == 0, merge.stderr
    common = ("--tasks", f"{root}/images1.yaml", "--references", "measured", "--json")
    done = hfcart("eval", "user/whole", *common, hub=hub)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["base"] == "user/clip" and record["base_commit"] == hub.head("user/clip")
    assert record["results"][0]["pretrained"]["tower"] == "user/clip"
    alone = hfcart("eval", "user/clip", *common, hub=hub)
    assert alone.returncode == 0, alone.stderr
    assert json.loads(alone.stdout)["results"][0]["pretrained"] is None


def test_a_drafted_card_measures_and_opens_a_pull_request(zoo, hfcart: Run, tmp_path: Path) -> None:
    """From a dataset that no card describes to numbers proposed to a tower's owner, in two commands."""
    from huggingface_hub import ModelCard

    hub, _ = zoo
    draft = ("tasks", "new", "user/images1", "--out", str(tmp_path / "mine.yaml"))
    drafted = hfcart(*draft, hub=hub)
    assert drafted.returncode == 0 and drafted.stdout.strip() == draft[-1], drafted.stderr
    before = (tmp_path / "mine.yaml").read_bytes()
    again = hfcart(*draft, hub=hub)
    assert again.returncode == 1 and "is there already" in again.stderr and "--out" in again.stderr
    assert (tmp_path / "mine.yaml").read_bytes() == before
    head = hub.head("user/t1")
    done = hfcart("eval", "user/t1", "--tasks", draft[-1], "--push", "--create-pr", "--json", hub=hub)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert [score["name"] for score in result["classes"]] == COLOURS and sum(c["n"] for c in result["classes"]) == 61
    assert hub.head("user/t1") == head
    (proposed,) = ModelCard(hub.files("user/t1", "refs/pr/1")["README.md"].decode()).data.eval_results
    right = sum(score["correct"] for score in result["classes"])
    assert proposed.dataset_type == "user/images1" and proposed.metric_value == pytest.approx(right / 61, abs=1e-6)


def test_a_card_is_tried_before_the_first_image(zoo, commands: Commands) -> None:
    """Where results could not be put in the end, not one image is measured: whoever made the repo, PR or not."""
    hub, root = zoo
    tower = {path.name: path for path in (root / "t1").iterdir()}
    cards = {
        "yaml": b"---\na: [\n---\n", "text": b"\xff\xfe", "licence": b"---\nlicense: my-own\n---\n",
        "odd": b"---\n{license: mit}\n---\n", "good": b"---\nlicense: mit\n---\n",
    }  # fmt: skip
    for name, text in cards.items():
        hub.create(f"user/{name}")
        hub.commit(f"user/{name}", {**tower, "README.md": text})
    hub.commit("user/good", {"model.safetensors": root / "t2" / "model.safetensors"}, branch="other")
    hub.clear()
    tasks = ["--tasks", f"{root}/images1.yaml"]
    asked = [
        (["user/yaml", "--push"], "not valid YAML"),
        (["user/yaml", "--create-pr"], "not valid YAML"),
        (["user/text", "--push"], "is not UTF-8"),
        (["user/licence", "--push"], "The Hub would refuse the front matter of user/licence/README.md"),
        (["user/odd", "--push"], "not a block"),
        (["user/good", "--push", "--part", "validation"], "nothing to publish in user/good"),
        (["user/good@other", "--push"], "The results are of weights with sha256"),
        (["user/good", "--out", f"{root}/t1/config.json"], "is no folder: the results would have no place"),
    ]
    for done, (_, why) in zip(commands(hub, [["eval", *args, *tasks] for args, _ in asked]), asked, strict=True):
        assert done.returncode == 1 and why in " ".join(done.stderr.split()), done.stderr
        assert "→ " in done.stderr and "Traceback" not in done.stderr
    assert not [request.path for request in hub.requests if "datasets/" in request.path]


def test_finished_results_are_published_later_by_the_command_that_is_printed(
    zoo, commands: Commands, tmp_path: Path
) -> None:
    hub, root = zoo
    tasks = ["--tasks", f"{root}/images1.yaml"]
    (made,) = commands(hub, [["merge", "user/t1", "user/t2", "--method", "average", "--push-to", "user/late"]])
    assert made.returncode == 0, made.stderr
    for repo, options in (("user/late", ["--push"]), ("user/t3", ["--push", "--create-pr"])):
        hub.clear()
        hub.fail(f"POST /api/models/{repo}/commit/", status=403)
        (done,) = commands(hub, [["eval", repo, *tasks, *options]])
        said = " ".join(done.stderr.split())
        assert done.returncode == 1 and "without measuring again" in said, said
        command = shlex.split(
            next(line for line in done.stderr.splitlines() if "hfcart push" in line).split("hfcart ")[-1]
        )
        assert command[:4] == ["push", f"{repo[5:]}-results", "--push-to", repo]
        record = json.loads((tmp_path / f"{repo[5:]}-results" / "results.json").read_text())
        hub.clear()
        (later,) = commands(hub, [command])
        assert later.returncode == 0, later.stderr
        assert not [request.path for request in hub.requests if "datasets/user/images1/resolve" in request.path
                    and "eval.yaml" not in request.path]  # fmt: skip
        if repo == "user/late":
            files = hub.files(repo)
            assert json.loads(files["results.json"]) == record and "results/confusion-images1.csv" in files
        else:
            assert b"model-index" in hub.files(repo, "refs/pr/1")["README.md"] and len(hub.commits(repo)) == 2
    # A folder that is neither: what is wrong with its results is said.
    spoilt = tmp_path / "late-results" / "results.json"
    spoilt.write_text("{}")
    (bad,) = commands(hub, [["push", "late-results", "--push-to", "user/late"]])
    assert bad.returncode == 1 and "is not an evaluation by hfcart" in bad.stderr


def test_partial_and_validation_say_so(zoo, hfcart: Run) -> None:
    hub, root = zoo
    some = hfcart("eval", "user/t1", "--tasks", f"{root}/images1.yaml", "--limit", "20", hub=hub)
    assert some.returncode == 0, some.stderr
    assert "20 of 61" in some.stdout and "Partial" in some.stdout
    again = hfcart("eval", "user/t1", "--tasks", f"{root}/images1.yaml", "--limit", "20", "--no-streaming", hub=hub)
    assert again.stdout == some.stdout
    held = hfcart("eval", "user/t1", "--tasks", f"{root}/images1.yaml", "--part", "validation", "--quiet", hub=hub)
    assert held.returncode == 0 and held.stdout.startswith("task ") and not held.stderr


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--tasks", "nothing"], 2, ["There is no task 'nothing'", "hfcart tasks"]),
        (["--tasks", "mnist", "--part", "dev"], 2, ["--part is 'dev'", "validation"]),
        (["--tasks", "mnist", "--limit", "0"], 2, ["--limit is 0"]),
        (["--tasks", "mnist", "--limit", "5", "--seed", "-1"], 2, ["--seed is -1", "0 to"]),
        (["--tasks", "mnist"], 1, ["ylecun/mnist"]),
        (["--tasks", "mnist", "--base", "user/t2"], 1, ["user/t2", "vision tower only", "--base"]),
        (["--tasks", "mnist", "--push", "--create-pr", "--device", "cuda:7"], 2, ["no device cuda:7"]),
    ],
)
def test_errors_say_what_to_do(zoo, hfcart: Run, options: list[str], code: int, words: list[str]) -> None:
    done = hfcart("eval", "user/t1", *options, hub=zoo[0])
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and all(word in done.stderr for word in words), done.stderr
