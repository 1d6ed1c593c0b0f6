"""metadata.csv, metadata.jsonl and metadata.parquet of a folder of images: which files, which labels."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator

import pyarrow
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from hfcart.errors import SourceError
from hfcart.quoting import printable, quoted, some
from hfcart.tasks.image_folder import ImageFolder, read

Label = str | int | None
_TEXTS = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view)
_LABELS = (*_TEXTS, pyarrow.types.is_integer, pyarrow.types.is_boolean)


def metadata_columns(folder: ImageFolder) -> dict[str, str]:
    """The columns of the first metadata file, and what they hold. Raises SourceError if it cannot be read."""
    return {field.name: str(field.type) for field in _table(folder, folder.metadata[0]).schema}


def label_columns(folder: ImageFolder) -> list[str]:
    """Those of them that may hold labels: texts, whole numbers, booleans."""
    schema = _table(folder, folder.metadata[0]).schema
    return [field.name for field in schema if _is(field.type, _LABELS) and not field.name.endswith("file_name")]


def metadata_labels(folder: ImageFolder, image: str, label: str) -> dict[str, Label]:
    """The label of every image that the metadata names, by its file, in the metadata's order.

    Args:
        folder: with metadata.
        image: the column of images: `image` is called file_name there, as `datasets` has it, x is x_file_name.
        label: the column of labels.

    Raises:
        SourceError: no such column, one of the wrong kind, a file that the folder has not, or one with two labels.
    """
    found: dict[str, Label] = {}
    for name in folder.metadata:
        for file, value in _rows(folder, name, "file_name" if image == "image" else f"{image}_file_name", label):
            if found.setdefault(file, value) != value:
                raise SourceError(
                    f"{folder.name}/{name} says that {file} is {quoted(value)}, and elsewhere that it is "
                    f"{quoted(found[file])}."
                )
    return found


def _rows(folder: ImageFolder, name: str, image: str, label: str) -> Iterator[tuple[str, Label]]:
    where, table = f"{folder.name}/{name}", _table(folder, name)
    for column, kinds, expected in (
        (image, _TEXTS, "names of files"),
        (label, _LABELS, "texts, whole numbers or booleans"),
    ):
        if column not in table.column_names:
            raise SourceError(f"{where} has no column {quoted(column)}: its columns are {some(table.column_names)}.")
        if table.column_names.count(column) > 1:
            raise SourceError(f"{where} has several columns {quoted(column)}.", hint="Rename all but one of them.")
        if not _is(kind := table.schema.field(column).type, kinds):
            raise SourceError(f"The column {quoted(column)} of {where}: expected {expected}, found {kind}.")
    for file, value in zip(table[image].to_pylist(), table[label].to_pylist(), strict=True):
        inside = posixpath.normpath(posixpath.join(posixpath.dirname(name), str(file)))
        if inside not in folder.files:
            what = "leads out of it" if inside.startswith(("../", "/")) else "is none of its files"
            raise SourceError(f"{where} names {quoted(file)}, which {what}.")
        yield inside, value


def _table(folder: ImageFolder, name: str) -> pyarrow.Table:
    data = io.BytesIO(read(folder, name))
    try:
        if name.endswith(".csv"):
            table = pyarrow.csv.read_csv(data)
        else:
            table = (pyarrow.json.read_json if name.endswith(".jsonl") else pyarrow.parquet.read_table)(data)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise SourceError(f"{folder.name}/{name} cannot be read: {printable(error, 200)}.") from None
    if not table.num_rows:
        raise SourceError(f"{folder.name}/{name} has no rows.")
    return table


def _is(kind: pyarrow.DataType, kinds: tuple[object, ...]) -> bool:
    return any(callable(one) and one(kind) for one in kinds)
