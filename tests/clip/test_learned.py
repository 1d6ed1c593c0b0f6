"""The forward pass that is learned through: transformers' own output and gradients, from less work and memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_forward import farthest, images, model_of
from transformers import CLIPVisionModel
from work import counted

from hfcart.clip.learned import pooled_to_learn


def own(model: CLIPVisionModel, pixels: torch.Tensor) -> torch.Tensor:
    """What transformers computes."""
    return model(pixel_values=pixels).pooler_output


def gradients(
    forward: Callable[[CLIPVisionModel, torch.Tensor], torch.Tensor], model: CLIPVisionModel, pixels: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output, and every parameter's gradient after the images came in batches of two."""
    model.zero_grad()
    outputs = []
    for batch in pixels.split(2):
        outputs.append(forward(model, batch).float())
        torch.log_softmax(outputs[-1], dim=-1)[:, 3].sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return torch.cat(outputs).detach(), found


@pytest.mark.parametrize(
    "fields",
    [{"hidden_act": act} for act in ("quick_gelu", "gelu", "relu", "silu")]
    + [
        {"num_hidden_layers": 1},
        {"num_attention_heads": 24},
        {"image_size": 8},
        {"image_size": 7, "patch_size": 7, "num_channels": 1},
        {"attention_dropout": 0.5},
        {"hidden_size": 27, "intermediate_size": 11},
    ],
    ids=str,
)
@pytest.mark.parametrize("which", ["all", "matrices"])
def test_it_is_the_models_own(fields: dict[str, object], which: str) -> None:
    model = model_of(**fields)
    if which == "matrices":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".layers." in name and parameter.ndim == 2)
    pixels = images(model)
    (expected, theirs), (found, ours) = (gradients(f, model, pixels) for f in (own, pooled_to_learn))
    assert farthest(found, expected) < 1e-5
    assert ours.keys() == theirs.keys() and len(ours) == sum(p.requires_grad for p in model.parameters())
    # Of keys' biases, which change no attention, the gradient is zero but for rounding.
    largest = max(float(gradient.norm()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).norm()) < 1e-5 * float(gradient.norm()) + 1e-6 * largest, name


def test_under_autocast() -> None:
    """Products in bfloat16 forward and backward, as far from float32's gradients as the model's own."""
    model = model_of()
    pixels = images(model, 8)
    _, exact = gradients(own, model, pixels)
    off = []
    for forward in (own, pooled_to_learn):

        def under(model: CLIPVisionModel, batch: torch.Tensor, forward: Callable = forward) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return forward(model, batch)

        _, found = gradients(under, model, pixels)
        assert all(gradient.dtype == torch.float32 for gradient in found.values())
        whole = [torch.cat([each[name].flatten() for name in exact]) for each in (found, exact)]
        off.append(float((whole[0] - whole[1]).norm() / whole[1].norm()))
    assert 1e-3 < off[1] < 2 * off[0]


def test_a_batchs_gradient_is_added_where_the_last_ones_is() -> None:
    model = model_of()
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    places = []
    for _ in range(2):
        pooled_to_learn(model, images(model)).sum().backward()
        places.append([weight.grad.data_ptr() for weight in weights if weight.grad is not None])
    assert places[0] == places[1] and len(places[0]) == len(weights)


def test_no_product_is_made_that_nothing_depends_on() -> None:
    """Three of a layer: its output, and the gradients of its weight and its input, in the last block of one token."""
    model = model_of(image_size=56, num_hidden_layers=2, intermediate_size=96)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layers." in name and parameter.ndim == 2)
    tokens, d, wide = 50, 24, 96
    with counted() as work:
        pooled_to_learn(model, images(model, 1)).sum().backward()
    first = tokens * (3 * (d * d + 2 * d * wide) + 2 * 3 * d * d)  # its input has no gradient
    last = 3 * (tokens * 2 * d * d + 2 * d * d + 2 * d * wide)
    attention = work["multiplications"] - first - last
    assert 0 <= attention <= 2 * 6 * tokens * tokens * d, work  # if torch makes it of products that are seen
