"""The strict header parser: what it reads equals what safetensors reads; what breaks the format, it refuses."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from hfcart.errors import CorruptFileError
from hfcart.formats.safetensors_file import LocalFile, parse_header, parse_index, sha256_of, strict_json


def parse(data: bytes, size: int | None = None):
    return parse_header(lambda start, end: data[start:end], len(data) if size is None else size, "user/a/m.safetensors")


def build(entries: dict | str, body: bytes = b"") -> bytes:
    text = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(start: int, end: int, dtype: str = "F32", shape: list | None = None) -> dict:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def test_reads_what_safetensors_reads(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 5), "a": torch.randn(7).half(), "c": torch.zeros(2, 0), "d": torch.tensor(1.5)}
    path = tmp_path / "m.safetensors"
    path.write_bytes(save(tensors, {"format": "pt"}))
    file = LocalFile(path, "m")
    specs = parse_header(file.read, file.size, "m")
    with safe_open(path, "pt") as reference:
        assert set(specs) == set(reference.keys())
        for name, spec in specs.items():
            expected = reference.get_tensor(name)
            raw = file.read(spec.start, spec.end)
            assert spec.shape == tuple(expected.shape)
            assert raw == expected.reshape(-1).view(torch.uint8).numpy().tobytes() if expected.numel() else raw == b""
    file.close()


BROKEN = {
    "too short": (b"1234567", "7 bytes"),
    "2 GB header": (struct.pack("<Q", 2_000_000_000) + b"{}", "2,000,000,000"),
    "header past the end": (struct.pack("<Q", 100) + b"{}", "claims 100 bytes"),
    "invalid JSON": (build('{"a": '), "not valid JSON"),
    "not UTF-8": (struct.pack("<Q", 2) + b"\xff\xfe", "not valid JSON"),
    "not an object": (build("[1]"), "not a JSON object"),
    "nested too deeply": (build("[" * 100_000), "not valid JSON"),
    "duplicate names": (build('{"a": 1, "a": 2}'), "'a' occurs twice"),
    "extra key": (build({"a": {**entry(0, 4), "x": 1}}, b"0000"), "exactly dtype"),
    "unknown dtype": (build({"a": entry(0, 4, "F33")}, b"0000"), "unknown dtype"),
    "dtype no string": (build({"a": entry(0, 4, [])}, b"0000"), "unknown dtype"),
    "negative size": (build({"a": entry(0, 4, shape=[-1])}, b"0000"), "list of sizes"),
    "boolean size": (build({"a": entry(0, 4, shape=[True])}, b"0000"), "list of sizes"),
    "huge size": (build({"a": entry(0, 4, shape=[1 << 70])}, b"0000"), "list of sizes"),
    "offsets reversed": (build({"a": entry(4, 0, shape=[0])}, b"0000"), "data_offsets"),
    "offsets no pair": (build({"a": {**entry(0, 4), "data_offsets": [0]}}, b"0000"), "data_offsets"),
    "shape and bytes disagree": (build({"a": entry(0, 4, shape=[2])}, b"0000"), "4 bytes, its shape and dtype need 8"),
    "overlap": (build({"a": entry(0, 8), "b": entry(4, 12)}, b"0" * 12), "'b' overlaps"),
    "gap": (build({"a": entry(0, 4), "b": entry(8, 12)}, b"0" * 12), "'b' leaves a gap"),
    "gap at the start": (build({"a": entry(4, 8)}, b"0" * 8), "leaves a gap"),
    "body cut short": (build({"a": entry(0, 8)}, b"0" * 7), "cut short"),
    "trailing bytes": (build({"a": entry(0, 4)}, b"0" * 9), "5 bytes after"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refuses_what_breaks_the_format(case: str) -> None:
    data, message = BROKEN[case]
    with pytest.raises(CorruptFileError, match=message) as caught:
        parse(data)
    assert caught.value.message.startswith("user/a/m.safetensors is not a valid safetensors file")
    assert caught.value.hint


def test_a_huge_header_is_never_read() -> None:
    asked = []

    def read(start: int, end: int) -> bytes:
        asked.append(end - start)
        return struct.pack("<Q", 99_000_000) if start == 0 else b""

    with pytest.raises(CorruptFileError):
        parse_header(read, 2_000, "x")
    assert asked == [8]


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail_in_another_way(data: bytes) -> None:
    for candidate in (data, struct.pack("<Q", len(data)) + data):
        try:
            specs = parse(candidate)
        except CorruptFileError:
            continue
        assert all(8 <= s.start <= s.end <= len(candidate) for s in specs.values())


def test_strict_json_refuses_duplicates_at_any_depth() -> None:
    with pytest.raises(ValueError, match="'k' occurs twice"):
        strict_json(b'{"a": [{"k": 1, "k": 2}]}')


@pytest.mark.parametrize("text", [b"NaN", b'{"a": Infinity}', b"[-Infinity]"])
def test_strict_json_refuses_what_is_no_number(text: bytes) -> None:
    with pytest.raises(ValueError, match="is no number"):
        strict_json(text)


INDEXES = {
    "up": ({"w": "../x.safetensors"}, "outside its own folder"),
    "absolute": ({"w": "/etc/x.safetensors"}, "outside its own folder"),
    "backslash": ({"w": "..\\x.safetensors"}, "outside its own folder"),
    "missing": ({"w": "model-2.safetensors"}, "not there"),
    "not safetensors": ({"w": "config.json"}, "no safetensors"),
    "not a name": ({"w": 7}, "maps no tensor"),
    "empty": ({}, "maps no tensor"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_cannot_name_what_is_not_in_its_folder(case: str) -> None:
    weight_map, message = INDEXES[case]
    data = json.dumps({"weight_map": weight_map}).encode()
    with pytest.raises(CorruptFileError, match=message):
        parse_index(data, ["model-1.safetensors", "config.json"], "user/a/index")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {"a": ["x"]}}'])
def test_a_broken_index_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptFileError, match="not a valid index"):
        parse_index(data, [], "user/a/index")


def test_good_index() -> None:
    data = json.dumps({"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}).encode()
    found = parse_index(data, ["1.safetensors", "2.safetensors"], "x")
    assert found == {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    file = LocalFile(path, "user/a/f")
    path.write_bytes(b"01234")
    with pytest.raises(CorruptFileError, match="ended at byte 5, 5 bytes too early"):
        file.read(0, 10)
    file.close()


def test_sha256_of_matches_the_standard_vector(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_of(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
