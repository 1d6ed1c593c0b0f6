"""Whatever looks at images to learn: adaptation, statistics, thresholds, fine-tuning. `zero_shot` only measures."""
