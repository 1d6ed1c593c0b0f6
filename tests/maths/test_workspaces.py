"""Workspaces: the same memory again and again, a thread's own, and never what a method gives back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from hfcart.maths.workspaces import workspace
from hfcart.methods.cart.rule import cart, parts


def test_the_same_memory_again_but_another_in_another_thread() -> None:
    large, small = torch.ones(6, 4), torch.ones(3, 2)
    first = workspace("a test's", large)
    again = workspace("a test's", small)
    assert first.shape == large.shape and again.shape == small.shape
    assert again.data_ptr() == first.data_ptr() != workspace("another of a test's", large).data_ptr()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(workspace, "a test's", large).result().data_ptr() != first.data_ptr()
    assert workspace("a test's", large.double()).dtype == torch.float64


def test_what_a_rule_gives_is_not_in_them() -> None:
    one, other = (torch.randn(3, 20, 12, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    before, given = cart(one, rank=2).tensor, parts(one, rank=2)
    assert given.right is not None
    taken = [given.anchor, given.left, given.right]
    kept, held = before.clone(), [part.clone() for part in taken]
    cart(other, rank=2)
    parts(other, rank=2)
    assert torch.equal(before, kept)
    assert all(torch.equal(part, old) for part, old in zip(taken, held, strict=True))
