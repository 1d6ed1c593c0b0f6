"""Pickles: what torch reads is what is converted; anything else is an error of ours, and nothing is left behind."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from towers import weights, write_tower

import hfcart
from hfcart.errors import CorruptFileError, NotATowerError, SourceError
from hfcart.sources.pickles import convert

FORMATS = [{}, {"_use_new_zipfile_serialization": False}]


def converted(state: Any, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """By way of a file in either format, as safetensors' own reader has it; nothing else is left."""
    path, target = folder / "w.bin", folder / "converted" / "w.safetensors"
    if not isinstance(state, bytes):
        buffer = BytesIO()
        torch.save(state, buffer, **options)
        state = buffer.getvalue()
    path.write_bytes(state)
    shutil.rmtree(target.parent, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            convert(path, target, "user/a/w.bin")
        except CorruptFileError:
            assert not target.parent.exists()
            raise
    assert [each.name for each in target.parent.iterdir()] == [target.name]
    return load_file(target)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        own, other = (torch.empty(t.shape, dtype=t.dtype).copy_(t.detach()) for t in (found[name], tensor))
        assert own.untyped_storage().tolist() == other.untyped_storage().tolist(), name


def ordered() -> OrderedDict[str, torch.Tensor]:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    return OrderedDict(model.state_dict())  # with _metadata


BLOCK = torch.arange(60, dtype=torch.float32)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
          torch.int8, torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn,
          torch.float8_e5m2, torch.complex64]  # fmt: skip
PLAIN: dict[str, Callable[[], Any]] = {
    "every dtype": lambda: {str(d): torch.arange(7).to(d) for d in DTYPES},
    "views of one storage": lambda: {"a": BLOCK[:20], "b": BLOCK[10:50].view(5, 8), "c": BLOCK.view(6, 10).T},
    "steps and gaps": lambda: {"a": BLOCK.view(3, 4, 5)[:, ::2, 1:3], "b": BLOCK[::7], "c": BLOCK.view(6, 10)[:, 3]},
    "tied": lambda: dict.fromkeys("abcd", BLOCK),
    "empty and without dimensions": lambda: {"a": torch.tensor(1.5), "b": torch.zeros(0), "c": torch.zeros(3, 0, 2)},
    "parameters": lambda: {"a": torch.nn.Parameter(BLOCK), "b": torch.nn.Parameter(BLOCK[:3], requires_grad=False)},
    "requires_grad": lambda: {"a": BLOCK.clone().requires_grad_()},
    "with attributes": lambda: {"a": attributed()},
    "metadata": ordered,
    "a checkpoint": lambda: {"epoch": 3, "state_dict": ordered(), "args": {"lr": [0.1, None, True, {1: (2, "x")}]}},
    "none": dict,
    "a long name": lambda: {"x" * 5000 + "ü": BLOCK},
}


def attributed() -> torch.Tensor:
    tensor = BLOCK.clone()
    tensor.note = "kept by torch.save"
    return tensor


