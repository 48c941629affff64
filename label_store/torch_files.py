"""Reads what torch.save wrote, zip or legacy, without torch and without running anything in it; writes lists of arrays
that torch.load reads.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.label_store.pickle_values import PickledArray, PickledStorage, PickledTensor
from teacherfarm.label_store.restricted_pickle import read_pickle
from teacherfarm.protos.faults import BadLabelFile

Arrays = list[NDArray[Any]]

MAX_FILE_BYTES = 1 << 28
"""Dense float32 labels of 500 crops and 21 841 classes are 44 MB."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ZIP_START = b"PK\x03\x04"
_MAX_ENTRIES = 10_000
_MAX_ARRAYS = 64


def read_arrays(path: str | Path) -> Arrays:
    """The arrays of a file that torch.save wrote: one array, tensor or number, or a list of them, in order.

    bfloat16 comes as float32. Raises BadLabelFile (damaged, or holds something else), UnsafeLabelFile, or OSError.
    """
    name = str(path)
    with open(path, "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise BadLabelFile(f"{name} is larger than {MAX_FILE_BYTES >> 20} MiB: no label file of one image is")
    return arrays_in(data, name)


def arrays_in(data: bytes, name: str) -> Arrays:
    """:func:`read_arrays` of a file's content."""
    try:
        value, storage = _unzip(data, name) if data[:4] == _ZIP_START else _read_legacy(data, name)
        parts = value if isinstance(value, (list, tuple)) else [value]
        if len(parts) > _MAX_ARRAYS:
            raise BadLabelFile(f"{name} holds {len(parts)} things; a label file holds a few arrays")
        return [_as_array(part, storage) for part in parts]
    except BadLabelFile:
        raise
    except Exception as error:
        raise BadLabelFile(f"{name} is damaged ({error or type(error).__name__}): copy it again") from error


def dump_arrays(arrays: Sequence[NDArray[Any]]) -> bytes:
    """A file that torch.load(weights_only=False) of any age reads as a list of numpy arrays; the same bytes each time.

    The pickle is the one that torch.save writes beside numpy 1, whose names numpy 2 knows, too.
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (("data.pkl", _pickle(arrays)), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
    return file.getvalue()


def _unzip(data: bytes, name: str) -> tuple[object, Callable[[PickledStorage], bytes]]:
    if data.count(b"PK\x01\x02") > _MAX_ENTRIES:
        raise BadLabelFile(f"{name} is an archive of more than {_MAX_ENTRIES} entries, which no label file is")
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
    if "data.pkl" not in entries:
        raise BadLabelFile(f"{name} is a zip archive, but not one that torch.save wrote: it has no data.pkl")
    left = len(data)

    def read(entry: str) -> bytes:
        # torch never compresses, so all entries together are smaller than the file; a zip bomb's are not.
        nonlocal left
        info = entries[entry]
        left -= info.file_size
        if info.compress_type != zipfile.ZIP_STORED or left < 0:
            raise BadLabelFile(
                f"{name} holds more than its {len(data)} bytes once unpacked, which torch.save never writes"
            )
        return archive.read(info)

    if "byteorder" in entries and read("byteorder") != b"little":
        raise BadLabelFile(f"{name} was written on a big-endian machine, which is not supported")
    value, _ = read_pickle(read("data.pkl"), 0, name)
    read_before: dict[str, bytes] = {}

    def storage_bytes(storage: PickledStorage) -> bytes:
        if storage.key not in read_before:
            read_before[storage.key] = read(f"data/{storage.key}")
        return read_before[storage.key]

    return value, storage_bytes


def _read_legacy(data: bytes, name: str) -> tuple[object, Callable[[PickledStorage], bytes]]:
    """torch before 1.6: pickles of a magic number, a protocol, the machine, the value, the storages' keys; then those,
    each after its number of elements.
    """
    magic: object = None
    if data[:1] == b"\x80":
        magic, position = read_pickle(data, 0, name)
    if magic != _LEGACY_MAGIC:
        raise BadLabelFile(
            f"{name} was not written by torch.save ({'it is empty' if not data else f'it begins with {data[:8]!r}'}); "
            "a label file of FKD or ReLabel was, whatever its name ends with"
        )
    protocol, position = read_pickle(data, position, name)
    machine, position = read_pickle(data, position, name)
    if protocol != _LEGACY_PROTOCOL or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise BadLabelFile(f"{name} is of torch's protocol {protocol}, or from a big-endian machine: not supported")
    value, position = read_pickle(data, position, name)
    keys, position = read_pickle(data, position, name)
    places: dict[object, int] = {}

    def storage_bytes(storage: PickledStorage) -> bytes:
        if not places:
            place = position
            for key in keys if isinstance(keys, list) else []:
                places[key] = place
                # All storages of one file are of different lengths and types; only a tensor tells the type.
                (num_elements,) = struct.unpack_from("<q", data, place)
                place += 8 + num_elements * sizes[key]
        start = places[storage.key] + 8
        return data[start : start + storage.num_elements * sizes[storage.key]]

    sizes = {
        part.storage.key: np.dtype(_held_as(part.number_type)).itemsize
        for part in (value if isinstance(value, (list, tuple)) else [value])
        if isinstance(part, PickledTensor)
    }
    return value, storage_bytes


def _as_array(part: object, storage: Callable[[PickledStorage], bytes]) -> NDArray[Any]:
    if isinstance(part, PickledArray) and part.array is not None:
        return part.array
    if isinstance(part, PickledTensor):
        return _tensor(part, storage(part.storage))
    if isinstance(part, (bool, int, float)):
        return np.array(part)
    raise ValueError(f"a {type(part).__name__} where an array was expected")


def _tensor(tensor: PickledTensor, content: bytes) -> NDArray[Any]:
    elements = np.frombuffer(content, _held_as(tensor.number_type))
    if len(tensor.shape) != len(tensor.strides):
        raise ValueError("a tensor's shape and strides differ in length")
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if 0 in tensor.shape:
        elements = elements[:0].reshape(tensor.shape)
    elif not 0 <= tensor.offset <= last < len(elements) or math.prod(tensor.shape) > len(elements):
        # The second: strides of 0 make a small file a huge array.
        raise ValueError(f"a tensor of {list(tensor.shape)} in a storage of {len(elements)} elements")
    else:
        strides = [stride * elements.itemsize for stride in tensor.strides]
        elements = np.lib.stride_tricks.as_strided(elements[tensor.offset :], tensor.shape, strides, writeable=False)
    if tensor.number_type == "bf16":
        return (elements.astype("<u4") << np.uint32(16)).view(np.float32)
    return elements


def _held_as(number_type: str) -> str:
    return "<u2" if number_type == "bf16" else number_type


def _pickle(arrays: Sequence[NDArray[Any]]) -> bytes:
    return b"\x80\x02](" + b"".join(map(_pickled_array, arrays)) + b"e."


def _pickled_array(array: NDArray[Any]) -> bytes:
    array = np.ascontiguousarray(array)
    order = b"|" if array.dtype.itemsize == 1 else b"<"
    content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    code = f"{array.dtype.kind}{array.dtype.itemsize}"
    shape = b"(" + b"".join(b"J" + struct.pack("<i", size) for size in array.shape) + b"t"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _pickled_bytes(b"b") + b"\x87R"
        b"(K\x01" + shape + b"cnumpy\ndtype\n" + _pickled_text(code) + b"\x89\x88\x87R"
        b"(K\x03" + _pickled_text(order.decode()) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89" + _pickled_bytes(content) + b"tb"
    )


def _pickled_bytes(content: bytes) -> bytes:
    """Protocol 2 has no bytes: a Latin-1 string and the call that turns it into bytes."""
    return b"c_codecs\nencode\n" + _pickled_text(content.decode("latin-1")) + _pickled_text("latin1") + b"\x86R"


def _pickled_text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded
