"""Labelled images from the Hub: one part of one split of a dataset, pinned to a commit.

Streaming, the split's files are read over the network as they are needed; otherwise that split, and no other,
is kept in the cache of datasets. Both give the same examples in the same order. Images stay encoded: decoding
is work for many workers, and whoever does it counts the images that are broken.

The only package that imports datasets and pyarrow.
"""

from hfcart.tasks.data._client import Contents, contents
from hfcart.tasks.data._parquet import parquet
from hfcart.tasks.data._split import Example, Part, Split, open_split, part_rows

__all__ = ["Contents", "Example", "Part", "Split", "contents", "open_split", "parquet", "part_rows"]
