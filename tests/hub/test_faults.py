"""Kinds of request × kinds of fault: every command ends, with the right bytes or one sentence, and leaks nothing."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from faulty import SECRET, Ended, Site, command, sentence_of
from running import TOKEN

from hfcart.demo.embedded_hub._files import SIGNATURE
from hfcart.formats.safetensors_file import sha256_of

TIMEOUT = 0.3  # seconds of silence until a request has failed; a command then lasts a few seconds at the most
Fault = dict[str, Any]
SILENT: Fault = {"drop_request": True, "delay": 1e6}
LATER = "Fri, 01 Jan 2100 00:00:00 GMT"
JUNK = [b"", b"<html><b>Down</b></html>", b'{"sha": "0', b"null", b"[]", b"{}", b"7", b'"x"', b"\xff\xfe"]
WRONG = [
    b'{"sha": 5, "files": "x", "objects": {"a": 1}, "commitOid": 7, "commitUrl": [], "url": {}, "name": 1, "orgs": 4}',
    b'[{"type": "file", "path": 5, "size": "x", "oid": null}]',
    b'{"files": [{"path": 1}], "objects": [{"oid": 3, "actions": []}], "siblings": 3, "error": {"a": []}}',
]
ALWAYS: Fault = {"times": None}
# The work is done, its answer is of no use.
GARBLED: dict[str, Fault] = {
    "cut": {"drop_after": 9} | ALWAYS,
    "stalled": {"stall_after": 9} | ALWAYS,
    "too short": {"promise": 7} | ALWAYS,
    **{f"junk {i}": {"body": body} | ALWAYS for i, body in enumerate(JUNK + WRONG)},
    **{f"{status} after": {"status": status, "after": True} for status in (500, 502, 503, 504)},
    "led astray": {"redirect": "/nowhere"} | ALWAYS,
}
# What passes with time.
PASSING: dict[str, Fault] = {
    "silent once": SILENT,
    "dropped once": {"drop_request": True},
    "cut once": {"drop_after": 9},
    "slow": {"drip": 0.02} | ALWAYS,
    "limited": {"status": 429, "headers": {"Retry-After": "0"}},
    "down once": {"status": 503},
    "too long": {"promise": 1 << 20},
}
WAITS: dict[str, Fault] = {
    "limited for long": {"status": 429, "headers": {"Retry-After": "5000"}} | ALWAYS,
    "limited by a window": {"status": 429, "headers": {"ratelimit": '"api";r=0;t=5000'}} | ALWAYS,
    "down until": {"status": 503, "headers": {"Retry-After": LATER}} | ALWAYS,
}
LASTING: dict[str, Fault] = {
    "silent": SILENT | ALWAYS,
    "dropped": {"drop_request": True} | ALWAYS,
    "down": {"status": 503} | ALWAYS,
    "broken": {"status": 500} | ALWAYS,
    "forbidden": {"status": 403} | ALWAYS,
}
FAULTS = GARBLED | PASSING | WAITS | LASTING
KINDS = {
    "info": ("merge", r"GET /api/models/user/a{n}($|/revision)"),
    "tree": ("merge", r"GET /api/models/user/a{n}/tree/"),
    "head": ("merge", r"HEAD /user/a{n}/resolve/.*config.json"),
    "get": ("merge", r"GET /user/a{n}/resolve/.*config.json"),
    "signed get": ("merge", r"GET /user/a{n}/resolve/.*safetensors\?"),
    "signed range": ("stream", r"GET /user/a{n}/resolve/.*safetensors\?"),
    "whoami": ("push", r"GET /api/whoami"),
    "create": ("push", r"POST /api/repos/create"),
    "validate": ("push", r"POST /api/validate-yaml"),
    "preupload": ("push", r"POST .*/preupload/"),
    "lfs batch": ("push", r"POST .*/objects/batch"),
    "lfs put": ("push", r"PUT /lfs-upload"),
    "lfs verify": ("push", r"POST .*/lfs/verify"),
    "commit": ("push", r"POST .*/commit/"),
    "pull request": ("propose", r"POST .*/commit/"),
    "refs": ("propose", r"GET .*/refs"),
    "auth check": ("eval", r"GET .*/auth-check/write"),
    "dataset info": ("eval", r"GET /api/datasets/user/images{n}($|/revision)"),
    "dataset tree": ("eval", r"(GET /api/datasets/user/images{n}/tree|POST /api/datasets/user/images{n}/paths-info)"),
    "dataset card": ("eval", r"GET /datasets/user/images{n}/resolve/.*README"),
    "signed rows": ("eval", r"GET /datasets/user/images{n}/resolve/.*parquet\?"),
    "results": ("eval", r"POST .*/commit/"),
}


ONCE = {"create", "commit", "pull request", "results"}  # requests that are to happen once
ALL = "HFCART_TEST_ALL_FAULTS" in os.environ  # ten minutes
STEP = 1 if ALL else 7


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, clean_env: dict[str, str]) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site"), clean_env | {"HFCART_TIMEOUT": str(TIMEOUT)}) as site:
        yield site


def struck(site: Site, kind: str, fault: Fault, *options: str, level: str = "ERROR") -> tuple[int, Ended]:
    """One command against one fault: the number of its repos, and how it ended."""
    n = site.fresh()
    name, pattern = KINDS[kind]
    for server in (site.hub, site.cdn):
        server.clear()
        server.fail(pattern.format(n=n), **fault)
    site.lead_away()
    ended = site.run(*command(name, n), *options, level=level)
    asked = [f"{request.method} {request.path}" for server in (site.hub, site.cdn) for request in server.requests]
    assert any(re.search(pattern.format(n=n), line) for line in asked), (kind, ended.text)
    return n, ended


def check(site: Site, kind: str, fault: str, n: int, ended: Ended) -> None:
    """What holds however a command ends."""
    text = ended.text
    leaks_nothing(text)
    assert "Traceback" not in text and "did not expect" not in text
    assert ended.seconds < 90 and ended.code in (0, 1)
    if (fault in PASSING and kind != "pull request") or (kind in ONCE and fault in GARBLED):
        assert ended.code == 0
    if ended.code == 1:
        sentence, _, hint = sentence_of(text).partition("\n→ ")
        assert re.fullmatch(r"Error: [A-Za-z`].*\.", sentence, re.DOTALL) and hint.strip()
    if fault in WAITS:
        assert re.search(r"asks to wait [\d,]+ s", text)
    name = KINDS[kind][0]
    if name in ("merge", "stream"):
        out = site.folder / f"out{n}"
        assert out.exists() == (ended.code == 0)
        assert not out.exists() or {path.name: sha256_of(path) for path in out.glob("*.safetensors")} == site.weights
    published(site, name, n, ended)


def leaks_nothing(text: str) -> None:
    for secret in (SECRET, SIGNATURE, "X-Amz", TOKEN):
        assert secret not in text


def published(site: Site, name: str, n: int, ended: Ended) -> None:
    """Every repo is as it was, or has one commit more with all that belongs to it."""
    hub, target = site.hub, {"push": f"user/p{n}", "eval": f"user/m{n}"}.get(name)
    for repo in (f"user/a{n}", f"user/b{n}", f"user/m{n}", f"user/p{n}"):
        if not hub.exists(repo):
            assert repo == f"user/p{n}" and (repo != target or ended.code == 1)
            continue
        before = 1 if repo == f"user/p{n}" else 2  # the Hub's own first commit, and ours
        more = len(hub.commits(repo)) - before
        assert more == (repo == target and ended.code == 0)
        if more:
            files = hub.files(repo)
            weights = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if "safetensors" in name}
            assert {name: weights[name] for name in site.weights} == site.weights
            assert name == "push" or {"results.json", "README.md"} <= files.keys()
        opened = [ref for ref in hub.store.repos["model", repo].refs if ref.startswith("refs/pr/")]
        assert len(opened) == (name == "propose" and repo == f"user/a{n}" and ended.code == 0)


def cases(group: str) -> Iterator[tuple[str, str]]:
    """Every kind with every fault, or a seventh of it that has every kind and every fault; and what matters most."""
    for i, kind in enumerate(kind for kind, (name, _) in KINDS.items() if name in group):
        for j, fault in enumerate(FAULTS):
            everywhere = fault in ("silent", "limited for long") or (kind == "commit" and fault in GARBLED)
            if (i + j) % STEP == 0 or everywhere:
                yield kind, fault


@pytest.mark.parametrize("group", ["merge stream", "push propose", "eval"])
def test_every_request_may_fail_in_every_way(site: Site, group: str) -> None:
    wrong = []
    for kind, fault in cases(group):
        n, ended = struck(site, kind, FAULTS[fault])
        try:
            check(site, kind, fault, n, ended)
        except AssertionError as error:
            wrong.append(f"{kind}, {fault}: exit code {ended.code}, {ended.seconds:.1f} s\n{error}\n{ended.text}")
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("kind", ["signed get", "lfs put", "signed rows"])
def test_signed_addresses_are_shown_nowhere(site: Site, kind: str) -> None:
    """With every logger at its most talkative, and in the tracebacks of --debug."""
    for fault in ("broken", "cut", "forbidden", "led astray"):
        _, ended = struck(site, kind, FAULTS[fault], "--debug", level="DEBUG")
        leaks_nothing(ended.text)
        assert "HTTP Request: " in ended.text  # one of the loggers in question
        assert ended.code == 0 or "Traceback" in ended.text


def test_a_failed_reading_of_ranges_is_not_told_of_an_end_that_was_wrong(site: Site) -> None:
    """All the bytes came, only fewer than the header said: nothing more is asked for."""
    n, ended = struck(site, "signed range", {"promise": 1 << 20} | ALWAYS)
    check(site, "signed range", "too long", n, ended)
