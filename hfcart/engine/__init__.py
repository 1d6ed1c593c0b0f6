"""A merge from its plan to bytes: reading groups of tensors, merging them, writing them in place.

No method is known here by its name: what differs between methods is in their declarations.
"""
