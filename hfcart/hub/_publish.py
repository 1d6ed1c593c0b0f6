"""Publishing a finished folder in one commit: what of it, and what of the repo may not stay beside it."""

from __future__ import annotations

import fnmatch
import os
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

from hfcart.errors import PublishError
from hfcart.hub._calls import publishing
from hfcart.hub._commit import Published, publish_files
from hfcart.hub._target import THE_HUBS_OWN, Target, create
from hfcart.records.file_names import AVERAGE

DOTTED = (".gitattributes", ".eval_results")  # the only names with a leading dot that are published
# What from_pretrained, of any framework, may load in place of the new weights.
WEIGHTS = (
    *("*.safetensors", "pytorch_model*.bin", "model*.bin", "adapter_model.bin", "*.pt", "*.pth", "*.ckpt"),
    *("tf_model*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.gguf", "*.index.json", "adapter_config.json"),
    # A tokenizer belongs to the text tower beside which it lay.
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "processor_config.json"),
    # What describes weights of one library's form: a merge is published in one of two.
    *("config.json", "preprocessor_config.json", "open_clip_config.json", "open_clip_pytorch_model.bin"),
)
# What hfcart writes of an evaluation: it is of one set of weights.
RESULT_FILES = ("results.json", "results/confusion-*.csv", ".eval_results/hfcart-*.yaml", "figures/accuracy.png")
# What hfcart writes of one merge or fine-tuning beside its weights; in a repo of somebody else's it may be theirs.
OURS = (
    *("recipe.yaml", "results/adaptation.csv", "results/training.csv"),
    *("figures/energy.png", "figures/similarity.png", "figures/coefficients.png", "figures/directions.png"),
    *("figures/entropy.png", "figures/agreement.png", "figures/training.png", "tasks/*.yaml"),
)


def publish(
    folder: Path,
    target: Target,
    *,
    private: bool,
    create_pr: bool,
    message: str,
    overwrite: bool = False,
    leave: Collection[str] = (),
    instead: Mapping[str, bytes] | None = None,
) -> Published:
    """Publish a folder in one commit on top of `target.head`; create the repo if need be. Safe to repeat.

    The same commit deletes weight files and indexes of the target that the folder lacks (an old
    model.safetensors beside new shards is what from_pretrained would load), hfcart's results of an older
    evaluation, which the Hub would show for the new weights, and whatever else hfcart wrote of what was there.

    Args:
        folder: its regular files are published; no links, and nothing with a leading dot but DOTTED.
        target: from `check_target`.
        private: for a repo that has to be created.
        create_pr: open a pull request, and leave main alone.
        message: of the commit; its first line is the title.
        overwrite: only for the command that a failure suggests.
        leave: files of the folder that are not published.
        instead: path -> content, in place of the folder's file of that name or beside its files.

    Raises:
        PublishError: refused, failed, or the target has changed since it was checked. The folder is untouched.
    """
    again = push_command(folder, target.repo, private, create_pr, overwrite)
    again = f"The folder is intact; to try again, run: {again}"
    folder = folder.resolve()
    with publishing(again):
        files: dict[str, bytes | Path] = {path: folder / path for path in publishable(folder) if path not in leave}
        files |= instead or {}
        if not files:
            raise PublishError(f"{folder.name} holds no files to publish.")
        head, there, kind = target.head, set(target.files), target.kind
        if head is None:
            head, there = create(target.repo, kind, private), THE_HUBS_OWN[kind]
    gone = sorted(path for path in there - files.keys() if _is_stale(path, target))
    return publish_files(
        target.repo,
        head,
        files,
        message=message,
        delete=gone,
        create_pr=create_pr,
        kind=kind,
        called=folder.name,
        again=again,
    )


def push_command(folder: Path, repo: str, private: bool, create_pr: bool, overwrite: bool) -> str:
    """The command that publishes a folder, to be typed."""
    flags = " --private" * private + " --create-pr" * create_pr + " --overwrite" * overwrite
    return f"hfcart push {shlex.quote(str(folder))} --push-to {repo}{flags}"


def publishable(folder: Path) -> list[str]:
    """What of a folder is published, relative to it, sorted."""
    found = []
    for place, folders, names in os.walk(folder):
        here = Path(place).relative_to(folder)
        folders[:] = [name for name in folders if not name.startswith(".") or (here / name).as_posix() in DOTTED]
        for path in [here / name for name in names if not name.startswith(".") or (here / name).as_posix() in DOTTED]:
            if (folder / path).is_file() and not (folder / path).is_symlink():
                found.append(path.as_posix())
    return sorted(found)


def _is_stale(path: str, target: Target) -> bool:
    """Whether a file may not stay beside new weights that do not bring it: it is of the weights that were there."""
    name, ours = path.rsplit("/", 1)[-1], target.made_by_hfcart
    if target.kind == "space":  # whatever else somebody put there is no model of the app's
        return ours and path.startswith(f"{AVERAGE}/")
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in WEIGHTS) or any(
        fnmatch.fnmatchcase(path, pattern) for pattern in (*RESULT_FILES, *(OURS if ours else ()))
    )
