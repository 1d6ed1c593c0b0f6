"""Records as merges and evaluations leave them, without a merge or an evaluation; and some as no one should."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random

from towers import TINY, shapes

from hfcart.methods import METHODS
from hfcart.records import (
    Architecture,
    CardFacts,
    ClassScore,
    DatasetRecord,
    Environment,
    EvalRecord,
    FileRecord,
    MergeRecord,
    MethodRecord,
    Reference,
    Similarity,
    SourceRecord,
    TaskResult,
    TensorRecord,
)

VIT_B32 = {
    **TINY,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "projection_dim": 512,
}
TASKS = ("sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


NONE, MIT, APACHE = CardFacts(), CardFacts("mit"), CardFacts("apache-2.0")


def hub_source(repo: str, facts: CardFacts = NONE, revision: str | None = None) -> SourceRecord:
    files = (FileRecord("model.safetensors", 349_857_480, digest(repo)),)
    return SourceRecord(repo, repo, revision, digest(repo)[:40], digest(repo), files, facts)


def local_source(label: str, facts: CardFacts = NONE) -> SourceRecord:
    return SourceRecord(label, None, None, None, digest("local"), (), facts)


def eight_towers() -> tuple[SourceRecord, ...]:
    facts = CardFacts(datasets=("tanganke/sun397",))
    return tuple(
        hub_source(f"tanganke/clip-vit-base-patch32_{task}", facts if task == "sun397" else NONE) for task in TASKS
    )


def make_record(
    sources: tuple[SourceRecord, ...] | None = None,
    *,
    method: str = "cart",
    cfg: dict = VIT_B32,
    qkv: str = "split",
    base: SourceRecord | None = None,
    projection: bool = False,
    **changes: object,
) -> MergeRecord:
    """A record as a merge of towers of this shape would leave it, with made-up energies and cosines."""
    sources = eight_towers() if sources is None else sources
    rng = random.Random(8)
    used = METHODS[method]
    parameters = {p.name: p.default for p in used.parameters}
    tensors, energies = [], {}
    for name, shape in shapes(cfg, projection=projection).items():
        matrix = name.endswith("_proj.weight") and "encoder" in name or ".fc" in name and name.endswith("weight")
        low_rank = matrix and "rank" in parameters
        energy = full = None
        if low_rank:
            layer, full = int(name.split(".")[3]), min(shape)
            key = (layer, "qkv") if qkv == "fused" and name.split(".")[-2][1:] == "_proj" else name
            value = 0.38 + 0.025 * layer * (shape[0] == shape[1]) + 0.1 * rng.random()
            energy = energies.setdefault(key, round(min(value, 1), 6))
        rank = max(1, math.floor(parameters["rank"] * full)) if full else None
        rule = used.rule_name(matrix=matrix)
        tensors.append(TensorRecord(name, shape, "F32", rule, rank, full, energy, False, digest(name)))
    count = len(sources)
    cosine = [
        [1.0 if i == j else round(-1 / max(count - 1, 1) + rng.gauss(0, 0.06), 6) for j in range(count)]
        for i in range(count)
    ]
    cosine = [[cosine[min(i, j)][max(i, j)] for j in range(count)] for i in range(count)]
    similarity = Similarity(
        "base" if base else "mean",
        tuple(map(tuple, cosine)),
        tuple(float(f"{0.03 + 0.02 * rng.random():.6g}") for _ in range(count)),
    )
    record = MergeRecord(
        recipe={
            "sources": [f"{s.repo}@{s.commit}" if s.repo else {"path": s.label, "sha256": s.sha256} for s in sources],
            "method": method,
            **parameters,
            "base": f"{base.repo}@{base.commit}" if base else None,
            "qkv": qkv,
            "dtype": "float32",
            "max_shard_size": "5GB",
            "with_projection": projection,
            "allow_distant": False,
        },
        method=MethodRecord(
            used.name,
            used.title,
            used.formula,
            used.matrices,
            used.others,
            parameters,
            used.arxiv,
            used.citation,
            used.needs_base,
        ),
        sources=sources,
        base=base,
        architecture=Architecture(**cfg),
        model_class="CLIPVisionModelWithProjection" if projection else "CLIPVisionModel",
        parameters=sum(math.prod(t.shape) for t in tensors),
        dtype="float32",
        tensors=tuple(tensors),
        similarity=similarity if count > 1 or base else None,
        environment=Environment(
            "0.1.0",
            "2.13.0+cpu",
            "3.11.9",
            "Linux x86_64",
            "cpu",
            "Intel(R) Xeon(R) Processor @ 2.70GHz (AVX512)",
            "gram",
        ),
        files={
            name: digest(name)
            for name in ("config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml")
        },
    )
    return dataclasses.replace(record, **changes)


def make_result(task: str, counts: list[tuple[int, int]] | None = None, **changes: object) -> TaskResult:
    """One task's result with (n, correct) of each class; a whole test split unless told otherwise."""
    counts = counts or [(60, 45), (40, 25)]
    dataset = DatasetRecord(f"user/{task}", None, "test", digest(task)[:40])
    classes = tuple(ClassScore(f"class {i}", n, correct) for i, (n, correct) in enumerate(counts))
    rows = sum(n for n, _ in counts)
    result = TaskResult(task, task.upper(), dataset, "test", rows, None, 0, 0, digest(f"card {task}"), classes)
    return dataclasses.replace(result, **changes)


