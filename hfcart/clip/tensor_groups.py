"""Parts of a tower by name: groups of its tensors, and its modules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hfcart.clip.tensor_names import PREFIX, is_matrix
from hfcart.names import meant, spelled
from hfcart.quoting import quoted

GROUPS = {
    "embeddings": "the patch, position and class embeddings",
    "norms": "weights and biases of every layer norm",
    "biases": "every bias",
    "matrices": "the encoder's attention and MLP weights",
}


def in_group(group: str, tensor: str) -> bool:
    """Whether a tensor, by its canonical name, is in one of the GROUPS."""
    if group == "embeddings":
        return tensor.startswith(f"{PREFIX}embeddings.")
    if group == "norms":
        return "norm" in tensor or "layrnorm" in tensor
    return tensor.endswith(".bias") if group == "biases" else is_matrix(tensor)


def named_tensors(names: Iterable[str], tensors: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The tensors that names mean.

    Args:
        names: of GROUPS, or of modules and tensors: `encoder.layers.0`, with or without `vision_model.` before it.
        tensors: canonical names of a tower's.

    Returns:
        The names as they are written, each once, and the tensors in the order given.

    Raises:
        ValueError: a name that means nothing here; says what may have been meant.
    """
    modules = {
        tensor[:end].removeprefix(PREFIX)
        for tensor in tensors
        for end in [*(i for i, letter in enumerate(tensor) if letter == "."), len(tensor)]
    } - {PREFIX.rstrip(".")}
    known = (*GROUPS, *sorted(modules))
    found: dict[str, None] = {}
    for name in names:
        one = spelled(name.strip().removeprefix(PREFIX), known)
        if one is None:
            raise ValueError(f"a tower has no {quoted(name, 80)}. {meant(name, known)}")
        found[one] = None
    chosen = [tensor for tensor in tensors if any(_means(name, tensor) for name in found)]
    return tuple(found), chosen


def _means(name: str, tensor: str) -> bool:
    if name in GROUPS:
        return in_group(name, tensor)
    return f"{tensor}.".startswith(f"{PREFIX}{name}.")
