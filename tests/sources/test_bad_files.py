"""Bad input of every form that a source can have: a sentence that names file, expected and found, and a hint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from adapters import as_pickle, write_adapter
from forms import WIDE, open_clip_names, write_open_clip
from safetensors.torch import load_file, save_file
from towers import weights, write_tower

import hfcart
from hfcart.errors import CorruptFileError, HfcartError, MismatchError, NotATowerError

WIDER = {**WIDE, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512}


class ImageEncoder(torch.nn.Module):
    """A whole pickled model of a class that hfcart does not have."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            module: torch.nn.Module = self
            for part in name.split(".")[:-1]:
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            module.register_parameter(name.rsplit(".", 1)[-1], torch.nn.Parameter(tensor))


def pickled(folder: Path, cfg: dict[str, Any]) -> None:
    write_tower(folder, 1, cfg)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def module(folder: Path, cfg: dict[str, Any]) -> None:
    folder.mkdir()
    torch.save(ImageEncoder(open_clip_names(weights(1, cfg, projection=True))), folder / "finetuned.pt")


def classifier(folder: Path, cfg: dict[str, Any]) -> None:
    write_tower(folder, 1, cfg)
    head = {"classifier.weight": torch.zeros(3, cfg["hidden_size"]), "classifier.bias": torch.zeros(3)}
    path = folder / "model.safetensors"
    save_file(load_file(path) | head, path, metadata={"format": "pt"})
    config = {"model_type": "clip", "vision_config": cfg, "architectures": ["CLIPForImageClassification"]}
    (folder / "config.json").write_text(json.dumps(config))


def lora(folder: Path, cfg: dict[str, Any]) -> None:
    write_adapter(folder, write_tower(folder.with_name("its-base"), 0, cfg), 1, target_modules=["q_proj"])


def pickled_lora(folder: Path, cfg: dict[str, Any]) -> None:
    lora(folder, cfg)
    as_pickle(folder)


class Form(NamedTuple):
    """How a form is written, and the names of its weights and its config."""

    write: Callable[[Path, dict[str, Any]], object]
    weights: str
    config: str = "config.json"


FORMS = {
    "transformers": Form(lambda folder, cfg: write_tower(folder, 1, cfg), "model.safetensors"),
    "a pickle of transformers": Form(pickled, "pytorch_model.bin"),
    "OpenCLIP": Form(
        lambda folder, cfg: write_open_clip(folder, 1, cfg), "open_clip_model.safetensors", "open_clip_config.json"
    ),
    "a pickle of OpenCLIP": Form(
        lambda folder, cfg: write_open_clip(folder, 1, cfg, file="open_clip_pytorch_model.bin"),
        "open_clip_pytorch_model.bin",
        "open_clip_config.json",
    ),
    "a pickled module": Form(module, "finetuned.pt", ""),
    "CLIPForImageClassification": Form(classifier, "model.safetensors"),
    "LoRA": Form(lora, "adapter_model.safetensors", "adapter_config.json"),
    "a pickle of LoRA": Form(pickled_lora, "adapter_model.bin", "adapter_config.json"),
}
with_config = pytest.mark.parametrize("form", [form for form in FORMS.values() if form.config], ids=lambda f: f.weights)
every = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., HfcartError]:
    """Merge a tower, its sibling and the folder `odd`; the error, which has a hint, and leaves nothing behind."""
    good = [write_tower(tmp_path / name, seed, WIDE) for name, seed in (("base", 0), ("t1", 5), ("t2", 6))]

    def merge(*, base: bool = True, **fields: Any) -> HfcartError:
        given = {"base": str(good[0])} if base else {}
        with pytest.raises(HfcartError) as error:
            hfcart.merge(
                [str(good[1]), str(good[2]), str(tmp_path / "odd")], out=str(tmp_path / "m"), **given, **fields
            )
        assert error.value.hint and not (tmp_path / "m").exists()
        return error.value

    return merge


@every
def test_a_file_that_is_cut_short(form: Form, refused: Callable[..., HfcartError], tmp_path: Path) -> None:
    form.write(tmp_path / "odd", WIDE)
    path = tmp_path / "odd" / form.weights
    for kept in (len(path.read_bytes()) - 100, 0):
        path.write_bytes(path.read_bytes()[:kept])
        error = refused()
        assert isinstance(error, CorruptFileError) and error.message.startswith(f"odd/{form.weights} ")
        assert "cut short" in error.message if kept else "0 bytes" in error.message or "is empty" in error.message
        assert f"{kept:,}" in error.message or not kept


@every
def test_a_tower_of_another_architecture(form: Form, refused: Callable[..., HfcartError], tmp_path: Path) -> None:
    form.write(tmp_path / "odd", WIDER)
    error = refused()
    assert isinstance(error, MismatchError)
    if "adapter" in form.weights:  # it is of another base than the one that it is added to
        assert error.message.startswith("The LoRA adapter odd does not fit base, the base that it is added to.")
        name = "base_model.model.encoder.layers.{0-1}.self_attn.q_proj.lora_B.weight"
        assert ("odd", name, "float [64, 4]", "F32 [128, 4]") in error.rows
    else:
        assert error.message.startswith("1 of 4 towers differ from the rest in architecture: odd.")
        assert ("odd", f"{form.config or 'its shapes'}: hidden_size", "64", "128") in error.rows


@with_config
def test_a_config_that_is_missing(form: Form, refused: Callable[..., HfcartError], tmp_path: Path) -> None:
    form.write(tmp_path / "odd", WIDE)
    (tmp_path / "odd" / form.config).unlink()
    if "adapter" in form.weights:
        error = refused()
        assert error.message.startswith("odd holds LoRA's matrices and no adapter_config.json, which says what")
    else:
        error = refused(base=False)
        assert error.message.startswith("odd has neither config.json nor open_clip_config.json, and no shape shows")
        assert "activation" in (error.hint or "") and "base" in (error.hint or "")
    assert isinstance(error, NotATowerError)


@with_config
@pytest.mark.parametrize("content", ['{"model', "[]", ""])
def test_a_config_that_is_broken(form: Form, content: str, refused: Callable[..., HfcartError], tmp_path: Path) -> None:
    form.write(tmp_path / "odd", WIDE)
    (tmp_path / "odd" / form.config).write_text(content)
    error = refused()
    assert error.message.startswith("odd") and form.config in error.message


@pytest.mark.parametrize("form", ["transformers", "a pickle of transformers", "OpenCLIP", "CLIPForImageClassification"])
def test_a_config_of_another_tower(form: str, refused: Callable[..., HfcartError], tmp_path: Path) -> None:
    own = FORMS[form]
    own.write(tmp_path / "odd", WIDE)
    own.write(tmp_path / "other", WIDER)
    shutil.copy(tmp_path / "other" / own.config, tmp_path / "odd")
    error = refused()
    assert isinstance(error, MismatchError)
    assert f"1 of 4 towers hold other tensors than their own {own.config} describes: odd." in error.message
    assert ("odd", "vision_model.embeddings.class_embedding", "float [128]", "F32 [64]") in error.rows
