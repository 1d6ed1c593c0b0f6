"""Whatever looks at images to learn: adaptation, statistics, thresholds, fine-tuning."""