def test_a_converted_file_is_whole_when_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread, with the same pickle of another source, may open it at once."""
    sizes, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda own, to: (sizes.append(own.stat().st_size), replace(own, to))[1])
    torch.save({"a": torch.ones(3)}, tmp_path / "w.bin")
    convert(tmp_path / "w.bin", tmp_path / "w.safetensors", "user/a/w.bin")
    assert sizes == [(tmp_path / "w.safetensors").stat().st_size]


@pytest.mark.parametrize("options", FORMATS)
@pytest.mark.parametrize("case", PLAIN)
def test_what_torch_reads_is_what_is_converted(tmp_path: Path, case: str, options: dict) -> None:
    state = PLAIN[case]()
    found = converted(state, tmp_path, **options)
    same(found, {k: v.detach() for k, v in state.get("state_dict", state).items()})


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(DTYPES[:10]),
            st.lists(st.integers(0, 5), max_size=4),
            st.integers(0, 6),
            st.randoms(use_true_random=False),
        ),
        max_size=5,
    ),
    st.sampled_from([*FORMATS, {"pickle_protocol": 4}, {"pickle_protocol": 5}]),
)
def test_any_views_of_one_block(tmp_path_factory: pytest.TempPathFactory, views: list, options: dict) -> None:
    state = {}
    for i, (dtype, shape, offset, rng) in enumerate(views):
        block = torch.arange(4000).to(dtype)
        steps = [rng.choice([1, 2, 5, 7]) for _ in shape]
        state[str(i)] = block.as_strided(shape, steps, offset)
        if state[str(i)].numel() > 4000:
            del state[str(i)]
    same(converted(state, tmp_path_factory.mktemp("views"), **options), state)


class Sub(torch.Tensor):
    pass


def quietly(make: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def per_tensor() -> torch.Tensor:
    return quietly(lambda: torch.quantize_per_tensor(BLOCK, 0.1, 0, torch.qint8))


def nested() -> torch.Tensor:
    return quietly(lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]))


def negated() -> torch.Tensor:
    return torch.view_as_complex(BLOCK.view(30, 2)).conj().imag


ODD: dict[str, tuple[Callable[[], Any], str]] = {
    "quantized": (lambda: {"a": per_tensor()}, "tensor 'a' is quantized"),
    "complex128": (lambda: {"a": torch.zeros(2, dtype=torch.complex128)}, "'a' has a dtype that safetensors"),
    "another float8": (lambda: {"a": torch.zeros(2).to(torch.float8_e4m3fnuz)}, "'a' has a dtype that safetensors"),
    "conjugated": (lambda: {"a": torch.zeros(2, dtype=torch.complex64).conj()}, "'a' is a conjugated or negated view"),
    "negated": (lambda: {"a": negated()}, "'a' is a conjugated or negated view"),
    "nested": (lambda: {"a": nested()}, "tensor 'a' is nested"),
    "sparse": (lambda: {"a": torch.eye(3).to_sparse()}, "tensor 'a' is sparse"),
    "sparse rows": (lambda: {"a": quietly(lambda: torch.eye(3).to_sparse_csr())}, "tensor 'a' is sparse"),
    "meta": (lambda: {"a": torch.zeros(3, device="meta")}, "tensor 'a' has no data"),
    "a subclass": (lambda: {"a": torch.zeros(2).as_subclass(Sub)}, "tensor 'a' is of a class of its own"),
    "a surrogate": (lambda: {"a\ud800": BLOCK}, r"'a\\ud800' is no name of a tensor"),
    "safetensors' own name": (lambda: {"__metadata__": BLOCK}, "'__metadata__' is no name"),
    "a control character": (lambda: {"a\x1b[2J": BLOCK}, "is no name of a tensor"),
    "numbers for names": (lambda: {1: BLOCK}, "a key of it is no string"),
    "tuples for names": (lambda: {("a", "b"): BLOCK}, "a key of it is no string"),
    "no tensor": (lambda: {"a": BLOCK, "epoch": 3}, "not a state dict of tensors: its 'epoch' is none"),
    "a dict within": (lambda: {"a": {"b": BLOCK}}, "not a state dict of tensors: its 'a' is none"),
    "a list": (lambda: [BLOCK], "not a state dict of tensors"),
    "a tensor": (lambda: BLOCK, "not a state dict of tensors"),
    "expanded": (lambda: {"a": BLOCK, "b": torch.zeros(1).expand(4_000_000_000)}, "tensor 'b' claims 16,000,000,000"),
    "expanded rows": (lambda: {"b": torch.zeros(9, 1).expand(9, 5)}, "tensor 'b' claims 180 bytes, its storage has 36"),
    "many of one storage": (lambda: many(), "claim .* bytes together"),
}


def many() -> dict[str, torch.Tensor]:
    block = torch.zeros(100_000)
    return dict.fromkeys(map(str, range(50)), block)


@pytest.mark.parametrize("options", FORMATS)
@pytest.mark.parametrize("case", ODD)
def test_what_is_no_plain_weights_is_named(tmp_path: Path, case: str, options: dict) -> None:
    make, words = ODD[case]
    if case == "a subclass":
        buffer = BytesIO()
        quietly(lambda: torch.save(make(), buffer, **options))
        state: Any = buffer.getvalue()
    else:
        state = make()
    with pytest.raises(CorruptFileError, match=words) as error:
        converted(state, tmp_path, **options)
    assert error.value.message.startswith("user/a/w.bin") and error.value.message.endswith(".") and error.value.hint


class Call:
    """Pickles as a call of something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


