"""Merges whose algebra is done on a device: as on the CPU, driven by one thread, and waited for as seldom as stated."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from devices import DEVICES, merged_on, working
from plans import fetched_plan
from pretended import PRETENDED, pretending
from safetensors.torch import load_file
from towers import TINY, weights, write_tower

from hfcart.clip.tensor_names import Group
from hfcart.engine import reading
from hfcart.engine.loop import driving
from hfcart.engine.merging import GroupRules
from hfcart.errors import NonFiniteError
from hfcart.maths import thin_svd_batch
from hfcart.methods import METHODS
from hfcart.methods.task_arithmetic.rule import ranked_parts
from hfcart.system.device import full_float32

CPU = torch.device("cpu")
SMALL = {**TINY, "num_hidden_layers": 1}
ALONE = [name for name, method in METHODS.items() if method.statistics is None]
# How often the host may wait for the device, for each group: its result, its distances, and what else it must know.
# That is one look at each batch of decompositions; DC-Merge also asks where each tower's largest coordinates are.
RESULT = 2
WAITS = {"cart": 1, "average": 0, "linear": 0, "task_arithmetic": 0}
WAITS |= {"tsv_m": 2, "iso_c": 1, "iso_cts": 3, "dc_merge": 2 + 3}
# And for each group of any kind: what a rule must know before it goes on, and the passes before the merge.
WHOLE = {"breadcrumbs": 0, "consensus": 0, "dare": 0, "della": 0, "karcher": 1, "model_stock": 1, "sce": 1, "slerp": 1}
WHOLE |= {"ties": 3}
MATRIX = re.compile(r"\.(self_attn\.\w+_proj|mlp\.fc\d)\.weight$")


@pytest.fixture
def towers(tmp_path: Path) -> list[Path]:
    return [write_tower(tmp_path / f"t{i}", i, SMALL) for i in (1, 2, 3)]


def updates(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """How far from the average of the towers: relative to whole weights a wrong merge is a right one."""
    return {
        n: t.double() - torch.stack([weights(i, SMALL)[n].double() for i in (1, 2, 3)]).mean(0)
        for n, t in tensors.items()
    }


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("name", ALONE)
def test_every_method_merges_there_as_on_the_cpu(
    tmp_path: Path, towers: list[Path], name: str, device: torch.device
) -> None:
    base = str(write_tower(tmp_path / "t0", 0, SMALL))
    fields = {"method": name, "base": base}
    some = towers[: METHODS[name].exactly or 3]
    expected, _, there = merged_on(CPU, some, tmp_path / "cpu", **fields)
    found, waits, lines = merged_on(device, some, tmp_path / "device", **fields)
    for (tensor, update), other in zip(updates(expected).items(), updates(found).values(), strict=True):
        assert (update - other).norm() <= 1e-4 * update.norm() + 1e-7 * expected[tensor].double().norm(), tensor
    for line, other in zip(lines, there, strict=True):
        assert line["rank"] == other["rank"] and line["fallback"] == other["fallback"]
        assert line["energy"] == pytest.approx(other["energy"], abs=1e-6)
        assert torch.allclose(torch.tensor(line["spread"]), torch.tensor(other["spread"]), rtol=1e-5)
    if device == PRETENDED and name in WHOLE:
        assert sum(waits.values()) == (RESULT + WHOLE[name]) * len(lines)
    if device == PRETENDED and name in WAITS:
        matrices = sum(bool(MATRIX.search(line["group"])) for line in lines)
        assert matrices == 6
        assert sum(waits.values()) == RESULT * len(lines) + WAITS[name] * matrices


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("fields", [{"qkv": "fused", "rank": 3}, {"rank": 1.0}, {"rank": 3, "dtype": "bfloat16"}])
def test_cart_in_all_its_forms(tmp_path: Path, device: torch.device, fields: dict[str, object]) -> None:
    big = {**TINY, "hidden_size": 160, "intermediate_size": 320, "num_hidden_layers": 1}  # large enough to iterate
    towers = [write_tower(tmp_path / f"t{i}", i, big) for i in (1, 2, 3, 4)]
    expected, _, _ = merged_on(CPU, towers, tmp_path / "cpu", method="cart", scale=1.5, **fields)
    found, _, _ = merged_on(device, towers, tmp_path / "device", method="cart", scale=1.5, **fields)
    for name, tensor in expected.items():
        mean = torch.stack([weights(i, big)[name].double() for i in (1, 2, 3, 4)]).mean(0)
        rounding = 1e-7 if tensor.dtype == torch.float32 else 1e-3
        error = (tensor.double() - found[name].double()).norm()
        assert error <= 1e-4 * (tensor.double() - mean).norm() + rounding * mean.norm(), name


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("fields", [{"method": "tsv_m", "svc": 1.0}, {"method": "iso_cts", "qkv": "fused"}])
def test_singular_vectors_of_a_device_are_those_of_the_cpu(
    tmp_path: Path, device: torch.device, fields: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large enough to iterate; and no matrix is decomposed alone."""
    big = {**TINY, "hidden_size": 160, "intermediate_size": 320, "num_hidden_layers": 1}
    towers = [write_tower(tmp_path / f"t{i}", i, big) for i in range(1, 9)]
    fields = {**fields, "base": str(write_tower(tmp_path / "t0", 0, big))}
    expected, _, _ = merged_on(CPU, towers, tmp_path / "cpu", **fields)
    monkeypatch.setattr(thin_svd_batch, "thin_svd", None)
    monkeypatch.setattr(thin_svd_batch, "polar", None)
    found, waits, lines = merged_on(device, towers, tmp_path / "device", **fields)
    start = weights(0, big)
    for name, tensor in expected.items():
        update = tensor.double() - start[name].double()
        assert (tensor.double() - found[name].double()).norm() <= 1e-6 * update.norm() + 6e-8 * start[name].norm(), name
    if device == PRETENDED and "svc" in fields:
        assert sum(waits.values()) == RESULT * len(lines) + (WAITS["tsv_m"] + 1) * 6


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_the_directions_to_choose_from_are_one_batch(device: torch.device) -> None:
    """AdaRank's parts of task arithmetic."""
    thetas = torch.randn(4, 200, 160, generator=torch.Generator().manual_seed(1))
    base = torch.randn(200, 160, generator=torch.Generator().manual_seed(2))
    expected = ranked_parts(thetas, base=base, rank=13)
    with working(device) as waits:
        found = ranked_parts(thetas.to(device), base=base.to(device), rank=13)
        assert device != PRETENDED or sum(waits.values()) == 1
        products = found.left.cpu() @ found.right.cpu().mT
    for one, other in zip(expected.left @ expected.right.mT, products, strict=True):
        assert (one - other).norm() <= 2e-5 * one.norm()
    assert found.energies == pytest.approx(expected.energies, abs=1e-6)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_lines_after_two_passes(tmp_path: Path, towers: list[Path], device: torch.device) -> None:
    fields = {"method": "ties", "base": str(write_tower(tmp_path / "t0", 0, SMALL)), "lines": 0.5}
    expected, _, _ = merged_on(CPU, towers, tmp_path / "cpu", **fields)
    found, _, _ = merged_on(device, towers, tmp_path / "device", **fields)
    for name, tensor in expected.items():
        assert torch.allclose(tensor, found[name], rtol=1e-5, atol=1e-7), name


