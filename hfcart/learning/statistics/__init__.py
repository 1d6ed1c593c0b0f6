"""What some methods must know of each tower on images of its own task: Fisher diagonals, Gram matrices of inputs.

Gathered tower by tower, kept in the cache as one file a tower, and read from there group by group while merging; or
block by block, each on what comes through the merged blocks before it. No label is read. The numbers are the same for
any number of workers.
"""

from hfcart.learning.statistics._gather import gather

__all__ = ["gather"]
