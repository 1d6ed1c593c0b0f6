"""Measuring: zero-shot heads bound to a base, a tower that runs, and scores."""