HUGE = 1 << 45
CLAIMS: dict[str, Any] = {
    "bytes": Call(bytearray, HUGE),
    "a tensor": Call(torch.Tensor, HUGE),
    "a storage": Call(torch.UntypedStorage, HUGE),
    "a system call": Call(print, "executed"),
    "a loader": Call(torch.load, "x"),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_nothing_is_called(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    for options in FORMATS:
        with pytest.raises(CorruptFileError, match=r"user/a/w\.bin"):
            converted({"a": CLAIMS[case]}, tmp_path, **options)
    assert capsys.readouterr().out == ""


def edited(state: Any, *changes: tuple[bytes, bytes], **options: Any) -> bytes:
    """What torch.save writes, with bytes of its pickle replaced."""
    buffer = BytesIO()
    torch.save(state, buffer, **options)
    if options:
        data = buffer.getvalue()
        for old, new in changes:
            assert old in data
            data = data.replace(old, new, 1)
        return data
    out = BytesIO()
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            for old, new in changes:
                assert old in data or not entry.filename.endswith("data.pkl")
                data = data.replace(old, new) if entry.filename.endswith("data.pkl") else data
            target.writestr(entry.filename, data)
    return out.getvalue()


def number(n: int) -> bytes:
    return b"J" + struct.pack("<i", n)


@pytest.mark.parametrize("options", FORMATS)
def test_a_storage_that_claims_more_than_there_is(tmp_path: Path, options: dict) -> None:
    """Two thousand million numbers in a file of some hundred bytes; and a tensor beyond the end of its storage."""
    state = {"a": torch.arange(77, dtype=torch.float32)}
    for changes in (
        [(b"KM", number(2_000_000_000))],  # the storage's count, and the shape
        [(b"K\0KM", number(9) + b"KM")],  # the offset
        [(b"K\0KM", number(-9) + b"KM")],
        [(b"K\x01\x85", number(-1) + b"\x85")],  # the stride
        [(b"K\x01\x85", number(2) + b"\x85")],
    ):
        with pytest.raises(CorruptFileError, match=r"user/a/w\.bin"):
            converted(edited(state, *changes, **options), tmp_path)


def test_archives_that_torch_does_not_write(tmp_path: Path) -> None:
    plain = edited({"a": BLOCK})
    same(converted(plain, tmp_path), {"a": BLOCK})

    def again(compression: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
        out = BytesIO()
        with zipfile.ZipFile(BytesIO(plain)) as source, zipfile.ZipFile(out, "w", compression) as target:
            for entry in source.infolist():
                name = entry.filename.rpartition("/")[2]
                target.writestr(entry.filename, more.pop(name, source.read(entry)))
            for name, data in more.items():
                target.writestr(f"archive/{name}", data)
        return out.getvalue()

    for broken in (
        again(zipfile.ZIP_DEFLATED),
        again(byteorder=b"big"),
        again(**{"constants.pkl": b""}),
        again(**{"x/data.pkl": b""})[:-30],
        again(**{"data.pkl": b"\x80\x02" + b"\0" * 100}),
        again(**{"data.pkl": b"\x80\x02."}),
        again(**{"data.pkl": b"\x80\x02" + b")" * 70_000}),
        b"PK\x03\x04",
        b"",
        pickle.dumps({"a": 1}),
    ):
        with pytest.raises(CorruptFileError, match=r"user/a/w\.bin cannot be loaded as plain weights"):
            converted(broken, tmp_path)


def test_a_key_whose_hash_takes_for_ever(tmp_path: Path) -> None:
    """Tuples of tuples, each twice the one before: sixty of them."""
    deep = b"\x80\x02})" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60)) + b"Ns."
    with pytest.raises(CorruptFileError, match="a key of it is no string"):
        converted(edited({}, (b"\x80\x02}q\x00.", deep)), tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(FORMATS))
def test_no_mutation_makes_it_fail_in_another_way(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, options: dict
) -> None:
    buffer = BytesIO()
    torch.save({"a": BLOCK[:5], "b": torch.nn.Parameter(BLOCK[3:9].view(2, 3))}, buffer, **options)
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = converted(bytes(raw[: data.draw(st.integers(0, len(raw)))]), tmp_path_factory.mktemp("mutated"))
    except CorruptFileError:
        return
    assert sum(tensor.nbytes for tensor in found.values()) <= 4 * len(raw)


def test_what_an_earlier_run_converted_is_not_believed(tmp_path: Path) -> None:
    folder = pickled(tmp_path / "old")
    hfcart.merge([folder], out=tmp_path / "whole")
    digest = hashlib.sha256((folder / "pytorch_model.bin").read_bytes()).hexdigest()
    save_file(weights(2), write_tower(tmp_path / "m.partial" / "converted", 2) / f"{digest}.safetensors")
    (tmp_path / "m.partial" / ".lock").touch()
    hfcart.merge([folder], out=tmp_path / "m")
    found, expected = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("m", "whole"))
    assert found == expected


