"""Strangers' files read strictly: safetensors, YAML, pickles, Markdown, cards, and where a shard's tensors lie.

What knows a format, and nothing of towers or of the Hub, belongs here.
"""
