"""This machine: threads, memory, the work folder and its journal, checkpoints, and where the cards are."""
