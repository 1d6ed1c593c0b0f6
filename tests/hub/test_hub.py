"""The Hub through the unmodified client, against the embedded Hub on loopback."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import httpx
from running import ROOT, ended

from hfcart.demo.embedded_hub.hub import EmbeddedHub
from hfcart.errors import UsageError
from hfcart.formats.card_facts import MAX_FRONT_MATTER, card_facts
from hfcart.formats.safe_yaml import MAX_DEPTH
from hfcart.hub import split_ref
from hfcart.hub._calls import pause_after
from hfcart.records import CardFacts

WEIGHTS = bytes(range(256)) * 400
TOKENS = ("hf_ownersecret", "hf_guestsecret", "hf_readersecret", "hf_nobodysecret")
OWNER, GUEST, READER, NOBODY = TOKENS
RECORD = json.dumps({"format": 1, "recipe": {}, "method": {}, "sources": [], "tensors": []}).encode()

PREAMBLE = """
import json, os, threading
from pathlib import Path
from hfcart import errors, hub

out, notes = {}, []
hub.set_notifier(notes.append)
folder = Path("merged")

def refused(fn, *args, **kwargs):
    try:
        return ["nothing raised", repr(fn(*args, **kwargs)), None]
    except errors.HfcartError as error:
        return [type(error).__name__, error.message, error.hint or ""]

def read(at, path, start, end):
    found = bytearray(end - start)
    hub.read_into(at, path, start, memoryview(found))
    return bytes(found)

def check(repo, **kwargs):
    return hub.check_target(repo, **{"private": False, "overwrite": False} | kwargs)

def publish(target, **kwargs):
    return hub.publish(folder, target, **{"private": False, "create_pr": False, "message": "Merge"} | kwargs)
