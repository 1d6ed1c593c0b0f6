"""What some methods must know of each tower on images of its own task: Fisher diagonals, Gram matrices of inputs.

Gathered tower by tower, kept in the cache as one file a tower, and read from there group by group while merging. No
label is read. The numbers are the same for any number of workers.
"""

from hfcart.learning.statistics._gather import Gathered, gather

__all__ = ["Gathered", "gather"]
