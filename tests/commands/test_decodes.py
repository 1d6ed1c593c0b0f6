"""However many towers a command measures, it decodes each image once, and takes each matrix apart once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from running import HELPERS, TOKEN, ended
from three_towers import TOWERS

CODE = """
import hashlib, json, sys
from collections import Counter
import apart_here
import hfcart
from hfcart.zero_shot import scoring
from work import counted

seen = Counter()
decode = scoring.decode

def counting(data):
    seen[hashlib.sha256(data).hexdigest()] += 1
    return decode(data)

scoring.decode = counting
towers, task = sys.argv[1].split(","), sys.argv[2]
work = []
for i, (ranks, scales) in enumerate([([0.3], [1.0]), ([0.1, 0.2, 0.3], [1.0, 2.0])]):
    seen.clear()
    with counted() as done:
        hfcart.sweep(towers, task, rank=ranks, scale=scales, limit=20, out=f"swept{i}")
    work.append([done["decompositions"], done["read"]])
found = [list(seen.values())]
seen.clear()
hfcart.compare(towers, task, methods=["cart,average,tsv_m"], limit=20, out="compared", references="none")
print(json.dumps([work, *found, list(seen.values())]))
"""


def test_compare_and_sweep_decode_each_image_once(zoo, clean_env: dict[str, str], tmp_path: Path) -> None:
    hub, root = zoo
    env = clean_env | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf-home")}
    env["PYTHONPATH"] += f"{os.pathsep}{HELPERS}"
    command = [sys.executable, "-c", CODE, ",".join(TOWERS), f"{root}/images1.yaml"]
    done = ended(command, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    work, *counts = json.loads(done.stdout.splitlines()[-1])
    (few, read), (many, read_again) = work  # points of a grid cost no decomposition and no byte of a source
    assert few == many > 0 and read_again <= read
    assert [set(each) for each in counts] == [{1}, {1}] and min(map(len, counts)) >= 8
