"""What a tower comes from: its base model, found by following what hfcart.json and cards say, source by source.

A merge of merges names no base itself: its sources do, or theirs. Records are strangers' files: they are read at the
commits that they pin, each once, and never lead to a path of this machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from hfcart.errors import HfcartError, HubError, UsageError
from hfcart.formats.safetensors_file import strict_json
from hfcart.progress import Progress
from hfcart.recipes.finished_finetuning import read_any
from hfcart.recipes.finished_merge import pinned
from hfcart.records import CardFacts, FinetuneRecord, MergeRecord, SourceRecord
from hfcart.records.file_names import MAX_RECORD, RECORD
from hfcart.sources.stores import LocalStore, Store
from hfcart.sources.towers import Tower, known_base

_DEEPEST = 8  # merges of merges of ...
_MOST = 256  # repos looked into


@dataclass(frozen=True)
class Said:
    """A base model, and who names it.

    Attributes:
        by: the tower that was asked, and who it was that knew.
        label: `user/name`, or a folder's base name.
        ref: what opens it; None for a folder, which a record knows by name and content only.
        sha256: of its weights, if a record names it.
    """

    by: str
    label: str
    ref: str | None
    sha256: str | None = None

    def agrees(self, other: Said) -> bool:
        """Whether both may mean one model: the same weights, or one name where the weights are not known."""
        if self.sha256 and other.sha256:
            return self.sha256 == other.sha256
        return bool(self.ref and other.ref) and self.label.casefold() == other.label.casefold()


class _Search:
    """Follows records; what a repo says is asked once, and a circle ends where it began."""

    def __init__(self, progress: Progress, *, most: int = _MOST) -> None:
        self._progress, self._most = progress, most
        self._known: dict[str, list[Said]] = {}

    def of(self, store: Store, facts: CardFacts, by: str, depth: int = 0) -> list[Said]:
        """What a tower says of its base: its record if it has one, else its card."""
        record = read_record_of(store, self._progress)
        return _by_card(facts, by) if record is None else self.by_record(record, by, depth)

    def of_tower(self, tower: Tower) -> list[Said]:
        """What a source says of its base. Of an adapter, the tower that it is added to says it, or is it."""
        if tower.base is None:
            return self.of(tower.store, tower.facts, tower.label)
        store, by = tower.base.store, f"{tower.base.label}, the base of {tower.label}"
        if (not is_whole(store) or RECORD in store.sizes) and (found := self.of(store, tower.base.facts, by)):
            return found
        opened = str(store.opened) if isinstance(store, LocalStore) else store.ref
        return [Said(f"the adapter {tower.label}", tower.base.label, opened)]

    def by_record(self, record: MergeRecord | FinetuneRecord, by: str, depth: int = 0) -> list[Said]:
        """What a record says: the base it names, else what its sources say."""
        base = record.sources[0] if isinstance(record, FinetuneRecord) else record.base
        if base is not None:
            return [Said(f"the record of {by}", base.label, pinned(base), base.sha256)]
        return [said for source in record.sources for said in self._source(source, by, depth + 1)]

    def _source(self, source: SourceRecord, by: str, depth: int) -> list[Said]:
        by = f"{source.label}, a source of {by}"
        if source.adapter_of is not None:
            beneath = source.adapter_of
            return self._source(beneath, by, depth + 1) or [Said(by, beneath.label, pinned(beneath), beneath.sha256)]
        if (ref := pinned(source)) is None or depth > _DEEPEST or len(self._known) >= self._most:
            return _by_card(source.facts, by)
        if ref not in self._known:
            self._known[ref] = []
            self._known[ref] = self._look_into(ref, source.facts, by, depth)
        return self._known[ref]

    def _look_into(self, ref: str, facts: CardFacts, by: str, depth: int) -> list[Said]:
        from hfcart import hub  # as in hfcart.sources.towers

        try:
            return self.of(hub.open_repo(ref), facts, by, depth)
        except HfcartError as error:  # gone or closed by now: what the record copied of its card is still there
            found = _by_card(facts, by)
            if not found and isinstance(error, HubError):
                raise
            return found


def read_record_of(store: Store, progress: Progress) -> MergeRecord | FinetuneRecord | None:
    """A tower's hfcart.json, None if it has none. One that cannot be believed counts as none, with a warning."""
    try:
        data = store.small(RECORD, MAX_RECORD) if RECORD in store.sizes else None
        return None if data is None else read_any(data, f"{store.label}/{RECORD}")
    except HubError:
        raise
    except HfcartError as error:
        progress.warn(f"What {store.label} says of its base is not taken from its {RECORD}: {error.message}")
        return None


