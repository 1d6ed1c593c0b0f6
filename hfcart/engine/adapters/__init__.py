"""Adapters that a merge writes beside its tower: their names, where their tensors lie, and what is in them."""
