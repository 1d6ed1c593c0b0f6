"""What a push may replace: nothing but an earlier state of the same thing, unless it is told to.

A merge may take the place of a merge of the same sources (at other commits, with other settings), a fine-tuning that
of one of the same base on the same tasks. What a repo holds is known by its hfcart.json, a stranger's text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from hfcart.errors import PublishError, VerifyError
from hfcart.formats.markdown import one_line
from hfcart.hub import Target
from hfcart.progress import Progress
from hfcart.recipes.finished_finetuning import read_any
from hfcart.records import FinetuneRecord, MergeRecord, SourceRecord
from hfcart.records.file_names import RECORD
from hfcart.report.accuracy import weights_of
from hfcart.sources.stores import Store
from hfcart.sources.towers import Tower, content_of

MERGE, FINE_TUNING = "merge", "fine-tuning"


@dataclass(frozen=True)
class Origin:
    """A tower that something is made of: what it is called, every name it goes by, and the digest of its weights."""

    label: str
    names: frozenset[str]
    content: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class Artefact:
    """What is published, or about to be.

    Attributes:
        kind: `merge` or `fine-tuning`.
        sources: the towers merged; the base that was fine-tuned.
        base: of a merge that has one.
        tasks: what was fine-tuned on, sorted.
        weights: digest of the weights that it came out with, once it has.
    """

    kind: str
    sources: tuple[Origin, ...]
    base: Origin | None = None
    tasks: tuple[str, ...] = ()
    weights: str | None = None

    def __str__(self) -> str:
        """In words, for messages."""
        made_of = _listed([source.label for source in self.sources])
        return f"a {self.kind} of {made_of}" + (f" on {_listed(self.tasks)}" if self.tasks else "")


def artefact_of(record: MergeRecord | FinetuneRecord) -> Artefact:
    """What a record is the record of."""
    sources = tuple(map(_recorded, record.sources))
    if isinstance(record, FinetuneRecord):
        tasks = tuple(sorted(task.task for task in record.tasks))
        return Artefact(FINE_TUNING, sources, tasks=tasks, weights=weights_of(record))
    return Artefact(MERGE, sources, _recorded(record.base) if record.base else None, weights=weights_of(record))


def merge_of(towers: Sequence[Tower], base: Tower | None) -> Artefact:
    """The merge of pinned towers."""
    sources = tuple(origin_of(tower.store, partial(content_of, tower)) for tower in towers)
    return Artefact(MERGE, sources, origin_of(base.store) if base else None)


def fine_tuning_of(base: Store, tasks: Sequence[str]) -> Artefact:
    """The fine-tuning of a base that is open, on the tasks of these ids."""
    return Artefact(FINE_TUNING, (origin_of(base),), tasks=tuple(sorted(tasks)))


def origin_of(store: Store, content: Callable[[], str | None] = lambda: None) -> Origin:
    """A source that is open."""
    names = {store.repo.lower(), (store.name or store.repo).lower()} if store.repo else {store.label}
    return Origin(store.label, frozenset(names), content)


def _recorded(source: SourceRecord) -> Origin:
    name = source.repo.lower() if source.repo else source.label
    return Origin(source.repo or source.label, frozenset({name}), lambda: source.sha256)


def refuse_replacing(target: Target, new: Artefact, *, overwrite: bool, progress: Progress) -> None:
    """Refuse to replace one of the sources, another kind of thing, or the same kind made of something else.

    Not for pull requests: they replace nothing by themselves.

    Args:
        target: where it is to be published.
        new: what is to be published.
        overwrite: replace it all the same; then a source that goes is told of.
        progress: told of that.

    Raises:
        PublishError: it may not be replaced.
    """
    old = None if overwrite or target.record is None else _held(target, target.record)
    role = _role(target, new, old)
    hint = "Choose another name, or replace what is there with --overwrite."
    if role and overwrite:
        progress.warn(f"{target.repo} is {role} of this {new.kind}, and --overwrite puts the result in its place.")
    elif role:
        raise PublishError(
            f"{target.repo} is {role} of this {new.kind}: publishing there would replace it by the result.", hint=hint
        )
    if old is not None and not _same(old, new):
        raise PublishError(f"{target.repo} holds {old}, and this is {new}.", hint=hint)


def _held(target: Target, record: bytes) -> Artefact:
    try:
        return artefact_of(read_any(record, f"{target.repo}/{RECORD}"))
    except VerifyError as error:
        raise PublishError(
            f"What {target.repo} holds is not known, so it is not replaced. {error.message}",
            hint="Choose another name, or replace what is there with --overwrite.",
        ) from None


def _role(target: Target, new: Artefact, old: Artefact | None) -> str | None:
    """What the target is to the new artefact; None if it is none of its origins."""
    names = {target.repo.lower(), (target.name or target.repo).lower()}
    if any(names & source.names for source in new.sources):
        return "the base" if new.kind == FINE_TUNING else "one of the sources"
    if new.base and names & new.base.names:
        return "the base"
    # A folder may hold what was published there. (A merge of one tower may have its very weights, and is no source.)
    copied = old is not None and new.kind == MERGE and old.weights in [source.content() for source in new.sources]
    return "one of the sources" if copied and old and _digests(old) != _digests(new) else None


def _same(old: Artefact, new: Artefact) -> bool:
    """Whether one is another state of the other: the same kind, of the same sources, on the same tasks."""
    if (old.kind, old.tasks, len(old.sources)) != (new.kind, new.tasks, len(new.sources)):
        return False
    left = list(new.sources)
    for source in old.sources:
        twin = next((each for each in left if each.names & source.names), None)
        if twin is None:  # a source that was renamed, or a folder published since, is the same by its weights
            return _digests(old) == _digests(new)
        left.remove(twin)
    return True


def _digests(artefact: Artefact) -> list[str]:
    return sorted(str(source.content()) for source in artefact.sources)


def _listed(names: Sequence[str]) -> str:
    shown = [one_line(name, 80) for name in names[:8]]
    return ", ".join(shown) + (", …" if len(names) > 8 else "")
