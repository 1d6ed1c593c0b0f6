"""A merge with adapters: each task is measured with its own beside the tower alone, of a folder or a repo."""

from __future__ import annotations

import json
from pathlib import Path

from card_text import table
from running import Commands
from three_towers import TOWERS, card


def shares(results: Path) -> dict[str, tuple[float, float | None]]:
    """Each task's accuracy by the tower alone and with its adapter, six decimals."""
    found = {}
    for one in json.loads((results / "results.json").read_text())["results"]:
        n, right = (sum(each[name] for each in one["classes"]) for name in ("n", "correct"))
        found[one["task"]] = (round(right / n, 6), one["adapter"]["accuracy"] if "adapter" in one else None)
    return found


def test_each_task_is_measured_with_its_own_adapter(zoo, commands: Commands, tmp_path: Path) -> None:
    hub, root = zoo
    each = [f"{root}/images{i}.yaml" for i in (1, 2, 3)]
    tasks = ["--tasks", ",".join(each), "--precision", "float32"]
    (tmp_path / "other.yaml").write_text(json.dumps(card("user/strange", "other")))
    hub.create("user/strange", repo_type="dataset")
    hub.commit("user/strange", dict(hub.files("user/images1", "main", repo_type="dataset")), repo_type="dataset")
    merge = ["merge", *TOWERS, "--adapters"]
    lines = [
        [*merge, "1.0", "--out", "whole", "--eval", ",".join(each), "--precision", "float32"],
        [*merge, "1", "--out", "least", "--push-to", "user/least"],
        ["eval", "least", *tasks, "--references", "measured"],
        ["eval", "user/least@main", *tasks, "--out", "repo"],
        ["eval", "user/least", *tasks, "--out", "alone", "--no-adapters"],
        ["eval", "user/least", "--tasks", "other.yaml", "--out", "foreign"],
        *(["eval", f"user/least:adapters/t{i}", "--tasks", each[i - 1], "--out", f"a{i}"] for i in (1, 2, 3)),
        *(["eval", f"user/t{i}", "--tasks", each[i - 1], "--out", f"t{i}"] for i in (1, 2, 3)),
    ]
    runs = commands(hub, lines)
    assert not [run.stderr for run in runs if run.returncode]
    least, local = shares(tmp_path / "least"), runs[2]
    assert least == shares(tmp_path / "repo")
    assert shares(tmp_path / "alone") == {task: (value, None) for task, (value, _) in least.items()}
    for i in (1, 2, 3):
        task = f"images{i}"
        # As the adapter measures when it is named itself; whole, as the tower it was made of.
        assert least[task][1] == shares(tmp_path / f"a{i}")[task][0]
        assert shares(tmp_path / "whole")[task][1] == shares(tmp_path / f"t{i}")[task][0]
    assert any(alone != adapted for alone, adapted in least.values())
    # In words, on the card, and in the figure's folder; the tower's own accuracy stays what leads.
    heading = next(line for line in local.stdout.splitlines() if line.startswith("task "))
    assert heading.split("  ")[0] == "task" and "with its adapter" in heading and "individual" in heading
    rows = table((tmp_path / "least" / "README.md").read_text(), "Accuracy", "Task")
    assert rows[0][:4] == ["Task", "Accuracy", "95% interval", "With its adapter"]
    assert [row[3] for row in rows[1:4]] == [f"{100 * adapted:.1f}" for _, adapted in least.values()]
    assert "with each task's own adapter" in (tmp_path / "least" / "README.md").read_text()
    assert shares(tmp_path / "foreign")["other"][1] is None
    assert "has no adapter of Images: it is measured by the tower alone" in " ".join(runs[5].stderr.split())
    record = json.loads((tmp_path / "least" / "results.json").read_text())
    assert record["results"][0]["adapter"]["tower"] == "adapters/t1"