def make_results(record: MergeRecord | None, *results: TaskResult, **changes: object) -> EvalRecord:
    """An evaluation of the tower that this merge made (or of one that no merge made)."""
    weights = record.files["model.safetensors"] if record else digest("weights")
    environment = (record or make_record()).environment
    base, commit = "openai/clip-vit-base-patch32", digest("base")[:40]
    made = EvalRecord("user/merged", weights, base, commit, "float32", results or (make_result("svhn"),), environment)
    return dataclasses.replace(made, **changes)


def published(value: float) -> Reference:
    return Reference("user/one", value, measured=False)


HOSTILE = [
    "---\nlicense: mit",
    "\n---\n\n# Owned\n",
    "mit\nlicense_name: owned",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- ",
    "](javascript:alert(1))",
    "[x](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "<https://evil.example>",
    "https://evil.example/x",
    "` [x](https://evil.example) `",
    "``` \n```\n# Owned\n",
    "a | b | c\n| d",
    "\\",
    "\\|",
    "\\`",
    "$$\\href{https://evil.example}{x}$$",
    "\\\\(x\\\\)",
    "{{ record }}{% raw %}",
    "&lt;b&gt;",
    "safe\u202egpj.exe",
    "\u2066x\u2069\u200b",
    "line\u2028separator\u0085x",
    "\x00\x1b[31m\x7f",
    "\udc80",
    "",
    " ",
    "x" * 5000,
]


def poisoned(value: str) -> MergeRecord:
    facts = CardFacts(value, value, value, (value, "user/good"), (value, "en"), (value,))
    evil = SourceRecord(value, value, value, value, value, (FileRecord(value, 1, value),), facts)
    owned = SourceRecord(value, None, None, None, value, (), facts)
    return make_record(
        (
            hub_source("a/x", MIT, revision=value),
            dataclasses.replace(evil, label=f"{value}2"),
            dataclasses.replace(hub_source("b/y"), commit=value),
            owned,
        ),
        cfg=TINY,
        similarity=Similarity("mean", (), (0.1, 0.2, 0.3, 0.4)),
    )


def poisoned_results(record: MergeRecord, value: str) -> EvalRecord:
    data = DatasetRecord(value, value, value, value)
    other = DatasetRecord("user/good", value, value, "5" * 40)
    scores = (ClassScore(value, 3, 1),)
    reference = Reference(value, 0.5, measured=False)
    result = TaskResult(value, value, data, value, 3, None, 0, 0, value, scores, reference, reference)
    whole = dataclasses.replace(result, dataset=other, part="test", undecodable=1)
    sample = dataclasses.replace(result, dataset=other, part="test", limit=3, rows=9)
    environment = Environment(*[value] * 7)
    return EvalRecord(
        value, record.files["model.safetensors"], value, value, value, (result, whole, sample), environment
    )
