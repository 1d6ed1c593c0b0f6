"""Safetensors files filled in place: whole at the end, proven by digests in between, read back tensor by tensor."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from hfcart.errors import OutputError, VerifyError
from hfcart.formats.shard_layout import lay_out
from hfcart.system.tensor_files import TENSOR_FILES, TensorFiles, read_back, refuse_without_room

SHAPES: dict[str, tuple[int, ...]] = {"a": (3, 5), "b": (7,), "scale": (), "c": (2, 2)}
LAYOUT = lay_out(SHAPES, "F32", 70)  # several files
VALUES = {name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1 for name, shape in SHAPES.items()}


def write(tensors: TensorFiles, *names: str) -> dict[str, str]:
    return {name: tensors.write(name, memoryview(VALUES[name].tobytes())) for name in names}


def test_written_in_any_order_and_read_by_safetensors(tmp_path: Path) -> None:
    with TensorFiles(tmp_path, LAYOUT) as tensors:
        sizes = {path.name: path.stat().st_size for path in tmp_path.glob(TENSOR_FILES)}
        assert sizes == LAYOUT.sizes and len(sizes) > 1  # before the first byte of a tensor
        digests = write(tensors, "scale", "c", "a", "b")
        assert all(tensors.read(name) == value.tobytes() for name, value in VALUES.items())
    found = {name: value for path in tmp_path.glob(TENSOR_FILES) for name, value in load_file(path).items()}
    assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in VALUES.items()}
    assert dict(read_back(tmp_path, LAYOUT, digests)) == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob(TENSOR_FILES)
    }


def test_opened_again_it_holds_what_the_bytes_prove(tmp_path: Path) -> None:
    with TensorFiles(tmp_path, LAYOUT) as tensors:
        digests = write(tensors, "a", "b")
    with (tmp_path / LAYOUT.slots["b"].file).open("r+b") as file:
        file.seek(LAYOUT.slots["b"].start)
        file.write(bytes(4))
    with TensorFiles(tmp_path, LAYOUT) as tensors:
        assert tensors.hold({"a": digests["a"]})
        for nothing in (digests, {"b": digests["b"]}, {}, {"a": digests["b"]}, {**digests, "unknown": "0"}):
            assert not tensors.hold(nothing), nothing


@pytest.mark.parametrize(
    ("shapes", "changed", "words"),
    [
        ({}, {"b": "0" * 64}, "tensor b reads back different"),
        ({"b": (1, 7)}, {}, "header of model-0000.-of-0000..safetensors reads back different"),
        ({"d": (60,)}, {}, "model-00001-of-00002.safetensors is no file of what was written"),
    ],
)
def test_what_reads_back_different_is_an_error(
    tmp_path: Path, shapes: dict[str, Any], changed: dict[str, str], words: str
) -> None:
    with TensorFiles(tmp_path, LAYOUT) as tensors:
        digests = write(tensors, *SHAPES)
    with pytest.raises(VerifyError, match=words):
        list(read_back(tmp_path, lay_out(SHAPES | shapes, "F32", 70), digests | changed))


def test_a_file_that_is_gone_or_too_much_is_an_error(tmp_path: Path) -> None:
    with TensorFiles(tmp_path, LAYOUT) as tensors:
        digests = write(tensors, *SHAPES)
    last = sorted(LAYOUT.headers)[-1]
    (tmp_path / last).rename(tmp_path / "other.safetensors")
    with pytest.raises(VerifyError, match=r"other\.safetensors is no file of"):
        list(read_back(tmp_path, LAYOUT, digests))
    (tmp_path / "other.safetensors").unlink()
    with pytest.raises(VerifyError, match=f"{last} is missing after writing"):
        list(read_back(tmp_path, LAYOUT, digests))


def test_a_disk_that_is_too_small_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = sum(LAYOUT.sizes.values())
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10 * need, 9 * need, free))
    free = need
    refuse_without_room(tmp_path / "not" / "there", LAYOUT)
    free = need - 1
    with pytest.raises(OutputError, match="There is no room"):
        refuse_without_room(tmp_path / "not" / "there", LAYOUT)
    with TensorFiles(tmp_path, LAYOUT):
        pass
    free = 0
    refuse_without_room(tmp_path, LAYOUT)  # what is reserved already need not be free


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        TensorFiles(tmp_path / "nowhere", LAYOUT).__enter__()
