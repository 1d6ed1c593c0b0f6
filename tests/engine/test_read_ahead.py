"""Reading ahead: over a network the next groups come in while the workers compute, up to a bound; and it ends."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from devices import merged_on
from plans import fetched_plan
from pretended import PRETENDED
from running import HELPERS, contents
from safetensors.torch import load_file
from towers import TINY, write_tower

import hfcart
from hfcart.clip.tensor_names import Group
from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.engine import reading
from hfcart.engine.loop import workers
from hfcart.engine.read_ahead import AHEAD, ReadAhead, Ring, bytes_ahead, groups_ahead, whole_lines
from hfcart.formats.safetensors_file import LocalFile, parse_header
from hfcart.progress import Progress

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(20))
def test_places_of_a_ring_never_overlap_and_come_free_again(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randint(10, 60)
    ring, given = Ring(size), list[slice]()
    for _ in range(400):
        place = ring.take(rng.randint(1, 20)) if rng.random() < 0.6 else None
        if place is not None:
            assert 0 <= place.start < place.stop <= size
            assert all(place.stop <= other.start or other.stop <= place.start for other in given)
            given.append(place)
        elif given:
            ring.give_back(given.pop(rng.randrange(min(3, len(given)))))
    for place in given:
        ring.give_back(place)
    assert ring.take(size) == slice(0, size) and ring.take(1) is None


def groups(count: int) -> list[Group]:
    return [Group((f"g{i}",), matrix=False) for i in range(count)]


class Parts:
    """Two parts a group, of two pieces each; who they wait for can be held."""

    def __init__(self, wrong: str = "") -> None:
        self.begun: list[str] = []
        self.wrong, self.go = wrong, threading.Event()

    def __call__(self, group: Group, memory: torch.Tensor) -> list[Iterator[None]]:
        self.begun.append(group.key)
        return [self._fill(group, half) for half in memory.chunk(2)]

    def _fill(self, group: Group, half: torch.Tensor) -> Iterator[None]:
        for piece in half.chunk(2):
            if group.key == self.wrong:
                raise ValueError(group.key)
            piece.fill_(int(group.key[1:]))
            yield
        self.go.wait()


def test_groups_are_read_up_to_the_bound_and_no_further() -> None:
    """Of eight that take a quarter of the memory each, four are begun; each that is given back lets one more begin."""
    every, parts = groups(8), Parts()
    parts.go.set()
    with ReadAhead(every, lambda _: 16, parts, torch.empty(4 * 16), None) as ahead:
        assert parts.begun == ["g0", "g1", "g2", "g3"]
        with ahead.group(every[0]) as first, ahead.group(every[1]) as second:
            assert parts.begun == ["g0", "g1", "g2", "g3"]
            assert first.unique().tolist() == [0] and second.unique().tolist() == [1]
        assert parts.begun == ["g0", "g1", "g2", "g3", "g4", "g5"]
        for i, group in enumerate(every[2:], start=2):
            with ahead.group(group) as memory:
                assert memory.unique().tolist() == [i]
    assert parts.begun == [group.key for group in every]


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_any_number_of_workers_gets_every_group_whole(workers: int) -> None:
    rng, every = random.Random(workers), groups(300)
    sizes = {group: rng.choice([1, 3, 16, 40, 100]) for group in every}
    parts = Parts()
    parts.go.set()

    def work(group: Group) -> list[float]:
        with ahead.group(group) as memory:
            assert len(memory) == sizes[group]
            return memory.unique().tolist()

    memory = torch.empty((workers + AHEAD) * whole_lines(100))
    with ThreadPoolExecutor(workers) as pool, ReadAhead(every, sizes.__getitem__, parts, memory, None) as ahead:
        assert list(pool.map(work, every)) == [[i] for i in range(300)]


def test_a_group_that_cannot_be_read_fails_for_who_asks_for_it() -> None:
    every, parts = groups(4), Parts("g2")
    parts.go.set()
    with ReadAhead(every, lambda _: 16, parts, torch.empty(64), None) as ahead:
        for group in (every[0], every[1], every[3]):
            with ahead.group(group) as memory:
                assert memory.unique().tolist() == [int(group.key[1:])]
        with pytest.raises(ValueError, match="g2"), ahead.group(every[2]):
            pass


def test_the_end_reaches_those_who_read_and_those_who_wait() -> None:
    """One waits for a group that is being read, another for one that was never begun."""
    every, parts, asked = groups(4), Parts(), threading.Barrier(3)
    told: list[threading.Event] = []

    def wait(group: Group) -> None:
        asked.wait(60)
        with ahead.group(group):
            pass

    with ThreadPoolExecutor(2) as pool:
        with ReadAhead(every, lambda _: 16, parts, torch.empty(2 * 16), told.append) as ahead:
            jobs = [pool.submit(wait, group) for group in (every[1], every[3])]
            asked.wait(60)
            # Those who read go on only once the end has come.
            threading.Thread(target=lambda: (told[0].wait(60), parts.go.set())).start()
        assert [type(job.exception(60)) for job in jobs][1] is CancelledError
    assert parts.begun == ["g0", "g1"] and told[0].is_set()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("read")]


def test_a_worker_at_whose_start_ctrl_c_comes_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, done, start = threading.Event(), list[str](), threading.Thread.start
    reader: Any = SimpleNamespace(largest_bytes=1 << 20, bytes_read=lambda _: 1, ahead=lambda *_: nullcontext())

    def work(group: Group) -> None:
        begun.set()
        time.sleep(0.2)
        done.append(group.key)

    def stopped(thread: threading.Thread) -> None:
        start(thread)
        assert begun.wait(60)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), workers(1, CPU, reader, Progress()) as pool:
        monkeypatch.setattr(threading.Thread, "start", stopped)
        pool.each("Merging", groups(3), [], work)
    assert done == ["g0"]


def test_ctrl_c_that_wakes_nobody_stops_a_merge() -> None:
    """As one is that comes while the main thread falls asleep: here a worker gets it."""
    left, heard = threading.Event(), []

    @contextmanager
    def ahead(*_: object) -> Iterator[None]:
        try:
            yield
        finally:
            left.set()

    def work(group: Group) -> None:
        signal.raise_signal(signal.SIGINT)
        heard.append(left.wait(60))

    reader: Any = SimpleNamespace(largest_bytes=1 << 20, bytes_read=lambda _: 1, ahead=ahead)
    with pytest.raises(KeyboardInterrupt), workers(1, CPU, reader, Progress()) as pool:
        pool.each("Merging", groups(3), [], work)
    assert heard == [True]


@pytest.fixture
def towers(tmp_path: Path) -> list[Path]:
    return [write_tower(tmp_path / f"t{i}", i) for i in (1, 2, 3)]


def test_memory_is_taken_for_groups_ahead_only_where_nothing_else_reads_meanwhile(towers: list[Path]) -> None:
    with closing(fetched_plan(towers)) as plan:
        assert [groups_ahead(plan, workers, CPU) for workers in (1, 2)] == [0, 0] == [bytes_ahead(plan, 1, CPU), 0]
        assert [groups_ahead(plan, workers, PRETENDED) for workers in (1, 2)] == [1, 0]
        assert bytes_ahead(plan, 1, PRETENDED) == 3 * 4 * 32 * 3 * 8 * 8  # of the patches


@pytest.mark.parametrize(
    "fields", [{"method": "task_arithmetic", "base": "t0"}, {"adapters": 5}], ids=["base", "adapters"]
)
def test_a_device_with_one_worker_has_the_next_group_read_meanwhile(
    tmp_path: Path, towers: list[Path], monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    readers = set()
    filling = reading.GroupReader._filling

    def watched(*arguments: Any) -> Iterator[None]:
        readers.add(threading.current_thread().name.partition("_")[0])
        yield from filling(*arguments)

    monkeypatch.setattr(reading.GroupReader, "_filling", watched)
    if "method" in fields:
        fields = {**fields, "base": str(write_tower(tmp_path / "t0", 0))}
    found, _, lines = merged_on(PRETENDED, towers, tmp_path / "one", workers=1, **fields)
    assert readers == {"read"}
    expected, _, others = merged_on(PRETENDED, towers, tmp_path / "two", workers=2, **fields)
    assert readers == {"read", "merge"}
    assert lines == others and all(torch.equal(found[name], expected[name]) for name in expected)


@dataclass
class Streamer:
    """A process that merges the towers of a Hub, and the towers."""

    hub: EmbeddedHub
    towers: list[Path]
    process: subprocess.Popen[str]

    def begin(self, out: str, fault: str | None = None) -> None:
        sources = [f"user/{folder.name}" for folder in self.towers]
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"sources": sources, "out": out, "fault": fault}) + "\n")
        self.process.stdin.flush()
        assert self._said() == "ready"

    def end(self) -> dict[str, Any]:
        return self._said()

    def _said(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def names(self) -> list[tuple[str, str]]:
        """(tower, tensor) of every request for a tensor so far."""
        return [found for request in list(self.hub.requests) if (found := self._asked(request.path, request.range))]

    def _asked(self, path: str, asked: str | None) -> tuple[str, str] | None:
        for folder in self.towers:
            if f"/user/{folder.name}/resolve/" in path and path.endswith("/model.safetensors"):
                return next(((folder.name, name) for name, span in ranges(folder).items() if span == asked), None)
        return None


def ranges(folder: Path) -> dict[str, str]:
    file = LocalFile(folder / "model.safetensors", "x")
    with closing(file):
        found = parse_header(file.read, file.size, "x")
    return {name: f"bytes={spec.start}-{spec.end - 1}" for name, spec in found.items()}


def until(true: Callable[[], bool]) -> None:
    """Wait for what must come."""
    for _ in range(12_000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come in two minutes")


@pytest.fixture
def streamer(hub: EmbeddedHub, tmp_path: Path, clean_env: Mapping[str, str]) -> Iterator[Streamer]:
    towers = [write_tower(tmp_path / f"t{i}", i, {**TINY, "num_hidden_layers": 5}) for i in (1, 2, 3)]
    for folder in towers:
        hub.create(f"user/{folder.name}")
        hub.commit(f"user/{folder.name}", {path.name: path for path in folder.iterdir()})
    env = {**clean_env, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HFCART_TIMEOUT": "60"}
    command = [sys.executable, str(HELPERS / "streamer.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=env, text=True, **pipes) as process:
        yield Streamer(hub, towers, process)
        process.kill()  # idle, if all went well


def expected(streamer: Streamer) -> tuple[list[str], list[str]]:
    """Names of the tensors in the order in which they are merged, and of those that fit beside two at work."""
    with closing(fetched_plan(streamer.towers)) as plan:
        order = [(group.key, whole_lines(3 * plan.group_elements(group))) for group in plan.groups]
    room, some = (2 + AHEAD) * max(count for _, count in order), []
    for name, count in order:
        room -= count
        if room < 0:
            break
        some.append(name)
    return [name for name, _ in order], some


def test_while_the_algebra_is_held_requests_come_up_to_the_bound_and_no_further(
    streamer: Streamer, tmp_path: Path
) -> None:
    order, some = expected(streamer)
    assert 2 < len(some) < len(order)  # two are at work
    streamer.begin("m", "held")
    until(lambda: len(streamer.names()) >= 3 * len(some))
    (tmp_path / "go").touch()
    ended = streamer.end()
    assert ended["error"] is None and ended["threads"] == []
    asked = streamer.names()
    assert sorted(asked[: 3 * len(some)]) == sorted((tower.name, name) for tower in streamer.towers for name in some)
    assert sorted(asked) == sorted((tower.name, name) for tower in streamer.towers for name in order)  # each once
    hfcart.merge([str(folder) for folder in streamer.towers], out=str(tmp_path / "n"))
    assert (tmp_path / "m/model.safetensors").read_bytes() == (tmp_path / "n/model.safetensors").read_bytes()


def journal(out: Path) -> list[str]:
    """Keys of the groups that a journal has; their bytes are in place."""
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()[1:]]
    tensors = load_file(out / "model.safetensors")
    for line in lines:
        for name, digest in line["sha256"].items():
            assert hashlib.sha256(tensors[name].numpy().tobytes()).hexdigest() == digest
    return [line["group"] for line in lines]


FAULTS: dict[str, tuple[str | None, dict[str, Any] | None, str, str]] = {
    "the reader fails": (None, {"status": 403}, "AccessError", "may not do that"),
    "the server goes away": (None, {"drop_request": True}, "HubError", "the connection dropped"),
    "a body breaks off": (None, {"drop_after": 5}, "HubError", "the connection dropped"),
    "the algebra fails": ("algebra", None, "NonFiniteError", "The algebra has failed."),
    "the disk is full": ("disk", None, "OutputError", "There is no room for"),
}


def test_whoever_fails_all_of_it_ends_and_goes_on_later(streamer: Streamer, tmp_path: Path) -> None:
    """With one sentence, no thread left, a journal whose bytes are in place; and the same bytes in the end."""
    hub, all_groups = streamer.hub, len(expected(streamer)[0])
    streamer.begin("undisturbed")
    assert streamer.end()["error"] is None
    for case, (fault, server, kind, said) in FAULTS.items():
        hub.clear()
        if server:  # some way into the tensors, for good
            hub.fail(r"GET .*\.safetensors$", **server, first=50, times=None)
        streamer.begin(case, fault)
        ended = streamer.end()
        assert ended["threads"] == [], case
        assert ended["error"][0] == kind and said in ended["error"][1] and ended["error"][2], (case, ended)
        kept = journal(tmp_path / f"{case}.partial")
        assert 0 < len(kept) < all_groups and not (tmp_path / case).exists(), case
        hub.clear()
        streamer.begin(case)
        ended = streamer.end()
        assert (
            ended["error"] is None and f"Resuming: {len(kept)} of {all_groups} groups done already." in ended["notes"]
        )
        assert len(streamer.names()) == 3 * (all_groups - len(kept)), case  # of what is done nothing is read again
        assert contents(tmp_path / case) == contents(tmp_path / "undisturbed"), case


def test_ctrl_c_ends_all_of_it(streamer: Streamer, tmp_path: Path) -> None:
    """While two groups are at work, and the next come in, slowly."""
    _, some = expected(streamer)
    streamer.hub.fail(r"GET .*\.safetensors$", drip=0.2, first=50, times=None)
    streamer.begin("m", "held")
    until(lambda: len(streamer.names()) >= 40)
    streamer.process.send_signal(signal.SIGINT)
    (tmp_path / "go").touch()  # not a second signal: another thread may get it, and nobody would look
    ended = streamer.end()
    assert ended["error"] == ["KeyboardInterrupt", "", ""] and ended["threads"] == []
    kept = journal(tmp_path / "m.partial")
    assert set(kept) <= set(some)
    streamer.hub.clear()
    streamer.begin("m")
    assert streamer.end()["error"] is None
    hfcart.merge([str(folder) for folder in streamer.towers], out=str(tmp_path / "n"))
    assert (tmp_path / "m/model.safetensors").read_bytes() == (tmp_path / "n/model.safetensors").read_bytes()
