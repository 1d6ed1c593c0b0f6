"""The Hugging Face Hub: sources pinned to a commit and read, a finished folder published in one commit.

The only package that imports huggingface_hub.
"""

from hfcart.hub._calls import set_notifier
from hfcart.hub._publish import Published, Target, check_target, publish, publishable, validate_card
from hfcart.hub._read import RepoFile, Snapshot, cached, fetch, read_bytes, read_small, resolve, split_ref
from hfcart.hub._store import HubStore

__all__ = [
    "HubStore",
    "Published",
    "RepoFile",
    "Snapshot",
    "Target",
    "cached",
    "check_target",
    "fetch",
    "publish",
    "publishable",
    "read_bytes",
    "read_small",
    "resolve",
    "set_notifier",
    "split_ref",
    "validate_card",
]
