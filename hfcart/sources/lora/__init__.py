"""LoRA adapters, as peft saves them: a tower that is a base plus scale · B A, read tensor by tensor.

A stranger's config and tensors come in; what leaves is a tower like any other, whose base is pinned beside it.
"""