"""


@dataclass
class Ran:
    out: dict[str, Any]
    notes: list[str]


@dataclass
class Client:
    """Runs scripts of hfcart.hub, each in a process and with a cache of its own."""

    hub: EmbeddedHub
    folder: Path
    count: int = 0

    def run(self, script: str, *, token: str | None = OWNER, **env: str) -> Ran:
        self.count += 1
        settings = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder),
            "HF_HOME": str(self.folder / f"cache{self.count}"),
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HFCART_RETRY_BASE": "0.01",
            **({"HF_TOKEN": token} if token else {}),
            **env,
        }
        code = PREAMBLE + textwrap.dedent(script) + "\nprint(json.dumps([out, notes]))\n"
        command = [sys.executable, "-W", "error", "-c", code]
        done = ended(command, env=settings, cwd=self.folder)
        assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
        assert not [token for token in TOKENS if token in done.stdout]
        return Ran(*json.loads(done.stdout))

    def asked(self, pattern: str) -> list[str]:
        """The requests that match, as "METHOD /path?query"."""
        lines = [f"{request.method} {request.path}" for request in self.hub.requests]
        return [line for line in lines if re.search(pattern, line)]


@pytest.fixture
def client(tmp_path):
    with EmbeddedHub(tmp_path / "hub", page_size=4) as hub:
        hub.add_user("owner", token=OWNER, orgs=("lab",))
        hub.add_user("guest", token=GUEST)
        hub.add_user("reader", token=READER, role="read")
        folder = tmp_path / "work"
        folder.mkdir()
        yield Client(hub, folder)


@pytest.fixture
def tower(client):
    client.hub.create("owner/tower")
    return client.hub.commit("owner/tower", {"model.safetensors": WEIGHTS, "config.json": b'{"a": 1}'})


@pytest.fixture
def merged(client):
    """A finished folder, with things in it that are not to be published."""
    folder = client.folder / "merged"
    (folder / ".cache").mkdir(parents=True)
    (folder / ".eval_results").mkdir()
    (folder / "figures").mkdir()
    files = {
        "README.md": b"---\nlicense: mit\n---\n# Merged\n",
        "config.json": b"{}",
        "hfcart.json": RECORD,
        "model-00001-of-00002.safetensors": WEIGHTS,
        "model-00002-of-00002.safetensors": WEIGHTS[::-1],
        "model.safetensors.index.json": b'{"weight_map": {}}',
        "figures/energy.png": b"\x89PNG",
        ".eval_results/cars.yaml": b"- value: 1\n",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / ".cache" / "notes").write_bytes(b"not published")
    (folder / ".env").write_bytes(OWNER.encode())
    (folder / "outside.txt").symlink_to("/etc/hostname")
    return files


# Names


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("user/name", ("user/name", None)),
        ("user/name@main", ("user/name", "main")),
        ("a-b_c/d.e@refs/pr/12", ("a-b_c/d.e", "refs/pr/12")),
        ("user/name@v1.0-rc.1", ("user/name", "v1.0-rc.1")),
    ],
)
def test_split_ref(ref, expected):
    assert split_ref(ref) == expected


@pytest.mark.parametrize(
    "ref",
    [
        *("", "name", "a/b/c", "user/", "/name", "us er/name", "../name", "user/..", "user/na--me", "usér/name"),
        *("user/n.git", "user/name\n", "user/name@", "user/name@a b", "user/name@../x", "user/name@-x"),
        *("user/name@a@b", "user/name@x\n"),
    ],
)
def test_split_ref_refuses(ref):
    with pytest.raises(UsageError) as caught:
        split_ref(ref)
    assert "user/name@revision" in caught.value.hint


# Resolving


def test_every_kind_of_revision_is_pinned_with_one_resolution(client, tower):
    hub = client.hub
    hub.tag("owner/tower", "v1", tower)
    branch = hub.commit("owner/tower", {"extra.txt": b"x"}, branch="feature/x")
    number = hub.pull_request("owner/tower", {"pr.txt": b"x"})
    newest = hub.commit("owner/tower", {"config.json": b'{"a": 2}', **{f"f{i}.txt": b"." * i for i in range(9)}})
    ran = client.run(
        f"""
        for revision in (None, "main", "v1", "feature/x", "{tower}", "refs/pr/{number}"):
            found = hub.resolve("owner/tower" + (f"@{{revision}}" if revision else ""))
            assert (found.repo, found.revision) == ("owner/tower", revision)
            out[str(revision)] = [found.commit, {{p: [f.path, f.size, f.sha256] for p, f in found.files.items()}}]
        """
    )
    commits = {revision: commit for revision, (commit, _) in ran.out.items()}
    assert commits == {"None": newest, "main": newest, "v1": tower, tower: tower, "feature/x": branch} | {
        f"refs/pr/{number}": hub.head("owner/tower", f"refs/pr/{number}")
    }
    for commit, files in ran.out.values():  # all pages of the listing, of that commit
        assert {path: size for path, (_, size, _) in files.items()} == {
            path: len(content) for path, content in hub.files("owner/tower", commit).items()
        }
    weights = ran.out["v1"][1]["model.safetensors"]
    assert weights[0] == "model.safetensors" and re.fullmatch("[0-9a-f]{64}", weights[2])
    assert ran.out["v1"][1]["config.json"][2] is None
    # The commit of v1 is asked for by name once its list of files is here: no request.
    assert len(client.asked(r"^GET /api/models/owner/tower(/revision/[^/]+)?$")) == 5
    assert {line.split("/tree/")[1][:40] for line in client.asked("/tree/")} == set(commits.values())


def test_what_cannot_be_seen_is_refused(client, tower):
    client.hub.create("owner/secret", private=True)
    client.hub.create("owner/gated", gated=True)
    client.hub.commit("owner/gated", {"model.safetensors": WEIGHTS, "config.json": b"{}"})
    script = """
    out["missing"] = refused(hub.resolve, "owner/nothing")
    out["secret"] = refused(hub.resolve, "owner/secret")
    out["revision"] = refused(hub.resolve, "owner/tower@v9")
    gated = hub.resolve("owner/gated")
    out["read"] = refused(read, gated, "model.safetensors", 0, 8)
    out["small"] = refused(hub.read_small, gated, "config.json")
    out["fetch"] = refused(hub.fetch, gated, "model.safetensors")
    """
    for token in (None, GUEST):
        out = client.run(script, token=token).out
        for name in ("missing", "secret"):
            kind, message, hint = out[name]
            assert kind == "RepoNotFoundError" and "owner/" in message and "private" in message
            assert "hf auth login" in hint and "HF_TOKEN" in hint
        assert out["revision"][0] == "RevisionNotFoundError" and "owner/tower@v9" in out["revision"][1]
        assert f"{client.hub.url}/owner/tower/tree/main" in out["revision"][2]
        for name in ("read", "small", "fetch"):
            kind, message, hint = out[name]
            assert kind == "AccessError" and "owner/gated is gated" in message
            assert f"accept the conditions at {client.hub.url}/owner/gated" in hint
    wrong = client.run('out["wrong"] = refused(hub.resolve, "owner/tower")', token=NOBODY).out["wrong"]
    assert wrong[0] == "AccessError" and "does not accept the token" in wrong[1] and "hf auth login" in wrong[2]
    # Nothing above may pass, so nothing was tried twice.
    assert len(client.asked("GET /api/models/owner/nothing$")) == 2


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "a\\b", "a\0b", "a//b", "x\x1b[2J"])
def test_a_file_name_that_leads_out_is_refused(client, tower, name):
    repo = client.hub.store.repos["model", "owner/tower"]
    files = repo.history[tower].files
    files[name] = files["config.json"]
    kind, message, hint = client.run('out["x"] = refused(hub.resolve, "owner/tower")').out["x"]
    assert kind == "CorruptFileError" and repr(name) in message and "owner/tower" in message and hint


def test_a_hub_that_fails_for_a_while_is_asked_again(client, tower):
    hub, script = client.hub, 'out["commit"] = hub.resolve("owner/tower").commit'
    failures = {
        "answered 503 to GET /api/models/owner/tower; trying again in 0.01 s (try 2 of 4)": {"status": 503},
        "answered 429 to GET /api/models/owner/tower; trying again in 0 s": {
            "status": 429,
            "headers": {"Retry-After": "0"},
        },
        "connection dropped during GET /api/models/owner/tower": {"drop_after": 10},
        "no answer in time to GET /api/models/owner/tower": {"delay": 4.0},
    }
    for expected, failure in failures.items():
        hub.clear()
        hub.fail("GET /api/models/owner/tower$", **failure)
        ran = client.run(script, HF_HUB_DOWNLOAD_TIMEOUT="1")
        assert ran.out["commit"] == tower
        assert len(ran.notes) == 1 and expected in ran.notes[0] and ran.notes[0].startswith("Resolving owner/tower: ")
    # When one thread cannot connect, the client closes the session under the others.
    ran = client.run(
        """
        from huggingface_hub import close_session, get_session
        get_session().close()
        hub.set_notifier(lambda text: (notes.append(text), close_session()))
        out["commit"] = hub.resolve("owner/tower").commit
        out["patience"] = get_session().timeout.read
        """,
        HF_HUB_DOWNLOAD_TIMEOUT="2",
    )
    assert ran.out == {"commit": tower, "patience": 12.0} and "the connection dropped" in ran.notes[0]
    hub.clear()
    hub.fail("/tree/", status=500, times=2)
    ran = client.run(script)
    assert ran.out["commit"] == tower
    assert [note.split("; ")[1] for note in ran.notes] == [
        "trying again in 0.01 s (try 2 of 4)",
        "trying again in 0.02 s (try 3 of 4)",
    ]


def test_a_hub_that_keeps_failing_is_given_up(client, tower):
    hub, script = client.hub, 'out["x"] = refused(hub.resolve, "owner/tower@main")'
    hub.fail("GET /api/models/owner/tower/revision/main", status=502, times=None)
    kind, message, hint = client.run(script).out["x"]
    assert kind == "HubError" and "502" in message and "(4 tries)" in message and hub.url in hint
    assert len(client.asked("GET /api/models/owner/tower/")) == 4
    hub.clear()
    hub.fail("GET /api/models/owner/tower/revision/main", drop_after=0, times=None)
    kind, message, _ = client.run(script).out["x"]
    assert kind == "HubError" and "the connection dropped" in message and "(4 tries)" in message
    down = client.run(script, HF_ENDPOINT="http://127.0.0.1:9").out["x"]
    assert down[0] == "HubError" and "cannot connect to 127.0.0.1" in down[1]
    elsewhere = client.run(script, HF_ENDPOINT=f"{hub.url}/elsewhere").out["x"]
    assert elsewhere[0] == "HubError" and "404" in elsewhere[1]
    offline = client.run(script, HF_HUB_OFFLINE="1").out["x"]
    assert offline[0] == "HubError" and "HF_HUB_OFFLINE" in offline[1]


# Reading


def test_ranges_are_exact_and_survive_failures(client, tower):
    hub = client.hub
    hub.fail("GET .*model.safetensors", drop_after=1000, first=3)
    hub.fail("GET .*model.safetensors", status=503, first=5)
    ran = client.run(
        """
        at = hub.resolve("owner/tower")
        spans = [(0, 8), (255, 700), (300, 5000), (102399, 102400), (7, 7)]
        out["whole"] = [read(at, "model.safetensors", *span).hex() for span in spans]
        out["beyond"] = refused(read, at, "model.safetensors", 0, 102401)
        out["before"] = refused(read, at, "model.safetensors", -1, 8)
        out["nofile"] = refused(read, at, "nothing.bin", 0, 1)
        """
    )
    spans = [(0, 8), (255, 700), (300, 5000), (102399, 102400), (7, 7)]
    assert [bytes.fromhex(part) for part in ran.out["whole"]] == [WEIGHTS[a:b] for a, b in spans]
    # After the drop only the rest is asked for; an empty range and a bad one cost no request.
    ranges = [request.range for request in hub.requests if "resolve" in request.path]
    assert ranges == ["bytes=0-7", "bytes=255-699", "bytes=300-4999", "bytes=1300-4999"] + ["bytes=102399-102399"] * 2
    assert [re.findall("dropped|503", note) for note in ran.notes] == [["dropped"], ["503"]]
    for name in ("beyond", "before"):
        assert ran.out[name][0] == "CorruptFileError" and "102,400 bytes" in ran.out[name][1]
    assert ran.out["nofile"][0] == "CorruptFileError" and "no such file" in ran.out["nofile"][1]


def test_ranges_from_many_threads(client, tower):
    client.hub.fail("GET .*model.safetensors", drop_after=100, first=10, times=5)
    client.hub.fail("GET .*model.safetensors", status=500, first=30, times=3)
    ran = client.run(
        """
        from concurrent.futures import ThreadPoolExecutor
        at = hub.resolve("owner/tower")
        spans = [(1000 * k, 1000 * k + 997) for k in range(100)]
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(lambda span: read(at, "model.safetensors", *span), spans))
        out["parts"] = [part.hex() for part in parts]
        """
    )
    parts = [bytes.fromhex(part) for part in ran.out["parts"]]
    assert parts == [WEIGHTS[1000 * k : 1000 * k + 997] for k in range(100)]
    assert len(ran.notes) == 8


def test_a_server_without_ranges_or_without_the_file_is_refused(client, tower):
    hub = client.hub
    hub.fail("GET .*model.safetensors", status=200)
    hub.fail("GET .*model.safetensors", status=404, headers={"X-Error-Code": "EntryNotFound"}, first=2)
    hub.fail("GET .*model.safetensors", status=404, headers={"X-Error-Code": "RepoNotFound"}, first=3)
    hub.fail("GET .*model.safetensors", status=403, first=4)
    out = client.run(
        """
        at = hub.resolve("owner/tower")
        out["all"] = [refused(read, at, "model.safetensors", 0, 8) for _ in range(4)]
        """
    ).out["all"]
    assert [kind for kind, *_ in out] == ["HubError", "SourceError", "RepoNotFoundError", "AccessError"]
    assert all("model.safetensors of owner/tower" in message for _, message, _ in out)
    assert "parts of files" in out[0][1] and "hf download" in out[0][2]
    assert len(client.asked("GET .*model.safetensors")) == 4


def test_small_files_are_bounded_and_kept(client, tower):
    client.hub.commit("owner/tower", {"README.md": b"r" * 2000})
    ran = client.run(
        """
        at = hub.resolve("owner/tower")
        out["before"] = hub.cached(at, "config.json") is None
        out["small"] = [hub.read_small(at, "config.json").decode() for _ in range(3)]
        out["after"] = hub.cached(at, "config.json").name
        out["none"] = hub.read_small(at, "preprocessor_config.json")
        out["exact"] = len(hub.read_small(at, "README.md", 2000))
        out["large"] = refused(hub.read_small, at, "README.md", 1999)
        """
    )
    assert ran.out["before"] is True and ran.out["after"] == "config.json"
    assert ran.out["small"] == ['{"a": 1}'] * 3 and ran.out["none"] is None and ran.out["exact"] == 2000
    kind, message, hint = ran.out["large"]
    assert kind == "CorruptFileError" and "2,000 bytes, expected at most 1,999" in message and "@revision" in hint
    assert len(client.asked("GET .*config.json")) == 1 and not client.asked("preprocessor")


def test_fetch_survives_what_the_client_does_not(client, tower):
    hub = client.hub
    big = WEIGHTS * 120  # above the client's step of 10 MiB
    at = hub.commit("owner/tower", {"big.safetensors": big})
    hub.fail("HEAD .*big.safetensors", drop_after=0)  # the client raises at once
    hub.fail("GET .*big.safetensors", drop_after=11 << 20)  # the client asks for the rest,
    hub.fail("GET .*big.safetensors", status=500, first=2)  # and would fail at once
    ran = client.run(
        """
        from hashlib import sha256
        at = hub.resolve("owner/tower")
        steps = []
        path = hub.fetch(at, "big.safetensors", steps.append)
        out["same"] = sha256(path.read_bytes()).hexdigest() == at.files["big.safetensors"].sha256
        out["path"], out["steps"] = str(path), steps
        out["cached"] = str(hub.cached(at, "big.safetensors"))
        out["again"] = str(hub.fetch(at, "big.safetensors", steps.append))
        path.resolve().write_bytes(b"cut short")
        out["broken"] = hub.cached(at, "big.safetensors")
        out["mended"] = sha256(hub.fetch(at, "big.safetensors").read_bytes()).hexdigest()
        out["mended"] = out["mended"] == at.files["big.safetensors"].sha256
        """
    )
    out = ran.out
    assert out["same"] and out["mended"] and at in out["path"]
    assert out["path"] == out["cached"] == out["again"] and out["broken"] is None
    assert sum(out["steps"]) == 2 * len(big)  # two calls
    ours = [note for note in ran.notes if note.startswith("Fetching big.safetensors of owner/tower: ")]
    assert [re.findall("dropped|500", note) for note in ours] == [["dropped"], ["500"]]
    # The client's own words come through the same channel, not on stderr.
    assert [note for note in ran.notes if note.startswith("The Hub client: ") and "resume" in note]


def test_fetch_gives_up(client, tower):
    hub = client.hub
    hub.fail("GET .*model.safetensors", status=503, times=None)
    script = """
    at = hub.resolve("owner/tower")
    out["x"] = refused(hub.fetch, at, "model.safetensors")
    """
    kind, message, _ = client.run(script).out["x"]
    assert kind == "HubError" and "model.safetensors of owner/tower" in message and "503" in message
    assert len(client.asked("GET .*model.safetensors")) == 4
    hub.clear()
    (client.folder / "file").write_bytes(b"")
    kind, message, hint = client.run(script, HF_HOME=str(client.folder / "file" / "home")).out["x"]
    assert kind == "OutputError" and "Not a directory" in message and "HF_HOME" in hint


def test_fetch_waits_as_long_as_the_hub_asks_and_stops_when_told(client, tower):
    client.hub.fail("GET .*model.safetensors", status=503, headers={"Retry-After": "59"})
    ran = client.run(
        """
        from concurrent.futures import CancelledError
        at = hub.resolve("owner/tower")
        stop = threading.Event()
        hub.set_notifier(lambda text: (notes.append(text), stop.set()))
        try:
            hub.fetch(at, "model.safetensors", stop=stop)
        except CancelledError:
            out["cancelled"] = True
        out["cached"] = hub.cached(at, "model.safetensors")
        """
    )
    assert ran.out == {"cancelled": True, "cached": None}
    assert "trying again in 59 s" in ran.notes[0]
    assert len(client.asked("GET .*model.safetensors")) == 1


# Cards


def test_card_facts():
    card = """---
