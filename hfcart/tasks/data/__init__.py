"""Labelled images from the Hub or from a folder: one part of one split, pinned to a commit or to its content.

Streaming, the split's files are read over the network as they are needed; otherwise that split, and no other,
is kept in the cache of datasets. Both give the same examples in the same order. Images stay encoded: decoding
is work for many workers, and whoever does it counts the images that are broken.

The only package that imports datasets and pyarrow.
"""

from hfcart.tasks.data._client import Contents, contents
from hfcart.tasks.data._metadata import label_columns, metadata_columns, metadata_labels
from hfcart.tasks.data._parquet import parquet
from hfcart.tasks.data._split import Example, Part, Split, open_split, part_rows

__all__ = [
    "Contents",
    "Example",
    "Part",
    "Split",
    "contents",
    "label_columns",
    "metadata_columns",
    "metadata_labels",
    "open_split",
    "parquet",
    "part_rows",
]
