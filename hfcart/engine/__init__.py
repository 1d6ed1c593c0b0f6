"""A merge from its plan to bytes: reading groups of tensors, merging them, writing them in place."""
