"""A folder as `hfcart finetune` leaves it, without a training."""

from __future__ import annotations

from pathlib import Path

from hfcart.recipes.finished_finetuning import RULE, read_finetune_record
from hfcart.recipes.finished_merge import read_record
from hfcart.records import (
    DatasetRecord,
    FileRecord,
    FinetuneRecord,
    SourceRecord,
    TensorRecord,
    TrainedTask,
    TrainingRecord,
)

NUMBERS = {"weight_decay": 0.1, "steps": 9, "batch_size": 8, "seed": 0, "max_grad_norm": 1.0, "warmup": 2}


def fine_tuned(merged: Path, folder: Path, task: str = "digits", base: str = "user/base") -> Path:
    """A folder that says it is a fine-tuning of user/base; its weights are the merge's."""
    folder.mkdir()
    record = read_record((merged / "hfcart.json").read_bytes(), "hfcart.json")
    files = {name: record.files[name] for name in ("config.json", "model.safetensors", "preprocessor_config.json")}
    for name in files:
        (folder / name).write_bytes((merged / name).read_bytes())
    made = FinetuneRecord(
        recipe={"base": f"{base}@{'1' * 40}", "tasks": [task], "precision": "float32", "lr": 1e-5, **NUMBERS},
        method=TrainingRecord("individual", "AdamW", (0.9, 0.999), 1e-8, "cosine", 1, 1.0, 0.5),
        sources=(SourceRecord(base, base, None, "1" * 40, "2" * 64, (FileRecord("model.safetensors", 9, "2" * 64),)),),
        tasks=(TrainedTask(task, task, DatasetRecord(f"user/{task}", None, "train", "3" * 40), 9, 0, "4" * 64),),
        architecture=record.architecture,
        model_class="CLIPVisionModel",
        parameters=record.parameters,
        dtype="float32",
        tensors=tuple(
            TensorRecord(t.name, t.shape, "F32", RULE, None, None, None, False, t.sha256) for t in record.tensors
        ),
        environment=record.environment,
        files=files,
    )
    (folder / "hfcart.json").write_text(made.to_json())
    assert read_finetune_record((folder / "hfcart.json").read_bytes(), "hfcart.json") == made
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tuned\n")
    (folder / "results").mkdir()
    (folder / "results" / "training.csv").write_text("step,loss\n1,0.5\n")
    return folder
