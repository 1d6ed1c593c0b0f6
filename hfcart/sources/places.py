"""Where a source is: from what was typed to a folder or a file here, or a place in a repo pinned to a commit.

Then what it is: a tower with its config and card, or an adapter with the tower it belongs to.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hfcart.clip import open_clip
from hfcart.clip.architecture import read_architecture
from hfcart.errors import CorruptFileError, HubError, NotATowerError, SourceError
from hfcart.formats.card_facts import card_facts
from hfcart.formats.safetensors_file import strict_json
from hfcart.progress import Progress
from hfcart.quoting import printable
from hfcart.recipes.named import AdapterSource, LocalSource
from hfcart.records import Architecture, CardFacts
from hfcart.records.repo_id import is_place, is_repo_id, split_place
from hfcart.sources.lora.base import adapter_weights, is_adapter, named_base, no_base, unreadable
from hfcart.sources.lora.config import ADAPTER, MERGED_BY_PEFT, LoraConfig, read_config
from hfcart.sources.lora.tower import AdaptedTower
from hfcart.sources.stores import SMALL, LocalStore, Store
from hfcart.sources.towers import Ref, Reopened, Tower
from hfcart.sources.weight_files import choose_weights, refuse_other_forms
from hfcart.system.threads import in_parallel

_GOOD_CONFIG = "Put a good one beside the weights, or name a revision that has one: user/name@revision."


def pin(ref: Ref, progress: Progress, given: str | LocalSource | AdapterSource | None = None) -> Tower:
    """Resolve one source: a Hub repo to a commit, once; a folder to its files. Reads its config and card.

    Args:
        ref: what opens it.
        progress: told what is read in place of what was typed.
        given: the base, if the user gave one: that of an adapter which names none that can be read.
    """
    return _Pinning(progress, given).pin(ref)


def pin_all(
    refs: Sequence[Ref], progress: Progress, given: str | LocalSource | AdapterSource | None = None
) -> list[Tower]:
    """Pin every source, several at a time; the first failure in the order given is the one raised.

    The base of several adapters is one tower.
    """
    progress.step("Resolving sources")
    pinning = _Pinning(progress, given)
    return in_parallel(pinning.pin, refs)


class _Pinning:
    """Pins sources, and the base of every adapter among them once."""

    def __init__(self, progress: Progress, given: str | LocalSource | AdapterSource | None) -> None:
        self._progress = progress
        self._given = None if isinstance(given, AdapterSource) else given  # no base of an adapter is an adapter
        self._bases: dict[str, Tower] = {}
        self._lock = threading.Lock()

    def pin(self, ref: Ref) -> Tower:
        """A source, whatever names it."""
        base = ref.base if isinstance(ref, AdapterSource | Reopened) else None
        one = _where_it_lies(ref) if isinstance(ref, AdapterSource) else ref
        store = self._open(one)
        tower: Tower
        if is_adapter(store):
            tower = self._adapter(store, base)
        elif isinstance(ref, AdapterSource):
            raise NotATowerError(
                f"{store.label} is no adapter: it has no {ADAPTER}.",
                hint="Name it as a source by itself, without a base.",
            )
        else:
            tower = _tower(store, self._progress)
        tower.wanted = None if isinstance(one, str) else one.sha256
        tower.reopened = isinstance(one, Reopened)
        return tower

    def _open(self, ref: str | LocalSource | Reopened) -> Store:
        if isinstance(ref, str):
            return open_store(ref, self._progress)
        return open_store(ref.path, self._progress, local=not isinstance(ref, Reopened) or ref.local)

    def _adapter(self, store: Store, named: str | LocalSource | Reopened | None) -> AdaptedTower:
        config = read_config(store.small(ADAPTER) or b"", store.label)
        with self._lock:  # the same base, asked for by eight adapters at once, is opened by the first
            base = self._base(store, config, named)
        weights = adapter_weights(store)
        facts = _facts(store, self._progress)
        if not facts.base_models and base.store.repo:
            facts = dataclasses.replace(facts, base_models=(base.store.repo,))
        return AdaptedTower(store, base.described, facts, weights, base=base, config=config)

    def _base(self, store: Store, config: LoraConfig, named: str | LocalSource | Reopened | None) -> Tower:
        if named is not None:
            return self._once(named, self._open(named))
        try:
            own = named_base(store, config)
            if own is not None:
                return self._once(
                    own.ref, _hub_store(own.ref, self._progress) if own.hub else LocalStore(Path(own.ref))
                )
        except (SourceError, HubError) as error:
            gone = not isinstance(error, NotATowerError | CorruptFileError)
            if self._given is None or not gone:
                unreadable(store.label, config.base or "the repo that it lies in", error, gone=gone)
                raise
            self._progress.warn(f"{error.message} The base that was given is used.")
        if self._given is None:
            raise no_base(store, config)
        base = self._once(self._given, self._open(self._given))
        base.given = True
        return base

    def _once(self, ref: str | LocalSource | Reopened, store: Store) -> Tower:
        key = store.ref or str(store.opened.resolve() if isinstance(store, LocalStore) else store.label)
        if key not in self._bases:
            if is_adapter(store):
                raise NotATowerError(
                    f"{store.label}, the base of an adapter, is an adapter itself.", hint=MERGED_BY_PEFT
                )
            tower = _tower(store, self._progress)
            tower.wanted = None if isinstance(ref, str) else ref.sha256
            tower.reopened = isinstance(ref, Reopened)
            self._bases[key] = tower
        return self._bases[key]


def _where_it_lies(ref: AdapterSource) -> str | LocalSource:
    """The adapter of a recipe; one that is known by its name alone may lie in the folder of its base."""
    one, base = ref.adapter, ref.base
    if isinstance(one, str) or isinstance(base, str) or (Path(one.path) / ADAPTER).is_file():
        return one
    inside = Path(base.path) / "adapters" / one.path
    return one.model_copy(update={"path": str(inside)}) if (inside / ADAPTER).is_file() else one


def _tower(store: Store, progress: Progress) -> Tower:
    refuse_other_forms(store)
    described = _described(store)
    facts = _facts(store, progress)
    weights, index = choose_weights(store)
    return Tower(store, described, facts, weights, index=index)


def _facts(store: Store, progress: Progress) -> CardFacts:
    readme = None
    if store.sizes.get("README.md", 0) <= SMALL:
        readme = store.small("README.md")
    else:
        progress.warn(f"{store.label}/README.md is too large to be a card: its licence counts as not stated.")
    return card_facts(readme.decode("utf-8", "replace") if readme else None)


def _described(store: Store) -> Architecture | None:
    """What a source's config says, None if it has none. Raises NotATowerError or CorruptFileError."""
    for name, read in (("config.json", read_architecture), (open_clip.CONFIG, open_clip.read_open_clip_config)):
        if (config := store.small(name)) is not None:
            try:
                return read(strict_json(config), store.label)
            except ValueError as error:
                told = f"{store.label}/{name} is not valid JSON: {printable(error, 300)}."
                raise CorruptFileError(told, hint=_GOOD_CONFIG) from None
            except NotATowerError as error:
                error.hint = error.hint or _GOOD_CONFIG
                raise
    return None


