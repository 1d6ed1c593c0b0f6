"""What a CLIP tower is: its architecture, the names of its tensors, its forward pass, and images as its input."""
