"""Files of the Hub and of its cache are proven: one changed bit is found, fetched again once, or named."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from running import TOKEN, Run, ended
from towers import write_tower

from hfcart.demo.embedded_hub.hub import EmbeddedHub

FILES = {
    "config.json": b'{"hidden_size": 32}',
    "README.md": b"---\nlicense: mit\n---\n",
    "hfcart.json": b'{"format": 1}',
    "tokenizer.json": b"{}" * 5000,
    "merges.txt": b"a b\n",
    "preprocessor_config.json": b'{"image_mean": 0.5}',
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "recipe.yaml": b"method: cart\n",
    "model.safetensors": bytes(range(256)) * 40,  # through LFS
    "deep/weights.dat": bytes(range(256)) * 9,  # weights that are not
}
LFS = (".safetensors", ".parquet")
PREAMBLE = """
import json, sys
from pathlib import Path
from hfcart import errors, hub
out, notes = {}, []
hub.set_notifier(notes.append)
def refused(fn, *args):
    try:
        return ["nothing raised", repr(fn(*args))]
    except errors.HfcartError as error:
        return [type(error).__name__, error.message, error.hint]
"""


def script(hub: EmbeddedHub | str, env: dict[str, str], home: Path, text: str, **more: str) -> dict[str, Any]:
    """What a script of hfcart.hub, in a process of its own, leaves in `out`; its notes are there too."""
    url = hub if isinstance(hub, str) else hub.url
    code = f"{PREAMBLE}{textwrap.dedent(text)}\nprint(json.dumps(out | {{'notes': notes}}))"
    settings = env | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": TOKEN} | more
    done = ended([sys.executable, "-c", code], env=settings)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_bit_changed_on_the_way_or_in_the_cache(hub: EmbeddedHub, clean_env: dict[str, str], tmp_path: Path) -> None:
    """Each kind of file: changed once it is fetched again, changed always it is named; and so are datasets' files."""
    data = {"README.md": b"# Images\n", "test.parquet": bytes(range(256)) * 20, "eval.yaml": b"tasks: []\n"}
    for repo in ("user/once", "user/always"):
        hub.create(repo)
        hub.commit(repo, FILES)
        hub.create(repo, "dataset")
        hub.commit(repo, data, repo_type="dataset")
        for i, name in enumerate([*FILES, *data]):
            kind = "/datasets/" if name in data and i >= len(FILES) else "/"
            place = f"^GET {kind}{repo}/resolve/[^?]*/{name}"
            hub.fail(place, alter=7 * i, times=1 if repo == "user/once" else None)
    earlier = hub.head("user/once")
    newer = hub.commit("user/once", {"more.txt": b"more"})  # shares every blob with the commit before
    out = script(
        hub, clean_env, tmp_path / "hf",
        f"""
        def snapshots(repo):
            return hub.resolve(repo), hub.dataset_files(hub.pin_dataset(repo))
        for name, there in zip(("model", "data"), snapshots("user/once")):
            out[name] = {{path: hub.fetch(there, path).read_bytes().hex() for path in there.files}}
        for name, there in zip(("bad model", "bad data"), snapshots("user/always")):
            out[name] = {{path: refused(hub.fetch, there, path) for path in there.files if path != ".gitattributes"}}
            out[name + " left"] = [p for p in there.files if list(Path(hub.cache_folder()).glob(f"*always/**/{{p}}"))]
        there, old = hub.resolve("user/once"), hub.resolve("user/once@{earlier}")
        out["linked"] = [hub.fetch(old, path).read_bytes().hex() for path in old.files]
        out["spoilt"] = []
        for path in old.files:
            blob = hub.fetch(there, path).resolve()
            good = blob.read_bytes()
            for bad in (good[:-1] + bytes([good[-1] ^ 1]), good[:-1]):  # altered, of the same size; cut short
                blob.write_bytes(bad)
                assert hub.cached(there, path) is None is hub.cached(old, path)
                mended = hub.fetch(there, path).read_bytes(), hub.fetch(old, path).read_bytes()
                out["spoilt"].append(mended == (good, good))
        alone = hub.fetch(there, "config.json")  # as where there are no links: the file itself, at its place
        alone.unlink()
        alone.write_bytes(b"nothing")
        out["alone"] = hub.fetch(there, "config.json").read_bytes().hex()
        out["blobs"] = len(list(Path(hub.cache_folder(), "models--user--once", "blobs").iterdir()))
        """,
    )  # fmt: skip
    assert newer != earlier
    expected = {path: content.hex() for path, content in hub.files("user/once", newer).items()}
    assert out["model"] == expected
    assert out["data"] == {p: c.hex() for p, c in hub.files("user/once", repo_type="dataset").items()}
    assert out["linked"] == [expected[path] for path in sorted(hub.files("user/once", earlier))]
    assert all(out["spoilt"]) and out["alone"] == FILES["config.json"].hex()
    assert out["blobs"] == len(FILES) + 2  # and nothing beside: no second copies, no half files
    assert out["bad model left"] == out["bad data left"] == []
    for files, found in ((FILES, out["bad model"]), (data, out["bad data"])):
        assert found.keys() == files.keys()
        for name, (kind, message, hint) in found.items():
            assert kind == "CorruptFileError" and name in message and "user/always" in message
            assert "expected" in message and ("sha256" if name.endswith(LFS) else "git digest") in message
            assert hint.count("hf download") == 1
    again = [note for note in out["notes"] if "fetched again" in note]
    # once, always, altered and cut short; and the one that was no link
    assert len(again) == 2 * (len(FILES) + len(data)) + 2 * (len(FILES) + 1) + 1


def test_a_merge_has_the_same_bytes_whatever_came_in_first(hub: EmbeddedHub, hfcart: Run, tmp_path: Path) -> None:
    """A header that was read in part, the weights, config and card: each with one bit changed, the first time."""
    card = "---\nlicense: mit\n---\n"
    for i in (1, 2, 3):
        write_tower(tmp_path / f"t{i}", i, card=card)
        hub.create(f"user/t{i}")
        hub.commit(f"user/t{i}", {path.name: path for path in (tmp_path / f"t{i}").iterdir()})
    line = ["merge", "user/t1", "user/t2", "user/t3", "--method", "average"]
    assert hfcart(*line, "--out", "clean", hub=hub).returncode == 0
    for name, place in (("config.json", 60), ("README.md", 12), ("model.safetensors", 1)):
        hub.fail(f"^GET /user/t1/resolve/.*/{name}", alter=place)
    hub.fail(r"^GET /user/t2/resolve/.*/model.safetensors", alter=90, first=2)  # a letter of the header
    hub.fail(r"^GET /user/t3/resolve/.*/model.safetensors", alter=5000, first=4)  # the whole file
    done = hfcart(*line, "--out", "shaken", hub=hub, HF_HUB_CACHE=str(tmp_path / "fresh"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("fetched again") == 3
    for name in ("model.safetensors", "config.json", "README.md", "hfcart.json"):
        assert (tmp_path / "shaken" / name).read_bytes() == (tmp_path / "clean" / name).read_bytes()
    hub.clear()
    hub.fail(r"^GET /user/t2/resolve/.*/config.json", alter=60, times=None)
    done = hfcart(*line, "--out", "bad", hub=hub, HF_HUB_CACHE=str(tmp_path / "fresher"))
    assert done.returncode == 1 and not (tmp_path / "bad").exists()
    assert "config.json of user/t2 is not what its commit lists" in " ".join(done.stderr.split())
