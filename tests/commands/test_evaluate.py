"""Evaluation against transformers itself: the same pixels, the same logits, the same accuracy; and one base only."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import END, image, png, write_clip
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from running import TOKEN, Commands, Run
from three_towers import COLOURS, TOWERS, card, prompted
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, CLIPVisionModel

from hfcart.clip.images import decode
from hfcart.clip.pixels import normalised, to_pixels
from hfcart.errors import CorruptFileError, MismatchError, NonFiniteError, SourceError, UsageError, VerifyError
from hfcart.progress import Progress
from hfcart.sources.preprocessor import clip_default
from hfcart.system.device import Machine
from hfcart.tasks.data import Example
from hfcart.tasks.task_cards import TaskCard
from hfcart.zero_shot.heads import base_of, check_base, make_head, open_base
from hfcart.zero_shot.loaded_tower import LoadedTower, load_tower
from hfcart.zero_shot.scoring import Scorer, score

pytestmark = pytest.mark.usefixtures("own_cache")
CPU = torch.device("cpu")


# --- pixels ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.sampled_from([{"shortest_edge": 16}, {"shortest_edge": 20}, {"height": 16, "width": 16}]),
    resample=st.sampled_from([0, 2, 3]),
    crop=st.booleans(),
    seed=st.integers(0, 9),
)
def test_pixels_are_those_of_transformers(width, height, resize, resample, crop, seed):
    """Any size, either way to resize, with and without a crop larger or smaller than the image."""
    fields = clip_default(16) | {"size": resize, "resample": resample, "do_center_crop": crop}
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    options = {k: v for k, v in fields.items() if k != "image_processor_type"}
    theirs = CLIPImageProcessorPil(**options)(images=picture, return_tensors="pt")["pixel_values"]
    ours = normalised(to_pixels(picture, fields)[None], fields)
    assert ours.dtype == torch.float32 and ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=2e-6)


# --- heads ----------------------------------------------------------------------------------------------------------


class Steps(Progress):
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.warnings: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json and merges.txt"])
def test_a_head_is_the_prompts_mean_direction(clip: Path, tmp_path: Path, files: str) -> None:
    words = CLIPTokenizer.from_pretrained(clip)
    if files != "tokenizer.json":  # as repos of older releases have it
        folder = tmp_path / "old"
        folder.mkdir()
        for path in clip.iterdir():
            if path.name != "tokenizer.json":
                (folder / path.name).write_bytes(path.read_bytes())
        vocab = sorted(words.get_vocab().items(), key=lambda item: item[1])
        (folder / "vocab.json").write_text(json.dumps(dict(vocab)))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        clip = folder
    task = TaskCard(**card())
    head = make_head(open_base(str(clip), Progress()), task, Progress())
    assert torch.allclose(head, prompted(CLIPModel.from_pretrained(clip), words, task), atol=1e-5)
    assert float((head @ head.T - torch.eye(4)).abs().max()) > 1e-3  # four different directions, not one


def test_logits_are_those_of_the_clip_model(clip: Path) -> None:
    """One prompt a class, so that CLIPModel itself can say what they should be."""
    task = TaskCard(**card() | {"templates": ["a photo of {}."]})
    base, tower = open_base(str(clip), Progress()), load_tower(str(clip), Progress())
    model, words = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    processor = CLIPImageProcessorPil.from_pretrained(clip)
    pictures = [image(i % 4, i) for i in range(24)]
    with torch.no_grad():
        theirs = model(
            **words([task.prompts(i)[0] for i in range(4)], padding=True, return_tensors="pt"),
            **processor(images=pictures, return_tensors="pt"),
        ).logits_per_image
    scorer = Scorer(tower.model, base.projection, base.preprocessor, Machine.on(CPU, "float32"))
    pixels = normalised(torch.stack([to_pixels(p, base.preprocessor) for p in pictures]), base.preprocessor)
    with torch.inference_mode():
        ours = base.logit_scale * scorer.features(pixels, "float32") @ make_head(base, task, Progress()).T
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_head_is_computed_once_and_again_if_its_file_is_broken(clip: Path) -> None:
    from hfcart import hub

    base, task = open_base(str(clip), Progress()), TaskCard(**card())
    first = Steps()
    head = make_head(base, task, first)
    assert any("Computing" in step for step in first.steps)
    again = Steps()
    assert torch.equal(make_head(base, task, again), head) and not again.steps
    (kept,) = hub.assets("heads").rglob("*.safetensors")
    for broken in (b"", b"\x00" * 64, kept.read_bytes()[:-8]):
        kept.write_bytes(broken)
        assert torch.equal(make_head(base, task, Steps()), head)
    other = task.model_copy(update={"templates": ("{}",)})
    told = Steps()
    assert not torch.allclose(make_head(base, other, told), head) and told.steps


TWO_ENDS = {"SpecialToken": {"id": END, "type_id": 0}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"post_processor": None, "normalizer": {"type": "Replace", "pattern": {"Regex": ".*"}, "content": ""}}, "0"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [TWO_ENDS] * 100, "pair": [],
                             "special_tokens": {END: {"id": END, "ids": [513], "tokens": [END]}}}}, "100"),
    ],
)  # fmt: skip
def test_a_stranger_s_tokenizer_is_held_against_the_text_tower(clip: Path, tmp_path: Path, change, said) -> None:
    for path in clip.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    fields = json.loads((clip / "tokenizer.json").read_text()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(CorruptFileError, match=f"its tokenizer gives {said} tokens for a prompt"):
        make_head(open_base(str(tmp_path), Progress()), TaskCard(**card()), Progress())


# --- the base -------------------------------------------------------------------------------------------------------


def tower_of(clip: Path, folder: Path, readme: str = "") -> Path:
    CLIPModel.from_pretrained(clip).vision_model.save_pretrained(folder)
    (folder / "README.md").write_text(readme)
    return folder


def test_the_base_is_what_the_tower_says(clip: Path, tmp_path: Path) -> None:
    plain = load_tower(str(tower_of(clip, tmp_path / "tower", "---\nbase_model: user/clip\n---\n")), Progress())
    assert base_of(plain, Progress()) == "user/clip"
    whole = load_tower(str(clip), Progress())
    assert whole.is_clip and str(base_of(whole, Progress())) == str(clip)
    silent = load_tower(str(tower_of(clip, tmp_path / "silent")), Progress())
    with pytest.raises(UsageError, match="--base|tells which") as error:
        base_of(silent, Progress())
    assert error.value.hint == "Give it: --base user/name"


@pytest.mark.parametrize("record", [b"{}", b"[", b'{"kind": "finetune"}'])
def test_a_record_that_is_none_says_which_option_helps(clip: Path, tmp_path: Path, record: bytes) -> None:
    folder = tower_of(clip, tmp_path / "tower", "---\nbase_model: user/clip\n---\n")
    (folder / "hfcart.json").write_bytes(record)
    with pytest.raises(VerifyError, match=r"tower/hfcart.json is not a") as error:
        base_of(load_tower(str(folder), Progress()), Progress())
    assert "--base user/name" in str(error.value.hint)


@pytest.mark.parametrize(
    ("config", "field"),
    [({"patch_size": 4}, "patch_size"), ({"hidden_size": 64}, "hidden_size"), ({"image_size": 32}, "image_size")],
)
def test_another_base_is_refused(clip: Path, tmp_path: Path, config: dict, field: str) -> None:
    """The trap: a head of another patch size has the right width, and scores at random without an error."""
    from towers import TINY

    other = open_base(str(write_clip(tmp_path / "other", 1, {**TINY, **config})), Progress())
    tower = load_tower(str(tower_of(clip, tmp_path / "tower")), Progress())
    with pytest.raises(MismatchError, match="at random") as error:
        check_base(tower, other, Progress())
    assert any(field in what for _, what, _, _ in error.value.rows)


def test_a_projection_of_its_own_that_differs_is_told(clip: Path, tmp_path: Path) -> None:
    tower = load_tower(str(clip), Progress())
    told = Steps()
    check_base(tower, open_base(str(clip), Progress()), told)
    assert not told.warnings
    check_base(tower, open_base(str(write_clip(tmp_path / "other", 1)), Progress()), told)
    assert "projection of its own" in told.warnings[0]


def test_a_vision_tower_is_no_base(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="vision tower only"):
        open_base(str(tower_of(clip, tmp_path / "tower")), Progress())


# --- scoring --------------------------------------------------------------------------------------------------------


class Pictures:
    """A split whose images are in memory."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def examples(self, shard: int = 0, shards: int = 1, chunk: int = 32) -> Iterator[Example]:
        for i, file in enumerate(self.files):
            if (i // chunk) % shards == shard:
                yield Example(i, file, i % 4)


@pytest.fixture(scope="module")
def tower(clip: Path) -> LoadedTower:
    return load_tower(str(clip), Progress())


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [png(image(i % 4, i)) for i in range(237)] + [b"not an image", b""]


def spread(tower: LoadedTower, projection: torch.Tensor, pictures: Sequence[bytes]) -> torch.Tensor:
    """A head that tells these images apart: an untrained text tower's classes lie anywhere else."""
    fields = clip_default(16)
    pixels = normalised(torch.stack([to_pixels(decode(p), fields) for p in pictures[:40]]), fields)
    with torch.no_grad():
        features = torch.nn.functional.normalize(tower.model(pixel_values=pixels).pooler_output @ projection.T, dim=-1)
    means = torch.stack([features[i::4].mean(dim=0) for i in range(4)])
    return torch.nn.functional.normalize(means - means.mean(dim=0), dim=-1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_counts_do_not_depend_on_how_the_work_is_cut(clip, tower, pictures, precision) -> None:
    projection = open_base(str(clip), Progress()).projection
    head, fields = spread(tower, projection, pictures), clip_default(16)

    def counts(batch_size: int, workers: int, shards: int) -> tuple[list[list[int]], int]:
        total, bad = torch.zeros(4, 4, dtype=torch.int64), 0
        machine = Machine.on(CPU, precision, workers, batch_size)
        for shard in range(shards):
            scorer = Scorer(tower.model, projection, fields, machine)
            found, undecodable = score(
                Pictures(pictures), [scorer], head, machine,
                shard=shard, shards=shards, progress=Progress(),
            )  # fmt: skip
            total, bad = total + found[0], bad + undecodable
        return total.tolist(), bad

    first = counts(32, 1, 1)
    assert sum(map(sum, first[0])) == 237 and first[1] == 2
    for cut in ((1, 2, 1), (7, 1, 1), (64, 3, 1), (32, 1, 3), (5, 2, 2)):
        assert counts(*cut) == first

    # The same restated: one image at a time, in float64, with transformers' processor.
    model = CLIPVisionModel.from_pretrained(clip).double()
    processor = CLIPImageProcessorPil.from_pretrained(clip)
    right = [[0] * 4 for _ in range(4)]
    for i, file in enumerate(pictures[:237]):
        picture = Image.open(io.BytesIO(file)).convert("RGB")
        with torch.no_grad():
            features = model(processor(images=picture, return_tensors="pt")["pixel_values"].double()).pooler_output
        right[i % 4][int((features @ projection.double().T @ head.double().T).argmax())] += 1
    if precision == "float32":
        assert first[0] == right


def test_near_ties_are_decided_in_float64(clip, tower, pictures) -> None:
    """Two classes a millionth apart: float32 would decide by how the sums are cut, float64 knows."""
    projection = open_base(str(clip), Progress()).projection
    one = spread(tower, projection, pictures)[:1]
    nudge = torch.nn.functional.normalize(torch.randn(1, one.shape[1], generator=torch.Generator().manual_seed(0)))
    head = torch.nn.functional.normalize(torch.cat([one, one + 2e-7 * nudge]), dim=-1)
    assert 0 < float((head[0] - head[1]).abs().max()) < 1e-5
    fields = clip_default(16)
    images = torch.stack([to_pixels(decode(p), fields) for p in pictures[:60]])
    model, exact = CLIPVisionModel.from_pretrained(clip).double(), []
    for picture in normalised(images, fields).double():
        with torch.no_grad():
            features = model(pixel_values=picture[None]).pooler_output @ projection.double().T
        cosines = torch.nn.functional.normalize(features, dim=-1) @ head.double().T
        exact.append(int(cosines.argmax()))
    assert 0 < sum(exact) < 60  # both classes win somewhere
    for precision in ("float32", "bfloat16"):
        scorer = Scorer(tower.model, projection, fields, Machine.on(CPU, precision))
        for size in (1, 9, 60):
            found = torch.cat([scorer.predict(part, head) for part in images.split(size)])
            assert found.tolist() == exact


def test_a_broken_tower_is_named(clip, pictures) -> None:
    broken = load_tower(str(clip), Progress())
    with torch.no_grad():
        broken.model.post_layernorm.weight.fill_(float("nan"))
    base = open_base(str(clip), Progress())
    scorer = Scorer(broken.model, base.projection, base.preprocessor, Machine.on(CPU, "float32"), label="user/x")
    with pytest.raises(NonFiniteError, match="user/x gives NaN"):
        score(Pictures(pictures), [scorer], torch.eye(4, 24), Machine.on(CPU, "float32"), progress=Progress())  # type: ignore[arg-type]


# --- the command ----------------------------------------------------------------------------------------------------


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
    import subprocess

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
        done = subprocess.run(
            [sys.executable, *launch, *command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
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

    with pytest.raises(UsageError, match=f"--{next(iter(option))} is"):
        hfcart.evaluate(clip, ["mnist"], **option)


def test_python_is_warned_of_what_an_evaluation_could_not_measure(zoo, clean_env: dict[str, str], tmp_path) -> None:
    hub, root = zoo
    code = (
        "import hfcart, sys\n"
        "hfcart.evaluate('user/t1', [sys.argv[1]], references='measured', limit=4)\n"
    )  # fmt: skip
    env = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf-home")}
    command = [sys.executable, "-c", code, f"{root}/images1.yaml"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
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
        assert command[:4] == ["push", f"{repo[5:]}-results", "--to", repo]
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
    (bad,) = commands(hub, [["push", "late-results", "--to", "user/late"]])
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