license: Apache-2.0
license_name: "My licence"
license_link: LICENSE
language: [en, pt-BR, no, english, "<b>"]
datasets:
- tanganke/sun397
- imagenet-1k
- tanganke/sun397
- Stanford Cars
- 7
base_model: openai/clip-vit-base-patch32
tags: [clip]
---
# A tower
"""
    facts = CardFacts(
        license="apache-2.0",
        license_name="My licence",
        license_link="LICENSE",
        datasets=("tanganke/sun397", "imagenet-1k"),
        languages=("en", "pt-BR", "no"),
        base_models=("openai/clip-vit-base-patch32",),
    )
    assert card_facts(card) == facts
    assert card_facts("\ufeff" + card.replace("\n", "\r\n")) == facts


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("license: [mit]", {"license": "mit"}),
        ("license: [mit, gpl]", {}),
        ("license: {a: b}", {}),
        ("license: 'mit\\n<script>'", {}),
        ("license: mit license", {}),
        (f"license: {'x' * 65}", {}),
        ('license_name: "two\\nlines"', {}),
        ('license_name: "a\\x1b[2Jb"', {}),
        (f"license_name: {'x' * 121}", {}),
        ("license_link: https://x.org/a?b=c#d", {"license_link": "https://x.org/a?b=c#d"}),
        ("license_link: javascript:alert(1)", {}),
        ("license_link: https://x.org/) <b>", {}),
        ("license_link: ../../LICENSE", {}),
        ("license_link: /etc/passwd", {}),
        ("base_model: [a/b, c/d, a/b]", {"base_models": ("a/b", "c/d")}),
        ("base_model: a/b\nbase_model_relation: merge", {}),
        ("base_model: ./checkpoint", {}),
        ("base_model: [../x, a/b/c, 'a/b\\n', [a/b], null, a/b--c]", {}),
        ("datasets: 'x](http://evil)'", {}),
        ("language: en", {"languages": ("en",)}),
        (f"license: mit\nx: {'[' * (MAX_DEPTH - 1)}{']' * (MAX_DEPTH - 1)}", {"license": "mit"}),
        ("language: [en-, e, EN, multilingual]", {"languages": ("multilingual",)}),
    ],
)
def test_card_facts_keep_only_what_fits(line, kept):
    assert card_facts(f"---\n{line}\n---\n") == CardFacts(**kept)


@pytest.mark.parametrize(
    "card",
    [
        None,
        "",
        "# no front matter",
        "---\nlicense: mit",  # never closed
        "text\n---\nlicense: mit\n---\n",
        "---\n- license: mit\n---\n",
        "---\nlicense: mit\nx: [\n---\n",
        "---\nlicense: mit\nx: !!python/object/apply:os.system [id]\n---\n",
        "---\na: &a [x, x]\nb: [*a, *a]\nlicense: mit\n---\n",
        "---\n&a license: mit\n---\n",
        "---\nlicense: mit\nx: " + "[" * 60_000 + "\n---\n",
        "---\nlicense: mit\nx: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "\n---\n",  # one too deep, in the mapping
        *(f"---\nlicense: mit\nx: !!{tag}\n---\n" for tag in ("bool x", "timestamp x", "int ''", "str x")),
        "---\nlicense: mit\nx: " + "9" * 20_000 + "\n---\n",
        "---\nlicense: mit\nx: 2026-99-99\n---\n",
        "---\nlicense: mit\n? [a]\n: b\n---\n",
        "---\nlicense: mit\n#" + "x" * MAX_FRONT_MATTER + "\n---\n",
        "---\n\0license: mit\n---\n",
    ],
)
def test_card_facts_of_a_card_that_cannot_be_trusted_are_empty(card):
    assert card_facts(card) == CardFacts()


def test_the_hub_judges_cards(client):
    client.hub.fail("POST /api/validate-yaml", status=503, first=2)
    ran = client.run(
        """
        out["good"] = hub.validate_card("---\\nlicense: mit\\n---\\n# Good\\n")
        out["bad"] = hub.validate_card("---\\nlicense: my-own\\nbase_model: a/b/c\\n---\\n# Bad\\n")
        out["broken"] = hub.validate_card("---\\nlicense: [\\n---\\n")
        """
    )
    assert ran.out["good"] == [] and len(ran.notes) == 1
    assert "license" in " ".join(ran.out["bad"]) and len(ran.out["broken"]) == 1
    down = client.run('out["x"] = refused(hub.validate_card, "# x")', HF_ENDPOINT="http://127.0.0.1:9").out["x"]
    assert down[0] == "HubError"


# Before the work


def test_targets_that_may_be_written(client, tower):
    hub = client.hub
    hub.create("lab/ours")
    head = hub.commit("lab/ours", {"hfcart.json": RECORD, "model.safetensors": WEIGHTS})
    hub.create("owner/empty", private=True)
    ran = client.run(
        """
        def told(repo, **kwargs):
            target = check(repo, **kwargs)
            return [target.repo, target.exists, target.head, list(target.files), target.made_by_hfcart]
        out["new"] = told("owner/new")
        out["org"] = told("lab/new", private=True)
        out["ours"] = told("lab/ours")
        out["empty"] = told("owner/empty", private=True)
        out["over"] = told("owner/tower", overwrite=True)
        """
    )
    assert ran.out["new"] == ["owner/new", False, None, [], False]
    assert ran.out["org"] == ["lab/new", False, None, [], False]
    assert ran.out["ours"] == ["lab/ours", True, head, [".gitattributes", "hfcart.json", "model.safetensors"], True]
    assert ran.out["empty"][1:] == [True, hub.head("owner/empty"), [".gitattributes"], False]
    assert ran.out["over"][1:] == [True, tower, [".gitattributes", "config.json", "model.safetensors"], False]
    assert not hub.exists("owner/new") and not client.asked("^(POST|PUT)")
    guest = client.run('out["pr"] = check("owner/tower", create_pr=True).head', token=GUEST)
    assert guest.out["pr"] == tower


def test_targets_that_may_not_be_written(client, tower):
    hub = client.hub
    for number, record in enumerate((b"{}", b"[" * 100_000, b'{"format": 1}', b"\xff")):
        hub.create(f"owner/not{number}")
        hub.commit(f"owner/not{number}", {"hfcart.json": record})
    out = client.run(
        """
        out["theirs"] = refused(check, "owner/tower")
        out["formats"] = [refused(check, f"owner/not{n}") for n in range(4)]
        out["public"] = refused(check, "owner/tower", private=True, overwrite=True)
        out["namespace"] = refused(check, "other/new")
        out["revision"] = refused(check, "owner/new@main")
        """
    ).out
    for kind, message, hint in (out["theirs"], *out["formats"]):
        assert kind == "PublishError" and "hfcart did not make" in message and "--overwrite" in hint
    assert out["public"][0] == "PublishError" and "is public" in out["public"][1] and "settings" in out["public"][2]
    assert out["namespace"][0] == "PublishError" and "only under owner, lab" in out["namespace"][1]
    assert out["revision"][0] == "UsageError"
    script = """
    out["existing"] = refused(check, "owner/tower", overwrite=True)
    out["new"] = refused(check, "owner/new")
    out["own"] = refused(check, "reader/new")
    """
    guest, reader = client.run(script, token=GUEST).out, client.run(script, token=READER).out
    for refusal in (guest["existing"], guest["new"], guest["own"], reader["existing"], reader["new"], reader["own"]):
        assert refusal[0] == "PublishError" and "hf auth login" in refusal[2]
    assert "write access to owner/tower" in guest["existing"][1] and "403" in guest["existing"][1]
    assert "read-only" in reader["own"][1]
    wrong, none = client.run(script, token=NOBODY).out["new"], client.run(script, token=None).out["new"]
    assert wrong[0] == "PublishError" and "does not accept the token" in wrong[1] and "hf auth login" in wrong[2]
    assert none[0] == "PublishError" and "there is none" in none[1] and "hf auth login" in none[2]
    assert not client.asked("^(POST|PUT)")


# Publishing

AGAIN = "hfcart push merged --push-to owner/merged"


def test_a_new_repo_gets_everything_in_one_commit(client, merged):
    ran = client.run(
        """
        done = publish(check("owner/merged", private=True), private=True, message="Merge two towers\\n\\nWith CART.")
        out["done"] = [done.url, done.commit, done.pull_request, done.changed]
        done = publish(check("owner/merged", private=True), private=True)
        out["again"] = [done.url, done.commit, done.pull_request, done.changed]
        """
    )
    hub = client.hub
    head = hub.head("owner/merged")
    assert ran.out["done"] == [f"{hub.url}/owner/merged", head, None, True]
    assert ran.out["again"] == [f"{hub.url}/owner/merged", head, None, False]
    files = hub.files("owner/merged")
    del files[".gitattributes"]
    assert files == merged
    assert [message for _, message in hub.commits("owner/merged")] == [
        "Merge two towers\n\nWith CART.",
        "initial commit",
    ]
    assert len(client.asked("POST .*/commit/")) == 1
    assert client.run('out["x"] = refused(hub.resolve, "owner/merged")', token=None).out["x"][0] == "RepoNotFoundError"


def test_stale_weights_go_in_the_same_commit(client, merged):
    hub = client.hub
    hub.create("owner/merged")
    stale = [
        *("model.safetensors", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
        *("tf_model.h5", "flax_model.msgpack", "old.pt", "onnx/model.onnx", "model-00001-of-00003.safetensors"),
    ]
    kept = ["training_args.bin", "notes.md", "merges.md"]
    hub.commit("owner/merged", {name: name.encode() for name in (*stale, *kept)})
    client.run('publish(check("owner/merged", overwrite=True))')
    files = hub.files("owner/merged")
    assert files == merged | {name: name.encode() for name in kept} | {".gitattributes": files[".gitattributes"]}
    assert len(hub.commits("owner/merged")) == 3
    # One more stale file beside an otherwise identical model is reason enough for a commit.
    hub.commit("owner/merged", {"model.safetensors": WEIGHTS})
    client.run('publish(check("owner/merged"))')
    assert "model.safetensors" not in hub.files("owner/merged") and len(hub.commits("owner/merged")) == 5


def test_a_target_that_changed_meanwhile_is_left_alone(client, merged):
    hub = client.hub
    hub.create("owner/merged")
    meddle = """
    from huggingface_hub import CommitOperationAdd, HfApi
    def meddle(repo):
        HfApi().create_repo(repo, exist_ok=True)
        HfApi().create_commit(repo, [CommitOperationAdd("theirs.txt", b"x")], commit_message="Theirs")
    """
    out = client.run(
        textwrap.dedent(meddle)
        + textwrap.dedent(
            """
            target = check("owner/merged")
            meddle("owner/merged")
            out["moved"] = refused(publish, target)
            target = check("owner/merged2")
            meddle("owner/merged2")
            out["appeared"] = refused(publish, target)
            """
        )
    ).out
    assert out["moved"][0] == "PublishError" and "has changed since" in out["moved"][1] and AGAIN in out["moved"][2]
    assert out["appeared"][0] == "PublishError" and "somebody" in out["appeared"][1] and AGAIN in out["appeared"][2]
    for repo in ("owner/merged", "owner/merged2"):
        assert [message for _, message in hub.commits(repo)] == ["Theirs", "initial commit"]
    # And when they are quicker between two tries of ours.
    hub.fail("POST .*/owner/merged3/commit/", status=500)
    out = client.run(
        textwrap.dedent(meddle)
        + textwrap.dedent(
            """
            hub.set_notifier(lambda text: (notes.append(text), meddle("owner/merged3")))
            out["between"] = refused(publish, check("owner/merged3"))
            """
        )
    ).out
    assert out["between"][0] == "PublishError" and "has changed since" in out["between"][1]
    assert [message for _, message in hub.commits("owner/merged3")] == ["Theirs", "initial commit"]


def test_a_commit_is_tried_again_but_never_made_twice(client, merged):
    hub = client.hub
    failures: list[tuple[str, dict[str, Any]]] = [
        ("POST .*/commit/", {"drop_after": 0}),  # the commit happens, its answer is lost
        ("POST .*/commit/", {"status": 503, "times": 2}),
        ("POST .*/commit/", {"status": 429, "headers": {"Retry-After": "0"}}),
        ("POST /api/validate-yaml", {"status": 502}),
        ("POST /api/repos/create", {"drop_after": 0}),  # the repo is created, the answer lost
        ("GET /api/whoami-v2", {"status": 500}),
        ("GET .*/auth-check/write", {"drop_after": 0}),
    ]
    script = 'out["done"] = publish(check("owner/merged", overwrite=True)).commit'
    for round_, (path, failure) in enumerate(failures):
        hub.clear()
        hub.fail(path, **failure)
        (client.folder / "merged" / "config.json").write_bytes(b"%d" % round_)
        if "create" not in path and not hub.exists("owner/merged"):
            hub.create("owner/merged")
        repo = "owner/created" if "create" in path else "owner/merged"
        before = len(hub.commits(repo)) if hub.exists(repo) else 1
        ran = client.run(script.replace("owner/merged", repo))
        assert ran.notes or "drop_after" in failure, path
        assert all("trying again" in note for note in ran.notes), path
        assert ran.out["done"] == hub.head(repo)
        assert len(hub.commits(repo)) == before + 1
        assert hub.files(repo)["config.json"] == b"%d" % round_
        if "drop_after" in failure:  # where the answer was lost, nothing was lost with it
            assert len(client.asked("POST .*/commit/")) == 1


def test_publishing_that_fails_says_how_to_go_on(client, merged):
    hub = client.hub
    hub.create("owner/merged")
    script = 'out["x"] = refused(publish, check("owner/merged"))'
    hub.fail("POST .*/commit/", status=500, times=None)
    kind, message, hint = client.run(script).out["x"]
    assert kind == "PublishError" and "500" in message and "(4 tries)" in message and AGAIN in hint
    assert len(client.asked("POST .*/commit/")) == 4
    hub.clear()
    hub.fail("POST .*/commit/", status=403)
    kind, message, hint = client.run(script).out["x"]
    assert kind == "PublishError" and "403" in message and AGAIN in hint and "hf auth login" in hint
    hub.clear()
    hub.fail("POST /api/repos/create", status=403)
    new = 'out["x"] = refused(publish, check("owner/new", private=True), private=True)'
    new = 'os.chdir(folder); folder = Path("."); ' + new  # the command is right where it is printed
    kind, message, hint = client.run(new).out["x"]
    assert kind == "PublishError" and "hfcart push . --push-to owner/new --private" in hint
    (client.folder / "merged" / "README.md").write_bytes(b"---\nlicense: my-own\n---\n")
    kind, message, hint = client.run(script).out["x"]
    assert kind == "PublishError" and "front matter" in message and "license" in message and AGAIN in hint
    assert len(hub.commits("owner/merged")) == 1


def test_what_the_client_says_is_announced_without_queries(client, merged):
    client.hub.fail("PUT /lfs-upload", status=503)
    ran = client.run(
        """
        publish(check("owner/merged"))
        from huggingface_hub.utils import logging
        logging.get_logger("huggingface_hub.utils._http").warning("thrown while requesting PUT https://x/y?sig=abc\\nz")
        """
    )
    assert re.fullmatch(r"Transferring files: the Hub answered 503 to PUT /lfs-upload/\S+; .*", ran.notes[0])
    assert ran.notes[1:] == ["The Hub client: thrown while requesting PUT https://x/y z"]
    assert len(client.hub.commits("owner/merged")) == 2


def test_what_the_client_has_tried_long_enough_is_not_tried_again():
    error = LocalEntryNotFoundError("neither on the Hub nor in the cache")
    error.__cause__ = httpx.ConnectError("refused")
    assert pause_after(error, 1) is None and pause_after(error.__cause__, 1) is not None


def test_a_pull_request_leaves_main_alone(client, merged, tower):
    hub = client.hub
    ran = client.run(
        """
        done = publish(check("owner/tower", create_pr=True), create_pr=True)
        out["done"] = [done.url, done.commit, done.pull_request, done.changed]
        """,
        token=GUEST,
    )
    assert ran.out["done"][1:] == [
        hub.head("owner/tower", "refs/pr/1"),
        f"{hub.url}/owner/tower/discussions/1",
        True,
    ]
    assert hub.head("owner/tower") == tower
    proposed = hub.files("owner/tower", "refs/pr/1")
    assert merged.items() <= proposed.items() and "model.safetensors" not in proposed
    # A commit that may have been made is not sent again: there might be two pull requests then.
    hub.fail("POST .*/commit/", drop_request=True)
    script = 'out["x"] = refused(publish, check("owner/tower", create_pr=True), create_pr=True)'
    kind, message, hint = client.run(script, token=GUEST).out["x"]
    assert kind == "PublishError" and f"{hub.url}/owner/tower/discussions" in hint
    assert len(client.asked("POST .*/commit/")) == 2
    hub.fail("POST .*/commit/", status=503)
    ran = client.run(script, token=GUEST)
    assert ran.out["x"][0] == "nothing raised" and len(client.asked("POST .*/commit/")) == 4


def test_silence_is_counted_over_a_whole_command(client):
    """Ten files, each of them worth four tries, of a server that says nothing."""
    hub = client.hub
    for number in range(10):
        hub.create(f"owner/data{number}", "dataset")
    hub.fail("GET /(api/)?datasets/", drop_request=True, delay=1e6, times=None)
    script = """
        for number in range(10):
            out[str(number)] = refused(hub.benchmark_tasks, f"owner/data{number}", "0" * 40)[:2]
        """
    ran = client.run(script, HFCART_TIMEOUT="0.2")
    assert all(kind == "HubError" and "no answer in time" in message for kind, message in ran.out.values())
    # Eight times the bound of one request, then short looks; without it there would be 40 requests.
    assert 8 <= len(client.asked("GET /api/datasets/")) <= 20


def test_a_list_of_files_that_never_ends_or_leads_elsewhere_is_refused(client, tower):
    hub = client.hub
    for address in (f"{hub.url}/api/models/owner/tower/tree/x", "http://127.0.0.1:9/", "/relative"):
        hub.clear()
        hub.fail("GET .*/tree/", body=b"[]", headers={"Link": f'<{address}>; rel="next"'}, times=None)
        kind, message, _ = client.run('out["x"] = refused(hub.resolve, "owner/tower")').out["x"]
        assert kind == "HubError" and "made no sense" in message
        assert len(client.asked("GET .*/tree/")) <= 3


@pytest.mark.parametrize(
    "token", ["hf_abc def", "hf_\u201cabc\u201d", "hf_abc\u00e9", "hf_abc\x7f", "Bearer hf_abc", "hf_\tabc"]
)
def test_a_token_with_characters_that_no_token_has_is_named(client, tower, token):
    script = 'out["x"] = refused(hub.resolve, "owner/tower"); out["y"] = refused(check, "owner/new")'
    ran = client.run(script, token=token)
    for kind, message, hint in ran.out.values():
        assert kind in ("AccessError", "PublishError") and "holds characters that no token has" in message
        assert "HF_TOKEN" in message and "hf auth login" in hint and "abc" not in message + hint
    assert not client.hub.requests
