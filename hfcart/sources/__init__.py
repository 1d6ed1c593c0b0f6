"""From what was typed to towers pinned, proven alike, and ready to be read."""
