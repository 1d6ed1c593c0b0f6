"""A linear layer's product, by whichever library, is torch's."""

from __future__ import annotations

import pytest
import torch

from hfcart.clip import linear as layers


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


X = random(5, 7, 24)
SHAPES = [X, X[:, :1], X.transpose(0, 1), X[0, 0], X[:0], random(3, 48)[:, ::2]]


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_every_form_of_input(onednn: bool, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if onednn and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.fail("this torch has no oneDNN: hfcart.clip.linear would not use it, and there is nothing to test")
    monkeypatch.setattr(layers, "_ONEDNN", onednn)
    bias = random(11) if biased else None
    for x in SHAPES:
        for weight in (random(11, 24), random(24, 11).T):
            expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
            found = layers.product(x, weight, bias)
            assert found.shape == expected.shape and found.dtype == torch.float32
            assert torch.allclose(found.double(), expected, atol=1e-5)


def test_other_precisions_are_torchs_own() -> None:
    module = torch.nn.Linear(24, 11)
    exact = module.double()(X.double()).detach()
    assert torch.equal(layers.linear(module, X.double()), exact)
    module.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = layers.linear(module, X)
    assert found.dtype == torch.bfloat16 and 1e-4 < float((found - exact).abs().max()) < 0.1
    assert not layers.linear(module, X).requires_grad