def test_one_thread_drives_the_device() -> None:
    """Also when many ask at once; what fails fails where it was asked for, and the others go on."""

    def work(number: int) -> tuple[int, str]:
        if number == 3:
            raise ValueError("three")
        return number, threading.current_thread().name

    found: dict[int, object] = {}
    with driving(PRETENDED) as drive:

        def ask(number: int) -> None:
            try:
                found[number] = drive(work, number)
            except ValueError as error:
                found[number] = str(error)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found.pop(3) == "three"
    assert found == {number: (number, "device_0") for number in (0, 1, 2, 4, 5, 6, 7)}
    with driving(CPU) as drive:
        assert drive(work, 1) == (1, threading.current_thread().name)


@pytest.mark.parametrize("device", [CPU, *DEVICES], ids=str)
def test_a_failure_ends_all_of_it_and_the_journal_is_true(
    tmp_path: Path, towers: list[Path], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hfcart.engine.merging as merging

    spread, calls = merging.spread_of, iter(range(1000))

    def breaking(*arguments: torch.Tensor) -> torch.Tensor:
        if next(calls) == 5:
            raise NonFiniteError("broke on the device")
        return spread(*arguments)

    monkeypatch.setattr(merging, "spread_of", breaking)
    with pytest.raises(NonFiniteError, match="broke on the device"):
        merged_on(device, towers, tmp_path / "m", method="cart")
    assert not [t for t in threading.enumerate() if t.name.startswith(("merge", "device"))]
    monkeypatch.setattr(merging, "spread_of", spread)
    begun = (tmp_path / "m.partial" / "journal.jsonl").read_text().count('"group"')
    assert begun < 20
    found, _, lines = merged_on(device, towers, tmp_path / "m", method="cart")  # goes on, and the digests hold
    again, _, _ = merged_on(device, towers, tmp_path / "n", method="cart")
    assert all(torch.equal(found[name], again[name]) for name in again) and len(lines) == len(again)


@pytest.mark.parametrize("device", [CPU, *DEVICES], ids=str)
@pytest.mark.parametrize(("method", "during"), [("cart", "merged"), ("ties", "measured")])
def test_ctrl_c_ends_all_of_it_and_the_merge_goes_on(
    tmp_path: Path, towers: list[Path], device: torch.device, method: str, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal while the device works: what has begun is written, nothing noted is done again, the bytes are the same.

    During the merging, and during a pass before it, of which nothing is kept.
    """
    fields = {"method": method, "base": str(write_tower(tmp_path / "t0", 0, SMALL))}
    whole, _, lines = merged_on(device, towers, tmp_path / "whole", **fields)
    work, lock, caught = getattr(GroupRules, during), threading.Lock(), threading.Event()
    keys: list[str] = []

    def counting(rules: GroupRules, *arguments: object) -> object:
        with lock:
            keys.append(next(each.key for each in arguments if isinstance(each, Group)))
            fifth = len(keys) == 5
        if fifth and not caught.is_set():
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            assert caught.wait(20)
            time.sleep(0.2)  # until the main thread has dropped what has not begun
        return work(rules, *arguments)

    def stop(*_: object) -> None:
        caught.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(GroupRules, during, counting)
    before = signal.signal(signal.SIGINT, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            merged_on(device, towers, tmp_path / "m", **fields)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not [t for t in threading.enumerate() if t.name.startswith(("merge", "device"))]
    journal = [json.loads(line) for line in (tmp_path / "m.partial" / "journal.jsonl").read_text().splitlines()]
    noted = {line["group"] for line in journal if "group" in line}
    assert len(keys) < len(lines)
    assert noted == (set(keys) if during == "merged" else set())  # what had begun, and no more
    keys.clear()
    found, _, again = merged_on(device, towers, tmp_path / "m", **fields)
    assert not noted & set(keys)
    if during == "merged":
        assert noted | set(keys) == {line["group"] for line in lines} and len(keys) == len(set(keys))
    assert again == lines and all(torch.equal(found[name], whole[name]) for name in whole)


def test_the_guard_refuses_what_a_device_refuses() -> None:
    with pretending() as waits:
        there = torch.ones(3).to(PRETENDED)
        with pytest.raises(AssertionError, match="on the device and off it"):
            there + torch.ones(3)
        assert (there * 2 + torch.tensor(1.0)).sum().item() == 9.0
        assert bool((there == 1).all()) and there.cpu().tolist() == [1.0, 1.0, 1.0]
        there[1:] = 5
        assert torch.equal(there.cpu(), torch.tensor([1.0, 5.0, 5.0]))
        assert set(waits) == {"_local_scalar_dense", "_to_copy"}
        thread = threading.Thread(target=lambda: there.cpu())
        before = waits["_to_copy"]
        thread.start()
        thread.join()
        assert waits["_to_copy"] == before + 1


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_full_float32_whatever_was_asked_for(tmp_path: Path, towers: list[Path], device: torch.device) -> None:
    """TF32 left on by somebody else: the same bytes, and it is on again afterwards."""
    expected, _, _ = merged_on(device, towers, tmp_path / "plain", method="cart")
    torch.set_float32_matmul_precision("medium")
    try:
        found, _, _ = merged_on(device, towers, tmp_path / "tf32", method="cart")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_settings_for_products_and_convolutions_are_put_back(
    tmp_path: Path, towers: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    read = reading.GroupReader.read

    def watched(self: reading.GroupReader, *arguments: object) -> object:
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return read(self, *arguments)

    monkeypatch.setattr(reading.GroupReader, "read", watched)
    torch.set_float32_matmul_precision("high")
    try:
        merged_on(PRETENDED, towers, tmp_path / "m", method="average")
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {("highest", False)}


def test_settings_are_put_back_in_whatever_order_threads_leave() -> None:
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    one, other = full_float32(), full_float32()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    other.__exit__(None, None, None)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before == ("highest", True)


def test_the_whole_stack_goes_over_in_one_piece(towers: list[Path]) -> None:
    plan = fetched_plan(towers)
    with closing(plan), working(PRETENDED):
        reader = reading.GroupReader(plan, PRETENDED)
        held = reader.read(plan.groups[0])
        there = held.to(PRETENDED)
        assert held.thetas.device == CPU and there.thetas.device == PRETENDED and there.base is None
        assert torch.equal(there.thetas.cpu(), held.thetas)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("fields", [{"adapters": 5}, {"adapters": 0.1, "qkv": "fused", "method": "cart"}])
def test_adapters_of_a_device_are_those_of_the_cpu(
    tmp_path: Path, device: torch.device, fields: dict[str, object]
) -> None:
    big = {**TINY, "hidden_size": 160, "intermediate_size": 320, "num_hidden_layers": 1}
    towers = [write_tower(tmp_path / f"t{i}", i, big) for i in (1, 2, 3)]
    for where, on in (("cpu", CPU), ("device", device)):
        merged_on(on, towers, tmp_path / where, **fields)
    for i in (1, 2, 3):
        files = [f"{where}.partial/adapters/t{i}/adapter_model.safetensors" for where in ("cpu", "device")]
        one, other = (load_file(tmp_path / file) for file in files)
        assert one.keys() == other.keys()
        for name in [name for name in one if name.endswith("lora_A.weight")]:
            left = name.replace("lora_A", "lora_B")
            products = [(each.pop(left).double() @ each.pop(name).double()) for each in (one, other)]
            assert (products[0] - products[1]).norm() <= 1e-4 * products[0].norm() > 0, name
        for name, tensor in one.items():
            assert torch.allclose(tensor, other[name], atol=1e-7), name
