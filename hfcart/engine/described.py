"""What says how the merged weights are loaded: transformers' config.json and preprocessor, or OpenCLIP's one config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfcart.clip import open_clip
from hfcart.clip.architecture import differences, output_config, read_architecture
from hfcart.clip.to_open_clip import NO_REPO, model_cfg, tokenizer_cfg
from hfcart.engine.plan import TORCH_NAME, Plan
from hfcart.errors import VerifyError
from hfcart.formats.safetensors_file import strict_json
from hfcart.progress import Progress
from hfcart.sources.full_clip import BaseParts, clip_config, read_text_config
from hfcart.sources.preprocessor import FILE as PREPROCESSOR
from hfcart.sources.preprocessor import clip_default, preprocess_cfg, to_json
from hfcart.system.disk import explain_os_errors

_CLASS = {"tokenizer_class": "CLIPTokenizer"}


def describing_files(plan: Plan, preprocessor: dict[str, Any] | None) -> dict[str, bytes]:
    """File name -> bytes of what describes the output, the tokenizer's files among them.

    Args:
        plan: of the merge.
        preprocessor: the image preprocessing in its canonical form; None for CLIP's own.

    Raises:
        UsageError: OpenCLIP was asked for, and has no such preprocessing.
    """
    size = plan.architecture.image_size
    fields = preprocessor or clip_default(size)
    if plan.parts and plan.recipe.format == "open_clip":
        config = {"model_cfg": _model_cfg(plan, plan.parts), "preprocess_cfg": preprocess_cfg(fields, size)}
        return {open_clip.CONFIG: to_json(config), **_with_class(plan.parts.tokenizer)}
    dtype = TORCH_NAME[plan.dtype]
    if plan.parts:
        config = clip_config(plan.architecture, plan.parts, dtype)
    else:
        config = output_config(plan.architecture, plan.model_class, dtype)
    tokenizer = plan.parts.tokenizer if plan.parts else {}
    return {"config.json": to_json(config), PREPROCESSOR: to_json(fields), **tokenizer}


def refuse_undescribable(plan: Plan, preprocessor: dict[str, Any] | None, progress: Progress) -> None:
    """Raise what `describing_files` would, before anything is computed.

    Args:
        plan: of the merge.
        preprocessor: as for `describing_files`.
        progress: warned if open_clip finds the tokenizer of the folder, and not that of the published model.
    """
    describing_files(plan, preprocessor)
    if not plan.parts or plan.recipe.format != "open_clip":
        return
    if _model_cfg(plan, plan.parts)["text_cfg"].get("hf_tokenizer_name") == NO_REPO:
        progress.warn(
            "The base's tokenizer is not CLIP's own, and no Hub repo has it at its top level: open_clip.get_tokenizer "
            "finds it in the folder, but not for the published model. There it is "
            'open_clip.tokenizer.HFTokenizer("user/merged"), as the card says.'
        )


def _model_cfg(plan: Plan, parts: BaseParts) -> dict[str, Any]:
    config = model_cfg(plan.architecture, parts.text_config)
    store = plan.base.store if plan.base else None
    repo = store.repo if store and store.path is None else None
    config["text_cfg"] |= tokenizer_cfg(parts.tokenizer, repo, store.commit if store else None)
    return config


def _with_class(tokenizer: dict[str, bytes]) -> dict[str, bytes]:
    """A tokenizer that says of which class it is: without a config.json nothing else tells transformers."""
    name = "tokenizer_config.json"
    config = strict_json(tokenizer.get(name, b"{}"))
    return tokenizer if config.get("tokenizer_class") else {**tokenizer, name: to_json({**config, **_CLASS})}


def read_describing_back(folder: Path, plan: Plan) -> None:
    """The written config must read as the merged architecture: what hfcart reads, its library loads (a test).

    Raises:
        VerifyError: it does not.
    """
    own = plan.recipe.format == "open_clip"
    with explain_os_errors(folder):
        config = strict_json((folder / (open_clip.CONFIG if own else "config.json")).read_bytes())
    read = open_clip.read_open_clip_config if own else read_architecture
    found = read(config, folder.name)
    if plan.parts:
        text = open_clip.read_open_clip_text(config, folder.name) if own else config["text_config"]
        read_text_config({"text_config": text}, folder.name)
        # Where a text ends is said otherwise in OpenCLIP's words.
        for name, value in text.items() if own else ():
            if name != "eos_token_id" and value != (written := plan.parts.text_config[name]):
                raise VerifyError(f"{name} of the text tower reads back as {value}, not as {written}.")
    if rows := differences(found, plan.architecture, projection=True):
        raise VerifyError(f"{rows[0][0]} reads back as {rows[0][2]}, not as {rows[0][1]}, which was written.")
