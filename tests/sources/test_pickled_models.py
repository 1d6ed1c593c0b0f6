"""Whole pickled models, of classes that nobody has: read as data, with inert stand-ins; nothing of the file runs."""

from __future__ import annotations

import copyreg
import pickle
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from forms import WIDE, open_clip_names
from merging import merged
from safetensors.torch import load_file
from towers import weights

from hfcart.errors import CorruptFileError
from hfcart.sources.pickles import convert

FORMATS = [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}, {"pickle_protocol": 5}]


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module of classes that is there while a file is written, and nowhere when it is read."""
    module = types.ModuleType("research.modeling")
    source = """
import torch

class Attention(torch.nn.MultiheadAttention): pass

class Block(torch.nn.Module):
    def __init__(self, d, f):
        super().__init__()
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(d), torch.nn.LayerNorm(d)
        self.attn = Attention(d, 1)
        self.mlp = torch.nn.Sequential(__import__("collections").OrderedDict(
            c_fc=torch.nn.Linear(d, f), gelu=torch.nn.GELU(), c_proj=torch.nn.Linear(f, d)))

class Transformer(torch.nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.resblocks = torch.nn.ModuleList(Block(cfg["hidden_size"], cfg["intermediate_size"])
                                             for _ in range(cfg["num_hidden_layers"]))

class Visual(torch.nn.Module):
    def __init__(self, cfg):
        super().__init__()
        d, p = cfg["hidden_size"], cfg["patch_size"]
        self.conv1 = torch.nn.Conv2d(3, d, p, p, bias=False)
        self.class_embedding = torch.nn.Parameter(torch.zeros(d))
        self.positional_embedding = torch.nn.Parameter(torch.zeros((cfg["image_size"] // p) ** 2 + 1, d))
        self.ln_pre, self.ln_post = torch.nn.LayerNorm(d), torch.nn.LayerNorm(d)
        self.transformer = Transformer(cfg)
        self.proj = torch.nn.Parameter(torch.zeros(d, cfg["projection_dim"]))

class Model(torch.nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.visual = Visual(cfg)
        self.logit_scale = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("attn_mask", torch.zeros(3, 3), persistent=False)
        self.names, self.preprocess = {"a", "b"}, preprocess

class ImageEncoder(torch.nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.model, self.args = Model(cfg), Args()
        self.cache_dir = None

class Args:
    __slots__ = ("lr", "device", "__dict__")
    def __init__(self):
        self.lr, self.device, self.dtype = 1e-5, torch.device("cpu"), torch.float32
        self.path = __import__("pathlib").Path("x")

def preprocess(image):
    return image
"""
    monkeypatch.setitem(sys.modules, "research", types.ModuleType("research"))
    monkeypatch.setitem(sys.modules, "research.modeling", module)
    exec(compile(source, "modeling", "exec"), module.__dict__)
    yield module


def written(module: types.ModuleType, path: Path, wrap: Callable[[Any], Any] = lambda x: x, **options: Any) -> None:
    """A tower as the task arithmetic papers leave it, a pickled module; then its classes are gone."""
    encoder = module.ImageEncoder(WIDE)
    state = {f"model.{n}": t for n, t in open_clip_names(weights(1, WIDE, projection=True)).items()}
    missing, unexpected = encoder.load_state_dict(state, strict=False)
    assert missing == ["model.logit_scale"] and not unexpected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(wrap(encoder), path, **options)
    del sys.modules["research.modeling"]


WRAPPED: dict[str, Callable[[Any], Any]] = {
    "alone": lambda model: model,
    "under a key": lambda model: {"epoch": 3, "model": model, "optimizer": {"state": {}, "lr": 0.1}},
    "in parallel": lambda model: torch.nn.DataParallel(model),
    "its state": lambda model: {"state_dict": model.state_dict(), "args": model.args},
}


@pytest.mark.parametrize("options", FORMATS)
@pytest.mark.parametrize("case", WRAPPED)
def test_a_model_of_classes_that_nobody_has(tmp_path: Path, gone: types.ModuleType, case: str, options: dict) -> None:
    (tmp_path / "Cars").mkdir()
    written(gone, tmp_path / "Cars" / "finetuned.pt", WRAPPED[case], **options)
    fields = {"method": "average", "activation": "quick_gelu", "with_projection": True}
    found = merged([tmp_path / "Cars" / "finetuned.pt"], tmp_path / "m", **fields)
    expected = weights(1, WIDE, projection=True)
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in found)


CANARY = "canary"


def create(name: str = CANARY) -> None:
    """What every gadget below would call."""
    Path(name).touch()


class Gadget:
    """Pickles as a call of something, given as `__reduce__` does."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


class Stateful:
    """An object whose attributes are set by BUILD."""

    def __init__(self, **state: Any) -> None:
        self.__dict__ |= state


def module_of(gadget: Any) -> Any:
    model = torch.nn.Linear(2, 2)
    model.trap = gadget
    return model


CALLS = {
    "a system call": lambda: Gadget(__import__("os").system, (f"touch {CANARY}",)),
    "eval": lambda: Gadget(eval, (f"open({CANARY!r}, 'w')",)),
    "exec": lambda: Gadget(exec, (f"open({CANARY!r}, 'w')",)),
    "open": lambda: Gadget(open, (CANARY, "w")),
    "a process": lambda: Gadget(__import__("subprocess").Popen, (["touch", CANARY],)),
    "a path": lambda: Gadget(Path.touch, (Path(CANARY),)),
    "a partial": lambda: Gadget(partial(create, CANARY), ()),
    "a function of ours": lambda: Gadget(create, ()),
    "torch.load": lambda: Gadget(torch.load, (CANARY,)),
    "torch.save": lambda: Gadget(torch.save, ({}, CANARY)),
    "nested bytes": lambda: Gadget(pickle.loads, (pickle.dumps(Gadget(create, ())),)),
    "a storage of bytes": lambda: Gadget(torch.storage._load_from_bytes, (pickle.dumps(Gadget(create, ())),)),
    "getattr": lambda: Gadget(getattr, (Path(CANARY), "touch")),
    "copyreg": lambda: Gadget(copyreg._reconstructor, (Stateful, object, None)),
    "a state of its own": lambda: Gadget(OrderedDict, (), {"__class__": Stateful, "__reduce__": create}),
    "items": lambda: Gadget(OrderedDict, (), None, None, iter([("a", Gadget(create, ()))])),
    "a setter": lambda: Gadget(OrderedDict, (), {"x": 1}, None, None, create),
    "import": lambda: Gadget(__import__, ("os",)),
    "a tensor's hook": lambda: Gadget(torch._utils._rebuild_tensor_v2, (None, 0, (), (), False, Gadget(create, ()))),
}
PLACES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda gadget: gadget,
    "beside a tensor": lambda gadget: {"a": torch.zeros(2), "b": gadget},
    "under state_dict": lambda gadget: {"state_dict": {"a": torch.zeros(2)}, "args": [({"x": gadget},)]},
    "twice, by the memo": lambda gadget: [gadget, gadget, {"a": gadget}],
    "in a module": module_of,
    "in the state of an object": lambda gadget: Stateful(trap=gadget, state_dict={"a": torch.zeros(2)}),
    "as a key": lambda gadget: {"a": torch.zeros(2), (gadget,): 1},
}


def forms(value: Any) -> Iterator[bytes]:
    """A value in every way to pickle it: torch's archives and its old files, and bare, by every protocol."""
    for protocol in range(6):
        for zipped in (True, False):
            out = BytesIO()
            try:
                torch.save(value, out, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
            except Exception:  # what torch itself cannot write is no file to be read
                continue
            yield out.getvalue()
        try:
            yield pickle.dumps(value, protocol)
        except Exception:
            continue


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", CALLS)
def test_nothing_of_a_gadget_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, place: str) -> None:
    """Whatever becomes of the file: no canary, no module imported, and tensors alone or one sentence."""
    monkeypatch.chdir(tmp_path)
    number = 0
    for data in forms(PLACES[place](CALLS[call]())):
        number += 1
        (tmp_path / "w.bin").write_bytes(data)
        before = set(sys.modules)
        try:
            convert(tmp_path / "w.bin", tmp_path / "out.safetensors", "user/a/w.bin")
        except CorruptFileError as error:
            assert error.message.startswith("user/a/w.bin"), error.message
        else:
            assert set(load_file("out.safetensors")) <= {"a", "weight", "bias"}
            (tmp_path / "out.safetensors").unlink()
        assert {path.name for path in tmp_path.iterdir()} == {"w.bin"} and set(sys.modules) <= before | {"safetensors"}
    assert number


def test_the_canary_can_sing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own unpickler runs them: the test above can fail."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(PLACES["in a module"](CALLS["a function of ours"]())))  # noqa: S301
    assert Path(CANARY).exists()


def test_modules_in_a_circle_and_without_end(tmp_path: Path) -> None:
    """Each module twice within the one above: 2^40 paths in a file of some thousand bytes; and one in itself."""
    deep = torch.nn.Linear(2, 2)
    for _ in range(40):
        deep = torch.nn.ModuleDict({"a": deep, "b": deep})
    circle = torch.nn.Module()
    circle._modules["own"] = circle
    for model in (deep, circle):
        torch.save(model, tmp_path / "w.bin")
        with pytest.raises(CorruptFileError, match="more modules than any has"):
            convert(tmp_path / "w.bin", tmp_path / "out.safetensors", "user/a/w.bin")
