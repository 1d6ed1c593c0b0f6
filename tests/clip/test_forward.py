"""The inference-only forward pass against transformers' own, in every precision, and that it does less."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.utils import logging
from work import counted

from hfcart.clip.forward import pooled

SMALL = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3}
SIZES = {"image_size": 30, "patch_size": 8}  # the last six rows and columns belong to no patch


def model_of(**fields: object) -> CLIPVisionModel:
    """A random tower whose attention is far from uniform and whose activations leave their linear part."""
    logging.set_verbosity_error()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPVisionModel(CLIPVisionConfig(**{**SMALL, **SIZES, **fields})).eval()
        for weight in model.parameters():
            weight.data.add_(0.2 * torch.randn_like(weight))
    return model


def images(model: CLIPVisionModel, count: int = 5) -> torch.Tensor:
    side = model.config.image_size
    return torch.randn(count, model.config.num_channels, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def own(model: CLIPVisionModel, pixels: torch.Tensor) -> torch.Tensor:
    """What transformers computes."""
    return model(pixel_values=pixels).pooler_output


def farthest(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).abs().max())


@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "tanh"])
def test_every_activation(act: str) -> None:
    model = model_of(hidden_act=act)
    pixels = images(model)
    expected = own(model, pixels)
    assert farthest(pooled(model, pixels), expected) < 1e-5
    assert farthest(own(model_of(hidden_act="sigmoid"), pixels), expected) > 0.1  # the activation matters


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": 1},
        {"num_attention_heads": 1},
        {"num_attention_heads": 24},
        {"image_size": 8},  # two tokens
        {"image_size": 7, "patch_size": 7, "num_channels": 1},
        {"layer_norm_eps": 0.1},
        {"attention_dropout": 0.5},  # of training only
        {"hidden_size": 27, "intermediate_size": 11},
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [1, 4])
def test_every_shape(fields: dict[str, object], count: int) -> None:
    model = model_of(**fields)
    pixels = images(model, count)
    assert farthest(pooled(model, pixels), own(model, pixels)) < 1e-5


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_every_precision(act: str) -> None:
    model = model_of(hidden_act=act)
    pixels = images(model, 40)
    exact = own(model_of(hidden_act=act).double(), pixels.double())
    double = pooled(model_of(hidden_act=act).double(), pixels.double())
    assert double.dtype == torch.float64 and farthest(double, exact) < 1e-12
    assert farthest(pooled(model, pixels), exact) < 2 * farthest(own(model, pixels), exact) + 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = pooled(model, pixels), own(model, pixels)
    off = farthest(theirs, exact)
    assert off > 1e-3 and 1e-3 < farthest(ours, exact) < 2 * off  # autocast is at work, and no worse than the model's


def test_nothing_is_changed() -> None:
    """Only intermediate results are overwritten: not the weights, not the images."""
    model = model_of()
    pixels = images(model)
    weights, before = {name: value.clone() for name, value in model.state_dict().items()}, pixels.clone()
    first = pooled(model, pixels)
    assert torch.equal(first, pooled(model, pixels)) and torch.equal(pixels, before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_last_block_computes_one_token() -> None:
    """Of its products only keys and values are of all tokens. (Attention's own products this counter does not see.)"""
    model = model_of(image_size=56, num_hidden_layers=2, intermediate_size=96)
    tokens, d, done = 50, 24, []
    for work in (own, pooled):
        with counted() as counts:
            work(model, images(model, 1))
        done.append(counts["multiplications"])
    assert done[0] - done[1] == (tokens - 1) * (2 * d * d + 2 * d * 96)  # query and output, and the MLP
