"""A card with results on it: written anew where it is hfcart's own, else brought up in its model-index alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hfcart.errors import PublishError
from hfcart.formats.front_matter import with_results
from hfcart.records import EvalRecord, FinetuneRecord, MergeRecord
from hfcart.records.repo_id import is_repo_id
from hfcart.report.finetune_card import render_finetune_card
from hfcart.report.links import HUB
from hfcart.report.merge_card import render_card
from hfcart.report.results_section import SOURCE, index_entry, reported

Record = MergeRecord | FinetuneRecord

CARD = "README.md"
# Where a card speaks of its own repo: how to load the tower, or to repeat the merge.
_CARD_OF = re.compile(r'^tower = "([^"\s]{3,200})"$|^hf download (\S{3,200}) recipe\.yaml ', re.MULTILINE)


def new_card(
    card: str | None, repo: str, made: Record | None, results: EvalRecord, earlier: EvalRecord | None
) -> tuple[str | None, bool]:
    """The card with the results, None if there is nothing to change; and whether somebody has edited hfcart's own."""
    fresh = None if made is None else fresh_card(card, made, results, [earlier], repo=repo)
    if fresh is not None:
        return fresh, False
    return _with_model_index(card or "", repo, results), made is not None


def _with_model_index(card: str, repo: str, record: EvalRecord) -> str | None:
    """The card with the results in its model-index; None if none is to be reported."""
    entries = [index_entry(result, f"{HUB}/{repo}") for result in reported(record)]
    if not entries:
        return None
    try:
        return with_results(card, repo.partition("/")[2], entries, SOURCE)
    except ValueError as error:
        raise PublishError(
            f"The results cannot be put into the front matter of {repo}/{CARD}: {error}.",
            hint=f"Put it right at {HUB}/{repo}/edit/main/{CARD}, then publish again.",
        ) from None


def fresh_card(
    card: str | None,
    record: Record,
    results: EvalRecord | None,
    earlier: Sequence[EvalRecord | None] = (),
    repo: str | None = None,
) -> str | None:
    """The card written anew with these results, if the one that is there is hfcart's own.

    Args:
        card: the README.md that is there, None if there is none.
        record: of the merge or the fine-tuning.
        results: what the new card shows.
        earlier: results that the old card may show.
        repo: the Hub repo the new card speaks of; without it, the one that the old card speaks of, if any.

    Returns:
        The new card, or None if somebody has edited the old one.
    """
    if card is None:
        return render_any(record, repo=repo, results=results)
    found = _CARD_OF.search(card)
    named = (found[1] or found[2]) if found else ""
    spoken = named if is_repo_id(named, namespace=True) else None
    known = {render_any(record, repo=spoken, results=shown) for shown in (None, results, *earlier)}
    return render_any(record, repo=repo or spoken, results=results) if card in known else None


def render_any(record: Record, *, repo: str | None, results: EvalRecord | None) -> str:
    """The card of whatever hfcart made."""
    if isinstance(record, FinetuneRecord):
        return render_finetune_card(record, repo=repo, results=results)
    return render_card(record, repo=repo, results=results)
