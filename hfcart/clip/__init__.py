"""What a CLIP tower is: its architecture, the names of its tensors, its forward pass, and images as its input.

Nothing here knows where a tower comes from. `models` is the only importer of transformers.
"""
