"""Samples in Parquet files, also as the Hugging Face hub has them: a column of images {bytes, path} and one of classes.

Rows are reached by row group, and a few of those stay in memory: fine in order, costly at random.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
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

GROUPS_KEPT = 4


class ParquetSamples:
    """Parquet files of one schema as one data set, in their order.

    Names are the images' paths without ending where every row has one of its own, else the rows' numbers.
    """

    container = "parquet"

    def __init__(self, files: Sequence[str], *, where: str) -> None:
        self.where = where
        self.files = tuple(files)
        _check_one_split(self.files)
        paths: list[str | None] = []
        targets: list[int | None] = []
        firsts, groups = [0], []
        self.classes: tuple[str, ...] = ()
        for number, file in enumerate(self.files):
            opened = _open(file)
            schema = opened.schema_arrow
            features = hub_features(schema)
            image, label = image_column(schema, features, file), label_column(schema, features)
            if number == 0:
                self.image_column, self.label_column = image, label
                self.classes = class_names(features, label)
            elif (image, label) != (self.image_column, self.label_column):
                raise BadDataSet(f"{file} has columns {image!r}, {label!r}, {self.files[0]} {self.image_column!r}, ...")
            rows = opened.metadata.num_rows
            paths += _paths(opened, schema, image) or [None] * rows
            targets += opened.read([label], use_threads=False)[label].to_pylist() if label else [None] * rows
            for group in range(opened.num_row_groups):
                groups.append((number, group))
                firsts.append(firsts[-1] + opened.metadata.row_group(group).num_rows)
        if not paths:
            raise BadDataSet(f"no rows in {where}")
        self._firsts, self._groups = np.array(firsts, np.int64), np.array(groups, np.int64)
        self.names = row_names(paths)
        self.targets: NDArray[np.int64] = class_numbers(targets, self.classes, where)
        self._reset()

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<ParquetSamples {len(self)} images in {len(self.files)} Parquet file(s), {self.where}>"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_kept", "_lock", "_pid")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def name(self, index: int) -> str:
        return text(self.names[index])

    def target(self, index: int) -> int:
        return int(self.targets[index])

    def read(self, index: int) -> bytes:
        group = int(np.searchsorted(self._firsts, index, side="right")) - 1
        try:
            value = self._images(group)[index - int(self._firsts[group])].as_py()
        except UnreadableImage:
            raise
        except Exception as error:
            file = self.files[int(self._groups[group, 0])]
            raise UnreadableImage(f"cannot read {self.name(index)}: {error} ({file})") from error
        data = image_bytes(value)
        if data is None:
            raise UnreadableImage(f"cannot read {self.name(index)}: row {index} of {self.where} holds no image bytes")
        return data

    def stamp(self, index: int) -> int:
        group = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return file_stamp(self.files[int(self._groups[group, 0])], index)

    def _images(self, group: int) -> Any:
        """The image column of a row group, from memory or read whole."""
        if self._pid != os.getpid():
            self._reset()  # a fork may have copied a held lock
        with self._lock:
            entry = self._kept.pop(group, None) or _Group()
            self._kept[group] = entry
            while len(self._kept) > GROUPS_KEPT:
                self._kept.popitem(last=False)
        with entry.lock:
            if entry.column is None:
                number, place = self._groups[group].tolist()
                table = _open(self.files[number]).read_row_group(place, [self.image_column], use_threads=False)
                entry.column = table[self.image_column]
            return entry.column

    def _reset(self) -> None:
        self._kept: OrderedDict[int, _Group] = OrderedDict()
        self._lock, self._pid = threading.Lock(), os.getpid()


class _Group:
    """One row group's images; the lock lets one thread read it while others wait for it."""

    def __init__(self) -> None:
        self.lock, self.column = threading.Lock(), None


def _open(file: str) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise BadDataSet(f"{file}: reading Parquet needs pyarrow: pip install 'teacherfarm[parquet]'") from error
    try:
        return parquet.ParquetFile(file)
    except Exception as error:
        raise BadDataSet(f"{file} cannot be read as a Parquet file ({error})") from error


def _paths(opened: Any, schema: Any, image: str) -> list[str | None] | None:
    import pyarrow

    kind = schema.field(image).type
    if not pyarrow.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return None
    column = opened.read([f"{image}.path"], use_threads=False)[image]
    return [value and value.get("path") for value in column.to_pylist()]


def _check_one_split(files: Sequence[str]) -> None:
    """The hub keeps train-00000-of-00002.parquet beside validation-...: mixed, they would be one data set."""
    splits = {os.path.basename(file).split("-")[0] for file in files if "-of-" in os.path.basename(file)}
    if len(splits) > 1:
        raise BadDataSet(
            f"these Parquet files are of several splits ({', '.join(sorted(splits))}): choose one, for example "
            f"{os.path.join(os.path.dirname(files[0]), min(splits) + '-*.parquet')!r}"
        )
