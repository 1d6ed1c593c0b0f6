"""The card's table of singular directions: how many stay of each tower, layer by layer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hfcart.clip.tensor_names import layer_and_matrix
from hfcart.formats.markdown import code
from hfcart.records import MergeRecord
from hfcart.report.template import percent


def directions_section(record: MergeRecord) -> dict[str, Any] | None:
    """What the card says of directions; None where none were chosen.

    Returns:
        `matrices`, `of` (how many there were to choose from), `start` (how many of them were on at first; empty where
        nothing says it), `towers` (a row each: number, name, mean number kept, share, fewest and most of a matrix),
        `layers` (numbers), `by_layer` (a row for each tower, mean number kept of each layer's matrices).
    """
    chosen: dict[str, list[str]] = record.recipe.get("directions") or {}
    if not chosen:
        return None
    from hfcart.maths.low_rank import rank_of  # scipy: a card without directions takes none

    full = {tensor.name: tensor.full_rank or 0 for tensor in record.tensors}
    most = record.recipe["adapt_ranks"]
    there = {name: rank_of(most, full[name], full[name]) for name in chosen}
    rank = record.adaptation.rank if record.adaptation else None
    on = [] if rank is None else [min(count, rank_of(rank, full[name], full[name])) for name, count in there.items()]
    kept = {name: [int(text, 16).bit_count() for text in texts] for name, texts in chosen.items()}
    layers = sorted({place[0] for name in chosen if (place := layer_and_matrix(name))})
    rows, by_layer = [], []
    for i, source in enumerate(record.sources):
        counts = [each[i] for each in kept.values()]
        share = percent(sum(counts) / sum(there.values()))
        rows.append(
            {
                "number": i + 1,
                "name": code(source.label, 60),
                "mean": f"{sum(counts) / len(counts):.1f}",
                "share": share,
                "low": min(counts),
                "high": max(counts),
            }
        )
        of_layers = [[kept[n][i] for n in chosen if (p := layer_and_matrix(n)) and p[0] == layer] for layer in layers]
        by_layer.append([f"{sum(each) / len(each):.1f}" for each in of_layers])
    return {
        "matrices": len(chosen),
        "of": ends(there.values()),
        "start": ends(on),
        "towers": rows,
        "layers": layers,
        "by_layer": by_layer,
    }


def ends(counts: Collection[int]) -> str:
    """The fewest and the most of some counts, once where they are the same; empty for none."""
    return "–".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else ""