def open_store(text: str, progress: Progress, *, local: bool = False) -> Store:
    """The folder or file of that path if there is one (or must be), else what the Hub has of that name, pinned.

    Args:
        text: a path here, `folder:path`, `user/name`, `user/name@revision`, either of these with `:path` behind it, or
            the address of such a place on the Hub.
        progress: told where a name means two things.
        local: never the Hub.

    Raises:
        SourceError: no such folder, no such repo, or one that cannot be seen.
    """
    from_here = _local(text)
    if from_here is not None:
        if is_repo_id(text, namespace=True):
            progress.note(f"{text} is a folder here: that is what is read, not the Hub repo of that name.")
        return from_here
    ref = _without_address(text)
    if local or not is_repo_id(split_place(ref)[0].partition("@")[0], namespace=True):
        raise SourceError(
            f"There is no folder {text[:200]}, and a Hub repo is written user/name, user/name@revision or "
            "user/name:path.",
            hint="Run the command in the folder that holds it, or give its path.",
        )
    return _hub_store(ref, progress)


def _hub_store(ref: str, progress: Progress) -> Store:
    from hfcart import hub  # the Hub's client takes time and memory that a merge of local folders need not spend

    hub.set_notifier(progress.note)
    return hub.open_repo(ref)


def _local(text: str) -> LocalStore | None:
    """The folder, or the file in its folder, that a text means here; `folder:path` is a place inside a folder."""
    path = _path(text)
    before, place = split_place(text)
    if path is not None and not path.exists() and place and is_place(place.strip("/")):
        folder = _path(before)
        path = folder / place if folder is not None and folder.is_dir() else None
        if path is not None and not path.exists():
            raise SourceError(f"There is no {place[:200]} in the folder {before[:200]}.")
    if path is None or not path.exists():
        return None
    return LocalStore(path) if path.is_dir() else LocalStore(path.parent, path.name)


def _without_address(text: str) -> str:
    """`user/name@revision:path` of an address of the Hub, as pages and links have it; else the text itself."""
    try:
        address = urlsplit(text)
    except ValueError:
        return text
    if address.scheme not in ("https", "http", "hf"):
        return text
    where = unquote(address.path).strip("/") if address.scheme != "hf" else unquote(address.netloc + address.path)
    hosts = {"huggingface.co", "hf.co", urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc}
    parts = where.removeprefix("models/").split("/")
    if (address.scheme != "hf" and address.netloc not in hosts) or len(parts) < 2:
        raise SourceError(f"{text[:200]} is no address of a Hub repo.", hint="Write user/name, or user/name@revision.")
    repo, rest = "/".join(parts[:2]), parts[2:]
    if rest[:1] in (["tree"], ["blob"], ["resolve"]):
        cut = 4 if rest[1:3] == ["refs", "pr"] else 2
        revision, place = "/".join(rest[1:cut]), "/".join(rest[cut:])
        repo += f"@{revision}" if revision else ""
    else:
        place = "/".join(rest)
    return repo + (f":{place}" if place else "")


def _path(text: str) -> Path | None:
    """The path that a source may be; None for a text no path can be (too long, no such home folder, a NUL in it)."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError):
        return None
    return path