def is_whole(store: Store) -> bool:
    """Whether a source's config is that of a whole CLIPModel, text tower and all."""
    try:
        config = strict_json(store.small("config.json") or b"{}")
    except ValueError:
        return False
    return isinstance(config, dict) and config.get("model_type") == "clip"


def _by_card(facts: CardFacts, by: str) -> list[Said]:
    """What a card says, if it names one model alone: a merge's names its sources."""
    return [Said(f"the card of {by}", repo, repo) for repo in facts.base_models if len(facts.base_models) == 1]


def base_by_record(record: MergeRecord | FinetuneRecord, label: str, progress: Progress) -> Said | None:
    """The base that a tower's record leads to, None if it leads to none.

    Raises:
        UsageError: its sources name several.
    """
    found = _Search(progress).by_record(record, label)
    return _agreed(found) if found else None


def infer_base(towers: Sequence[Tower], progress: Progress) -> str:
    """The base model that the sources' records and cards lead to, else the one that has the config's shape.

    Raises:
        UsageError: neither says, they disagree, or it is a folder known by name only.
        HubError: a record cannot be followed.
    """
    search = _Search(progress)
    found = [said for tower in towers for said in search.of_tower(tower)]
    if found:
        agreed = _agreed(found)
        if agreed.ref is None:
            raise unopenable(agreed)
        return agreed.ref
    known = known_base(towers[0].described) if towers[0].described else None
    if known is None:
        raise UsageError(
            "This merge needs the base model, and neither the sources' records and cards nor their shape tell which.",
            hint="Give it: --base user/name",
        )
    return known


def remember_bases(towers: Sequence[Tower]) -> None:
    """Let local merges carry the base that their records name among their facts: who merges them knows no more of them.

    What a record leads to on the Hub is not looked into: a merge of folders needs no network.
    """
    search = _Search(Progress(), most=0)
    for tower in towers:
        if tower.base or tower.store.repo or tower.facts.base_models or RECORD not in tower.store.sizes:
            continue
        found = search.of(tower.store, tower.facts, tower.label)
        if found and found[0].ref and all(found[0].agrees(other) for other in found):
            tower.facts = dataclasses.replace(tower.facts, base_models=(found[0].label,))


def unopenable(said: Said) -> UsageError:
    """The error for a base that is a folder somewhere."""
    return UsageError(
        f"The base model is the folder {said.label}, as {said.by} says, which knows it by name and content only "
        f"(sha256 {(said.sha256 or '')[:12]}…).",
        hint="Give the folder: --base FOLDER",
    )


def _agreed(found: Sequence[Said]) -> Said:
    """The one base that all name, at a commit if one of them knows it."""
    if all(one.agrees(other) for one in found for other in found if one != other):
        return max(found, key=lambda said: (said.ref is not None, said.sha256 is not None))
    said = dict.fromkeys(f"{each.by} says {each.ref or each.label}" for each in found)
    shown = [*list(said)[:12], *([f"and {len(said) - 12} more"] if len(said) > 12 else [])]
    raise UsageError(
        f"The towers do not come from one base model: {'; '.join(shown)}.",
        hint="Say which it is: --base user/name",
    )
