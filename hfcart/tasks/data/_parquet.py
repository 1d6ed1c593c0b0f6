"""Parquet files: the number of rows of one on the Hub, and an image dataset as one."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pyarrow
import pyarrow.parquet
from datasets.utils.file_utils import xopen


def parquet_rows(file: str) -> int:
    with xopen(file, "rb") as opened:
        return int(pyarrow.parquet.read_metadata(opened).num_rows)


def parquet(images: Sequence[bytes], labels: Sequence[int], classnames: Sequence[str]) -> bytes:
    """An image dataset as one parquet file, as the Hub keeps them: columns `image` and `label`.

    Args:
        images: image files.
        labels: one an image, 0 .. classes − 1.
        classnames: one a label.
    """
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table(
        {
            "image": pyarrow.array([{"bytes": image, "path": None} for image in images], type=kind),
            "label": pyarrow.array(labels, type=pyarrow.int64()),
        }
    )
    features = {"image": {"_type": "Image"}, "label": {"names": list(classnames), "_type": "ClassLabel"}}
    told = json.dumps({"info": {"features": features}})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": told}), buffer, row_group_size=100)
    return buffer.getvalue()
