"""The Hugging Face Hub: sources pinned to a commit and read, a finished folder published in one commit.

The only package that imports huggingface_hub.
"""

from hfcart.hub._assets import assets, write_whole
from hfcart.hub._benchmarks import BenchmarkTask, benchmark_result, benchmark_tasks
from hfcart.hub._calls import is_offline
from hfcart.hub._card import validate_card
from hfcart.hub._commit import Published, publish_files
from hfcart.hub._datasets import (
    PinnedDataset,
    cache_folder,
    call_datasets,
    check_access,
    dataset_failure,
    dataset_files,
    pin_dataset,
    read_dataset_file,
)
from hfcart.hub._fetch import cached, fetch, read_small
from hfcart.hub._http import end_with, reset_notifier, set_notifier
from hfcart.hub._publish import publish, publishable, push_command
from hfcart.hub._read import Snapshot, is_open, read_into, resolve, split_ref
from hfcart.hub._store import HubStore, open_repo
from hfcart.hub._target import Target, check_target
from hfcart.hub._tree import RepoFile

__all__ = [
    "BenchmarkTask",
    "HubStore",
    "PinnedDataset",
    "Published",
    "RepoFile",
    "Snapshot",
    "Target",
    "assets",
    "benchmark_result",
    "benchmark_tasks",
    "cache_folder",
    "cached",
    "call_datasets",
    "check_access",
    "check_target",
    "dataset_files",
    "dataset_failure",
    "end_with",
    "fetch",
    "is_offline",
    "is_open",
    "open_repo",
    "pin_dataset",
    "publish",
    "publish_files",
    "publishable",
    "push_command",
    "read_dataset_file",
    "read_into",
    "read_small",
    "reset_notifier",
    "resolve",
    "set_notifier",
    "split_ref",
    "validate_card",
    "write_whole",
]
