"""Samples in Arrow files, as Hugging Face's ``save_to_disk`` writes them: columns of images {bytes, path} and classes.

The files stay where they are: rows are read through memory maps, at random as fast as in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.hub_columns import (
    class_names,
    class_numbers,
    hub_features,
    image_bytes,
    image_column,
    label_column,
    row_names,
)
from teacherfarm.crops.sample_names import text
from teacherfarm.crops.sample_readers import file_stamp
from teacherfarm.protos.faults import BadDataSet, UnreadableImage


class ArrowSamples:
    """Arrow files of one schema as one data set, in their order; named as :class:`ParquetSamples` names rows."""

    container = "arrow"

    def __init__(self, files: Sequence[str], *, where: str) -> None:
        self.where = where
        self.files = tuple(files)
        tables = [_open(file) for file in self.files]
        schema = tables[0].schema
        features = hub_features(schema)
        self.image_column, label = image_column(schema, features, files[0]), label_column(schema, features)
        self.classes = class_names(features, label)
        for file, table in zip(files, tables, strict=True):
            if not table.schema.equals(schema):
                raise BadDataSet(f"{file} has columns {', '.join(table.schema.names)} unlike those of {files[0]}")
            _check(file, table, [self.image_column, *([label] if label else [])])
        if not (rows := sum(len(table) for table in tables)):
            raise BadDataSet(f"no rows in {where}")
        self._columns = [table[self.image_column] for table in tables]
        self._firsts = np.cumsum([0, *(len(table) for table in tables)])
        targets = [value for table in tables for value in table[label].to_pylist()] if label else [None] * rows
        self.targets: NDArray[np.int64] = class_numbers(targets, self.classes, where)
        self.names = row_names([path for column in self._columns for path in _paths(column)])

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<ArrowSamples {len(self)} images in {len(self.files)} Arrow file(s), {self.where}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_columns": []}  # the other process maps the files itself

    def name(self, index: int) -> str:
        return text(self.names[index])

    def target(self, index: int) -> int:
        return int(self.targets[index])

    def read(self, index: int) -> bytes:
        number, row = self._place(index)
        try:
            if not self._columns:
                self._columns = [_open(file)[self.image_column] for file in self.files]
            data = image_bytes(self._columns[number][row].as_py())
        except Exception as error:
            raise UnreadableImage(f"cannot read {self.name(index)}: {error} ({self.files[number]})") from error
        if data is None:
            raise UnreadableImage(f"cannot read {self.name(index)}: row {index} of {self.where} holds no image bytes")
        return data

    def stamp(self, index: int) -> int:
        return file_stamp(self.files[self._place(index)[0]], index)

    def _place(self, index: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return number, index - int(self._firsts[number])


def _open(file: str) -> Any:
    """A file's table over a memory map: as a stream, or with a table of contents."""
    try:
        import pyarrow
    except ImportError as error:
        raise BadDataSet(f"{file}: reading Arrow files needs pyarrow: pip install 'teacherfarm[parquet]'") from error
    try:
        mapped = pyarrow.memory_map(file)
        with_contents = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        return (pyarrow.ipc.open_file if with_contents else pyarrow.ipc.open_stream)(mapped).read_all()
    except Exception as error:
        raise BadDataSet(f"{file} cannot be read as an Arrow file ({error})") from error


def _check(file: str, table: Any, columns: Sequence[str]) -> None:
    """Offsets that point elsewhere would end the process, or show what else is in its memory."""
    try:
        table.select(columns).validate(full=True)
    except Exception as error:
        raise BadDataSet(f"{file} is damaged ({error}): copy it again") from error


def _paths(column: Any) -> list[str | None]:
    import pyarrow

    if not pyarrow.types.is_struct(column.type) or column.type.get_field_index("path") < 0:
        return [None] * len(column)
    return [path for chunk in column.chunks for path in chunk.field("path").to_pylist()]
