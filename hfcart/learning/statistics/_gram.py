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
    model: nn.Module, totals: dict[str, Tensor], pool: Executor
) -> Iterator[Callable[[Sequence[Float[Tensor, "b 3 s s"]], Any], None]]:
    """Add up Gram matrices of a tower's layers.

    Yields:
        A function that adds some batches of pixels: the batches run side by side, then the layers. What one call adds
        to a matrix is one product, so its bits do not depend on the number of workers, only on how calls are cut.
    """
    wanted = layers(model, lambda name, _: f"{name}.weight" in totals)

    with tapped(wanted) as fresh:

        def inputs(pixels: Tensor) -> dict[str, Tensor]:
            held = fresh()
            with torch.no_grad():
                model(pixel_values=pixels)
            return {name: x.reshape(-1, x.shape[-1]) for name, (x, _) in held.items()}

        def add(batches: Sequence[Tensor], _: object) -> None:
            found = list(pool.map(inputs, batches))

            def one(name: str) -> None:
                rows = torch.cat([each[name] for each in found])
                totals[f"{name}.weight"].addmm_(rows.T, rows)

            list(pool.map(one, wanted))

        yield add