OF_TRAINING = [
    "training_args.bin", "optimizer.pt", "optimizer.bin", "optimizer_0.bin", "scheduler.pt", "scheduler.bin",
    "scaler.pt",
    "rng_state.pth", "rng_state_0.pth", "random_states_0.pt", "trainer_state.pt", "sampler.bin", "Optimizer.pth",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt", "lr_scheduler.pt",
]  # fmt: skip


def pickled(folder: Path, name: str = "pytorch_model.bin") -> Path:
    write_tower(folder, 1)
    (folder / "model.safetensors").unlink()
    torch.save(weights(1), folder / name)
    return folder


def test_the_state_of_a_training_is_never_taken_for_weights(tmp_path: Path) -> None:
    for name in OF_TRAINING:
        folder = pickled(tmp_path / name, name)
        with pytest.raises(
            NotATowerError, match=f"holds no weights.* The state of a training, as in {name}, is no weights"
        ):
            hfcart.merge([folder], out=tmp_path / "m")
    assert not list(tmp_path.glob("m*"))
    folder = pickled(tmp_path / "tower", "clip.pt")  # a name of the owner's own, as before
    for name in OF_TRAINING:
        torch.save({"state": {0: {"step": 3}}}, folder / name)
    record = hfcart.merge([folder], out=tmp_path / "m")
    assert [file.name for file in record.sources[0].files] == ["clip.pt"]


@pytest.mark.parametrize("options", FORMATS)
def test_a_merge_of_such_a_file_leaves_nothing(tmp_path: Path, options: dict) -> None:
    """Beside one that is converted first; and where it is converted, and is no tower."""
    good, bad = pickled(tmp_path / "good"), pickled(tmp_path / "bad")
    for value in (per_tensor(), torch.zeros(1).expand(1 << 32), torch.zeros(2, dtype=torch.complex64)):
        state = weights(1) | {"vision_model.pre_layrnorm.bias": value}
        torch.save(state, bad / "pytorch_model.bin", **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(SourceError, match="bad"):
                hfcart.merge([good, bad], out=tmp_path / "m")
        assert not list(tmp_path.glob("m*"))
