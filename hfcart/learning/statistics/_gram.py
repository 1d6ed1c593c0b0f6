"""G = XᵀX of the inputs of a tower's linear layers (RegMean, arXiv 2212.09849, Sec. 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hfcart.clip.tensor_names import is_matrix
from hfcart.learning.statistics._taps import layers, tapped

TOKENS = 256  # of a batch: their activations in every layer are held at once, for a few batches


def stored_under(name: str) -> str:
    """The name a weight's Gram matrix is kept under: q, k and v take one input, and share q's."""
    return name.replace(".k_proj.", ".q_proj.").replace(".v_proj.", ".q_proj.")


def gram_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every Gram matrix of a tower with these tensors."""
    return {n: (shape[1], shape[1]) for n, shape in shapes.items() if is_matrix(n) and stored_under(n) == n}


@contextmanager
def grams(
    model: nn.Module, totals: dict[str, Tensor], pool: Executor, run: Callable[[Tensor], object] | None = None
) -> Iterator[Callable[[Sequence[Float[Tensor, " b *image"]], Any], None]]:
    """Add up Gram matrices of a tower's layers.

    Args:
        model: on its device.
        totals: a layer's weight -> sum over batches, so far; added to in place.
        pool: worker threads, with one BLAS thread each.
        run: sends a batch through the layers; None for pixels through the whole tower.

    Yields:
        A function that adds some batches: the batches run side by side, then the layers. What one call adds to a
        matrix is one product, so its bits do not depend on the number of workers, only on how calls are cut.
    """
    wanted = layers(model, lambda name, _: f"{name}.weight" in totals)

    forward = run or (lambda pixels: model(pixel_values=pixels))
    with tapped(wanted) as fresh:

        def inputs(batch: Tensor) -> dict[str, Tensor]:
            held = fresh()
            with torch.no_grad():
                forward(batch)
            return {name: x.reshape(-1, x.shape[-1]) for name, (x, _) in held.items()}

        def add(batches: Sequence[Tensor], _: object) -> None:
            found = list(pool.map(inputs, batches))

            def one(name: str) -> None:
                rows = torch.cat([each[name] for each in found])
                totals[f"{name}.weight"].addmm_(rows.T, rows)

            list(pool.map(one, wanted))

        yield add
