"""Datasets that are benchmarks: an eval.yaml declares their tasks, and model repos report results to them.

The Hub's rules (https://huggingface.co/docs/hub/eval-results): a result in `.eval_results/*.yaml` counts where the
dataset's eval.yaml has a task of that id. Whether the Hub has let the dataset in as a benchmark is not in the file;
where it has not, the result is shown nowhere and does no harm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from hfcart.errors import CorruptFileError
from hfcart.formats import safe_yaml
from hfcart.hub._datasets import PinnedDataset, read_dataset_file

FILE = "eval.yaml"
MAX_FILE = 1 << 16  # bytes
_MOST_TASKS = 1000
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/+-]{0,95}")
_NAME = re.compile(r"\w[\w .:/+-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class BenchmarkTask:
    """One task of a benchmark: its id, and the configuration and split of the dataset it is measured on."""

    id: str
    config: str
    split: str


def benchmark_tasks(repo: str, commit: str) -> list[BenchmarkTask]:
    """The tasks that a dataset declares as a benchmark, in its file's order.

    Args:
        repo: the dataset, `user/name`.
        commit: 40 hex digits.

    Returns:
        The tasks; none if the commit holds no eval.yaml, or one that declares nothing usable. A task without a
        configuration or a split means `default` and `test`. What does not have the form it must have is left out.

    Raises:
        SourceError, HubError: the dataset cannot be read.
    """
    try:
        data = read_dataset_file(PinnedDataset(repo, None, commit), FILE, MAX_FILE)
    except CorruptFileError:  # too large to be one
        return []
    try:
        found = safe_yaml.load((data or b"").decode())
    except (ValueError, yaml.YAMLError):
        return []
    entries = found.get("tasks") if isinstance(found, dict) else None
    # Without a framework it is not the file that the Hub documents, but some other tool's.
    if not isinstance(entries, list) or not isinstance(found.get("evaluation_framework"), str):
        return []
    return [task for entry in entries[:_MOST_TASKS] if (task := _task(entry)) is not None]


def _task(entry: object) -> BenchmarkTask | None:
    if not isinstance(entry, dict):
        return None
    name, config, split = entry.get("id"), entry.get("config", "default"), entry.get("split", "test")
    if not (isinstance(name, str) and isinstance(config, str) and isinstance(split, str)):
        return None
    if not _ID.fullmatch(name) or not _NAME.fullmatch(config) or not _NAME.fullmatch(split):
        return None
    return BenchmarkTask(name, config, split)


def benchmark_result(dataset: str, task: str, commit: str, value: float, *, page: str, notes: str) -> bytes:
    """A file for `.eval_results/`: one result, as the client writes it.

    Args:
        dataset: `user/name`.
        task: id of the task in the dataset's eval.yaml.
        commit: of the dataset.
        value: accuracy as a share of 1.
        page: where the result comes from.
        notes: how it was measured, a few words.
    """
    entry = EvalResultEntry(
        dataset_id=dataset,
        task_id=task,
        value=value,
        dataset_revision=commit,
        source_url=page,
        source_name="hfcart",
        notes=notes,
    )
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True).encode()
