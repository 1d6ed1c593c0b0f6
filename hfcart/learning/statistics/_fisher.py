"""The diagonal of a tower's Fisher information on its task, E_x E_y [(∂ log p(y|x) / ∂θ)²], of per-example gradients.

(Matena and Raffel, arXiv 2111.09832, Sec. 3.2; y follows the tower's own prediction, so no label is needed.) The
gradient of one example is put together from what went into each layer and the gradient that came back: for a linear
layer the sum over tokens of δ xᵀ. Batches are for speed alone: no sum mixes examples before it is squared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional

from hfcart.clip.tensor_names import PREFIX, PROJECTION
from hfcart.learning.statistics._taps import Held, layers, tapped

TOKENS = 128  # of a batch: its graph is held, for a few batches at once
EXACT = 10  # up to so many classes the expectation over y is a sum; beyond, y is drawn once an example
_EMBEDDINGS = f"{PREFIX}embeddings"


class _Forward(NamedTuple):
    """A forward pass: images, what the layers took and gave, and the log-probabilities of the classes."""

    pixels: Float[Tensor, "b 3 s s"]
    held: Held
    pooled: Float[Tensor, "b width"]
    features: Float[Tensor, "b dim"]
    logp: Float[Tensor, "b classes"]


@contextmanager
def fishers(
    model: nn.Module,
    totals: dict[str, Tensor],
    pool: Executor,
    *,
    head: Float[Tensor, "classes dim"],
    projection: Float[Tensor, "dim width"],
    scale: float,
) -> Iterator[Callable[[Sequence[Tensor], Sequence[Float64[Tensor, " b"]]], None]]:
    """Add up squared gradients of a tower, of every one of its parameters and of the visual projection.

    Args:
        model: on its device.
        totals: name -> sum over examples, so far; added to in place.
        pool: worker threads, with one BLAS thread each.
        head: zero-shot head of the task, unit rows.
        projection: the base's visual projection.
        scale: CLIP's logit scale, as a factor.

    Yields:
        A function that adds some batches: their pixels, and a number in [0, 1) for each image that draws its y.
    """
    kinds = (nn.Linear, nn.LayerNorm)
    wanted = layers(model, lambda name, module: isinstance(module, kinds) or name == _EMBEDDINGS)
    for name, parameter in model.named_parameters():
        # Some leaf must ask for a gradient; those of the layers are put together here, and never by autograd.
        parameter.requires_grad_(name.endswith("class_embedding"))

    with tapped(wanted) as fresh:

        def forward(pixels: Tensor) -> _Forward:
            held = fresh()
            pooled = model(pixel_values=pixels).pooler_output
            features = pooled @ projection.T
            logits = scale * functional.normalize(features, dim=-1) @ head.T
            return _Forward(pixels, held, pooled, features, functional.log_softmax(logits, dim=-1))

        def backward(run: _Forward, drawn: Tensor, y: int, last: bool) -> dict[str, Tensor]:
            """The gradient of log p_y of each image with respect to each layer's output, times √p_y."""
            if len(head) <= EXACT:
                chosen = run.logp[:, y]
                chosen = chosen * (0.5 * chosen).exp().detach()
            else:
                chosen = run.logp.gather(1, _draw(run.logp, drawn)[:, None])[:, 0]
            outputs = [*(out for _, out in run.held.values()), run.features]
            found = torch.autograd.grad(chosen.sum(), outputs, retain_graph=not last)
            return dict(zip([*run.held, PROJECTION], found, strict=True))

        def square(runs: Sequence[_Forward], deltas: Sequence[dict[str, Tensor]], name: str) -> None:
            for run, delta in zip(runs, deltas, strict=True):  # in order, whoever was faster
                for own, gradient in _gradients(name, wanted.get(name), run, delta[name]):
                    for each in gradient:
                        totals[own].addcmul_(each, each)

        def add(batches: Sequence[Tensor], drawn: Sequence[Tensor]) -> None:
            runs = list(pool.map(forward, batches))
            passes = len(head) if len(head) <= EXACT else 1
            for y in range(passes):
                deltas = list(pool.map(partial(backward, y=y, last=y == passes - 1), runs, drawn))
                list(pool.map(partial(square, runs, deltas), [*wanted, PROJECTION]))

        yield add


def _draw(logp: Float[Tensor, "b classes"], drawn: Float64[Tensor, " b"]) -> Tensor:
    """The class whose share of [0, 1) a number falls into."""
    ends = logp.detach().cpu().double().exp().cumsum(1)
    return torch.searchsorted(ends, drawn[:, None] * ends[:, -1:], right=True)[:, 0].to(logp.device)


@torch.no_grad()
def _gradients(name: str, module: nn.Module | None, run: _Forward, delta: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, gradient of each example) for each parameter of a layer; `delta` is the gradient of its output."""
    if module is None:
        yield PROJECTION, delta[:, :, None] * run.pooled.detach()[:, None, :]
        return
    if name == _EMBEDDINGS:
        conv: Any = module.patch_embedding
        patches = functional.unfold(run.pixels, conv.kernel_size, stride=conv.stride)
        yield f"{name}.class_embedding", delta[:, 0].clone()
        yield f"{name}.patch_embedding.weight", (patches @ delta[:, 1:]).mT.reshape(len(delta), *conv.weight.shape)
        yield f"{name}.position_embedding.weight", delta.clone()
        return
    taken = run.held[name][0].detach()
    x, d = (each.reshape(len(each), -1, each.shape[-1]) for each in (taken, delta))
    if isinstance(module, nn.LayerNorm):
        x = functional.layer_norm(x, module.normalized_shape, eps=module.eps)
        yield f"{name}.weight", (d * x).sum(1)
    else:
        weight = f"{name}.weight"
        # One example at a time: a matrix that is read again at once need not come from memory.
        yield from ((weight, (d[i].T @ x[i])[None]) for i in range(len(d)))
    yield f"{name}.bias", d.sum(1)
