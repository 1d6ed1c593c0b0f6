"""Strangers' files read strictly: safetensors, JSON, YAML, pickles, Markdown, cards, a shard's layout."""
