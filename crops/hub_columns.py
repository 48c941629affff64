"""Which columns of a table hold images and classes, as the Hugging Face hub and others call them. Reads no files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.sample_names import NO_TARGET, name_array, without_ending
from teacherfarm.protos.faults import BadDataSet

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "target", "cls", "class", "fine_label")

_MOST_CLASSES = 1 << 31


def hub_features(schema: Any) -> dict[str, Any]:
    """What the hub's ``datasets`` wrote about the columns; empty where it did not."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def class_names(features: dict[str, Any], label: str | None) -> tuple[str, ...]:
    """The classes of a column, where the hub named them."""
    kind = features.get(label or "")
    names = kind.get("names") if isinstance(kind, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def class_numbers(values: Sequence[int | None], classes: Sequence[str], where: str) -> NDArray[np.int64]:
    """A column of class numbers as targets. Raises BadDataSet for numbers that no name stands for."""
    most = max((value for value in values if value is not None), default=0)
    if most >= (len(classes) or _MOST_CLASSES):
        raise BadDataSet(f"{where} has class number {most} and names {len(classes) or 'no'} classes: mend its column")
    return np.array([NO_TARGET if value is None else value for value in values], np.int64)


def image_column(schema: Any, features: dict[str, Any], file: str) -> str:
    """The column of images: binary, or a struct with ``bytes``. Raises BadDataSet where there is none."""
    import pyarrow

    def holds_images(name: str) -> bool:
        kind = schema.field(name).type
        if pyarrow.types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    declared = [name for name, kind in features.items() if isinstance(kind, dict) and kind.get("_type") == "Image"]
    for name in [*declared, *IMAGE_COLUMNS, *schema.names]:
        if name in schema.names and holds_images(name):
            return str(name)
    raise BadDataSet(
        f"{file} has no column of images: expected binary, or a struct with 'bytes', for example one called 'image'; "
        f"it has {', '.join(schema.names)}"
    )


def label_column(schema: Any, features: dict[str, Any]) -> str | None:
    """The column of class numbers; None where there is none."""
    import pyarrow

    declared = [name for name, kind in features.items() if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"]
    for name in [*declared, *LABEL_COLUMNS]:
        if name in schema.names and pyarrow.types.is_integer(schema.field(name).type):
            return str(name)
    return None


def image_bytes(value: object) -> bytes | None:
    """The encoded image in a cell of an image column; None where it holds none."""
    data = value.get("bytes") if isinstance(value, dict) else value
    return data if isinstance(data, bytes) and data else None


def row_names(paths: Sequence[str | None]) -> NDArray[np.bytes_]:
    """The images' paths without ending where every row has one of its own, else the rows' numbers."""
    named = [without_ending(path) for path in paths if path]
    if len(named) != len(paths) or len(set(named)) != len(named):
        named = [str(row) for row in range(len(paths))]
    return name_array(named)
