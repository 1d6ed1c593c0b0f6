"""One journal, one rule: whatever a kill leaves of a line, the lines before it stay and those after it count."""

from __future__ import annotations

import json
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from running import HELPERS, TOKEN, contents, ended
from three_towers import TOWERS
from towers import write_tower

from hfcart.system.journal import Journal

LINES = [{"group": "a", "sha256": {"a": "ab"}}, {"rank": 0, "correct": [3, 4]}, {"merged": "häuser"}, {"x": None}]


def ends(lines: list[dict[str, Any]], path: Path) -> tuple[bytes, list[int]]:
    """A journal of these lines: its bytes, and where each line ends, the fingerprint's first."""
    path.unlink(missing_ok=True)
    Journal(path, "f").append(*lines)
    data = path.read_bytes()
    return data, list(accumulate(len(line) + 1 for line in data.split(b"\n")[:-1]))


def test_two_cuts_at_every_byte_lose_nothing_that_was_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "j.jsonl"
    data, at = ends(LINES[:2], path)
    for first in range(len(data) + 1):
        whole = max(0, sum(end <= first for end in at) - 1)
        path.write_bytes(data[:first])
        journal = Journal(path, "f")
        assert journal.lines == LINES[:whole] and not journal.foreign
        journal.append(LINES[2])
        again = path.read_bytes()
        assert again == ends([*LINES[:whole], LINES[2]], tmp_path / "k.jsonl")[0]  # what an undisturbed one holds
        for second in range(len(again) - len(json.dumps(LINES[2])), len(again)):
            path.write_bytes(again[:second])
            last = Journal(path, "f")
            assert last.lines == LINES[:whole]
            last.append(LINES[3])
            assert Journal(path, "f").lines == [*LINES[:whole], LINES[3]]


@pytest.mark.parametrize("rubbish", [b"\0" * 40, b"\xff\xfe\n", b'{"a": 1}x\n', b"3\n", b"[" * 90_000 + b"\n", b"\n\n"])
def test_what_is_garbled_was_never_written(tmp_path: Path, rubbish: bytes) -> None:
    path = tmp_path / "j.jsonl"
    data, _ = ends(LINES[:1], path)
    path.write_bytes(data + rubbish + b'{"behind": 1}\n')
    journal = Journal(path, "f")
    assert journal.lines == LINES[:1]
    journal.append()  # not even without a line of its own
    assert path.read_bytes() == data


def test_lines_of_other_work_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    data, _ = ends(LINES, path)
    journal = Journal(path, "g")
    assert journal.foreign and not journal.lines and path.read_bytes() == data
    journal.append(LINES[0])
    assert Journal(path, "g").lines == LINES[:1] and Journal(path, "f").foreign


JOURNALS = {
    "merge": "journal.jsonl",
    "decomposition": "journal.jsonl",
    "sweep": "points.jsonl",
    "compare": "methods.jsonl",
    "choosing": "counts.jsonl",
}


def test_killed_twice_while_writing_and_the_same_in_the_end(
    zoo,
    tasks: str,
    clean_env: dict[str, str],
    tmp_path: Path,
) -> None:
    """For every journal: a kill in its first line, and one in the next run's second."""
    hub, root = zoo
    task = f"{root}/images1.yaml"
    towers = [str(write_tower(tmp_path / f"t{i}", i)) for i in (1, 2, 3)]
    measured = {"sources": TOWERS, "base": "user/clip", "tasks": task}
    swept = ("sweep", {**measured, "ranks": [1, 0.5], "scales": [0.5, 2.0]})
    work: dict[str, tuple[str, dict[str, Any]]] = {
        "merge": ("merge", {"sources": towers, "rank": 0.25, "workers": 1}),
        "decomposition": swept,
        "sweep": swept,
        "compare": ("compare", {**measured, "methods": ["average", "cart"]}),
        "choosing": ("merge", {"sources": TOWERS, "method": "consensus", "tasks": tasks, "workers": 1}),
    }
    jobs = []
    for name, (kind, fields) in work.items():
        journal = JOURNALS[name]
        # The header is a write of its own where work is opened with it: in the journal of groups.
        first = 3 if journal == "journal.jsonl" else 2
        torn = [[None, "undisturbed"], [[first - 1, 9], name], [[first, 30], name], [None, name]]
        jobs += [
            {"kind": kind, "fields": {**fields, "out": f"{out}-{kind}-{name}"}, "journal": journal, "tear": tear}
            for tear, out in torn
        ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    env = clean_env | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
    script = [sys.executable, str(HELPERS / "tearer.py"), "jobs.json"]
    done = ended(script, warm=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    attempts = iter(json.loads(done.stdout))
    for name, (kind, _) in work.items():
        (_, none), (_, once), (_, twice), (_, at_last) = found = [next(attempts) for _ in range(4)]
        assert [status for status, _ in found] == [0, 9, 9, 0], (name, done.stderr)
        # What was whole stays, byte for byte: it is not done again.
        assert none == at_last == [] and len(once) < len(twice) and twice[: len(once)] == once, name
        end, whole = (tmp_path / f"{out}-{kind}-{name}" for out in (name, "undisturbed"))
        assert contents(end) == contents(whole), name
        assert not end.with_name(end.name + ".partial").exists()
