"""Fine-tuning of a vision tower against the frozen zero-shot heads of one task or several."""
