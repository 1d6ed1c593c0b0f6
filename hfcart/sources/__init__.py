"""From what was typed to towers pinned, proven alike, and ready to be read.

What is known of a tower before its weights are used: where it is from, what it holds, what it may replace.
"""
