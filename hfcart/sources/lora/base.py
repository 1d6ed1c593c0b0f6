"""Which tower an adapter is added to. A file may name one on the Hub; a path of this machine only its user may."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from hfcart.clip import open_clip
from hfcart.errors import HubError, NotATowerError, SourceError, UsageError, VerifyError, together
from hfcart.formats.shard_layout import INDEX, SINGLE, WEIGHTS
from hfcart.quoting import quoted, some
from hfcart.recipes.finished_merge import read_record
from hfcart.records.adapters import FOLDER
from hfcart.records.file_names import MAX_RECORD, RECORD
from hfcart.records.repo_id import is_repo_id, is_revision
from hfcart.sources.lora.config import ADAPTER, LoraConfig
from hfcart.sources.lora.config import WEIGHTS as ADAPTER_WEIGHTS
from hfcart.sources.stores import LocalStore, Store


class Named(NamedTuple):
    """A base before it is opened.

    Attributes:
        ref: `user/name`, with `@revision` behind it or not; a folder's path.
        hub: whether it is one of the Hub, whatever lies here under that name.
    """

    ref: str
    hub: bool


def is_adapter(store: Store) -> bool:
    """Whether a place holds an adapter of peft, and no whole model beside it."""
    if store.chosen:
        return store.chosen in ADAPTER_WEIGHTS and ADAPTER in store.sizes
    return ADAPTER in store.sizes and all(name not in store.sizes for name in (SINGLE, INDEX))


def adapter_weights(store: Store) -> list[str]:
    """The weight file of an adapter. Raises NotATowerError if it has none."""
    if store.chosen:
        return [store.chosen]
    for name in ADAPTER_WEIGHTS:
        if name in store.sizes:
            return [name]
    raise NotATowerError(
        f"{store.label} is a LoRA adapter without weights: expected {' or '.join(ADAPTER_WEIGHTS)} beside its "
        f"{ADAPTER}, "
        f"found {some(sorted(store.sizes.keys() - {ADAPTER})) or 'nothing'}.",
        hint="Name a revision that has them: user/name@revision.",
    )


def named_base(store: Store, config: LoraConfig) -> Named | None:
    """The base of an adapter as it says itself: the tower whose folder or repo it lies in, else the repo it names.

    None if it names none, or a path: no path that a file names is ever opened.

    Raises:
        HubError: its own repo cannot be read.
    """
    name = config.base or ""
    on_the_hub = is_repo_id(name, namespace=True)
    if isinstance(store, LocalStore):
        if (root := _root_here(store, named=bool(name))) is not None:
            return Named(str(root), hub=False)
    elif store.repo and store.path and (not name or _is_own(store, name)) and not config.revision:
        root_ref = f"{store.repo}@{store.commit}"
        if name or _holds_tower(_opened(root_ref)):
            return Named(root_ref, hub=True)
    if not on_the_hub:
        return None
    revision = config.revision if config.revision and is_revision(config.revision) else None
    return Named(f"{name}@{revision}" if revision else name, hub=True)


def _opened(ref: str) -> Store:
    from hfcart import hub  # as in hfcart.sources.places

    return hub.open_repo(ref)


def _is_own(store: Store, name: str) -> bool:
    return name.casefold() in {(store.repo or "").casefold(), (store.name or "").casefold()}


def _root_here(store: LocalStore, *, named: bool) -> Path | None:
    """The folder above an adapter's that holds its tower: of one that names another base, where hfcart wrote both."""
    folder = store.folder.resolve()
    for above in list(folder.parents)[:2]:
        try:
            root = LocalStore(above)
        except OSError:
            return None
        if _holds_tower(root) and (not named or _wrote(root, folder.relative_to(above).as_posix())):
            here = Path.cwd()
            return above.relative_to(here) if above.is_relative_to(here) else above
    return None


def _wrote(root: LocalStore, place: str) -> bool:
    """Whether a merge's own record lists the adapter in that place of its folder."""
    data = root.small(RECORD, MAX_RECORD)
    try:
        made = read_record(data, RECORD) if data else None
    except VerifyError:
        return False
    return made is not None and place in {f"{FOLDER}/{each.name}" for each in made.adapters}


def _holds_tower(store: Store) -> bool:
    described = {"config.json", open_clip.CONFIG} & store.sizes.keys()
    return bool(described) and ADAPTER not in store.sizes and any(name.endswith(WEIGHTS) for name in store.sizes)


def no_base(store: Store, config: LoraConfig) -> UsageError:
    """The error for an adapter of which nothing tells the base, or only a path on some machine."""
    if config.base is None:
        what = f"does not say of which model (no base_model_name_or_path in its {ADAPTER})"
    else:
        what = f"names {quoted(config.base, 120)} as its base, which is no Hub repo: a path in a file is not followed"
    hint = "Give the base that it was trained on, a folder or a repo: --base FOLDER"
    if config.base and isinstance(store, LocalStore) and config.base.isprintable() and len(config.base) < 200:
        hint = f"If that is a folder of yours, say so: --base {shlex.quote(config.base)}"
    return UsageError(f"{store.label} is a LoRA adapter and {what}.", hint=hint)


def unreadable(label: str, ref: str, error: SourceError | HubError, *, gone: bool) -> None:
    """Let an error that came of opening the base of an adapter say so, and what to do if it is not to be had."""
    error.message = f"{label} is a LoRA adapter of {quoted(ref, 120)}, which cannot be read. {error.message}"
    if gone:
        error.hint = together(error.hint, "If you have that model in a folder, give it: --base FOLDER")
