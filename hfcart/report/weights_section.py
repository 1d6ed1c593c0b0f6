"""The card's sections on the weights: what each tensor got, coefficients, directions, similarity. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from hfcart.clip.tensor_names import layer_and_matrix
from hfcart.formats.markdown import code
from hfcart.records import MergeRecord, Similarity, TensorRecord
from hfcart.report.template import percent, signed


def treatment(record: MergeRecord) -> list[dict[str, Any]]:
    """Rows of "what happened to which tensors": tensors of one kind that got the same, in output order."""
    fused, various = record.recipe.get("qkv") == "fused", record.recipe.get("directions") is not None
    rows: dict[tuple[object, ...], list[TensorRecord]] = {}
    for tensor in record.tensors:
        matrix = layer_and_matrix(tensor.name)
        low = tensor.rank is not None
        stacked = bool(matrix and fused and low and matrix[1] in ("q_proj", "k_proj", "v_proj"))
        key = (stacked, tensor.shape) if matrix else (_kind(tensor.name),)
        # Where directions were chosen, each has a rank of its own: a row has the fewest and the most.
        rows.setdefault((*key, tensor.rule, low if various else tensor.rank, tensor.full_rank), []).append(tensor)
    # Matrices first: they are what the method is about.
    return [
        _treated(tensors, fused=key[0] is True)
        for key, tensors in sorted(rows.items(), key=lambda row: not isinstance(row[0][0], bool))
    ]


def _treated(tensors: list[TensorRecord], *, fused: bool) -> dict[str, Any]:
    first = tensors[0]
    matrices = dict.fromkeys(matrix[1] for tensor in tensors if (matrix := layer_and_matrix(tensor.name)))
    energies = [tensor.energy for tensor in tensors if tensor.energy is not None]
    ranks = [tensor.rank for tensor in tensors if tensor.rank is not None]
    shape = _shape(first.shape) if matrices or ranks else ""
    return {
        "what": ", ".join(map(code, matrices)) if matrices else _kind(first.name),
        "shape": f"{shape}, fused to {_shape((3 * first.shape[0], first.shape[1]))}" if fused else shape,
        "tensors": len(tensors),
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "rule": first.rule,
        "rank": f"{ends(ranks)}\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}{first.full_rank}" if ranks else "",
        "energy": f"{percent(min(energies))}–{percent(max(energies))}%" if energies else "",
    }


def _shape(shape: tuple[int, ...]) -> str:
    return "\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}".join(map(str, shape))


def _kind(name: str) -> str:
    if name.startswith("text_model."):
        return "text tower"
    for mark, kind in (
        ("norm", "layer norms"),
        ("embedding", "embeddings"),
        ("_projection", "projection"),
        ("logit_scale", "logit scale"),
    ):
        if mark in name:
            return kind
    return "biases" if name.endswith(".bias") else "others"


def energy_range(tensors: tuple[TensorRecord, ...]) -> dict[str, Any] | None:
    """Where the energy figure is lowest and highest; None where there is nothing to draw."""
    cells = [(t.energy, matrix) for t in tensors if t.energy is not None and (matrix := layer_and_matrix(t.name))]
    if not cells:
        return None
    low, high = min(cells, key=lambda cell: cell[0]), max(cells, key=lambda cell: cell[0])
    return {
        "low": low[0],
        "low_at": f"{low[1][1]} of layer {low[1][0]}",
        "high": high[0],
        "high_at": f"{high[1][1]} of layer {high[1][0]}",
    }


def similarity_range(similarity: Similarity | None) -> dict[str, Any] | None:
    """Lowest and highest cosine of two different towers, which two, and what unrelated towers would show.

    None where there is nothing to see: one tower, or two seen from their mean, which are opposite always.
    """
    count = len(similarity.cosine) if similarity else 0
    if similarity is None or count < 2 or (count == 2 and similarity.centred_on == "mean"):
        return None
    pairs = [
        (cosine, (i + 1, j + 1))
        for i, row in enumerate(similarity.cosine)
        for j, cosine in enumerate(row)
        if i < j and math.isfinite(cosine)
    ]
    return {
        "drawn": count > 2,  # of two, it is one number
        "centred": similarity.centred_on == "mean",
        "unrelated": signed(-1 / (count - 1)),
        "low": min(pairs, default=None),
        "high": max(pairs, default=None),
    }


def coefficient_range(record: MergeRecord) -> dict[str, Any] | None:
    """How many tensors have coefficients, and the lowest and highest of them; None without."""
    found = record.recipe.get("coefficients")
    if not found:
        return None
    values = [value for row in found.values() for value in row]
    return {
        "tensors": len(found),
        "low": f"{min(values):.3g}",
        "high": f"{max(values):.3g}",
        "drawn": any(map(layer_and_matrix, found)),
    }


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
