"""What a pickle of arrays may name, and what stands for it here: values of our own, never the thing that is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bf16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
_TORCH_TYPES = {"uint16": "<u2", "uint32": "<u4", "uint64": "<u8"}


@dataclass(frozen=True)
class Global:
    """What stands in for a class or function that a pickle may name."""

    kind: str
    detail: str = ""


ALLOWED = {
    ("_codecs", "encode"): Global("encode"),
    ("__builtin__", "bytes"): Global("bytes"),
    ("builtins", "bytes"): Global("bytes"),
    ("collections", "OrderedDict"): Global("hooks"),
    ("numpy", "ndarray"): Global("ndarray"),
    ("numpy", "dtype"): Global("dtype"),
    ("numpy.core.multiarray", "_reconstruct"): Global("array"),
    ("numpy._core.multiarray", "_reconstruct"): Global("array"),
    ("numpy.core.numeric", "_frombuffer"): Global("buffer"),
    ("numpy._core.numeric", "_frombuffer"): Global("buffer"),
    ("torch._utils", "_rebuild_tensor_v2"): Global("tensor"),
    ("torch._utils", "_rebuild_tensor_v3"): Global("tensor"),
    ("torch.storage", "UntypedStorage"): Global("storage"),
    **{("torch", name): Global("storage", number_type) for name, number_type in _STORAGES.items()},
    **{("torch", name): Global("torch type", number_type) for name, number_type in _TORCH_TYPES.items()},
}


@dataclass
class NumberType:
    """A numpy number type; its byte order is told after it was made and remembered, so it changes in place."""

    code: str
    big_endian: bool = False

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.code).newbyteorder(">" if self.big_endian else "<")


@dataclass
class PickledArray:
    """A numpy array; ``array`` is read-only and None until the pickle has told its content."""

    array: NDArray[Any] | None = None


@dataclass(frozen=True)
class PickledStorage:
    """Bytes that lie beside the pickle; ``number_type`` is empty where the tensor has it."""

    key: str
    number_type: str
    num_elements: int


@dataclass(frozen=True)
class PickledTensor:
    """A torch tensor: which elements of a storage it shows. ``number_type``: numpy's name, or "bf16"."""

    storage: PickledStorage
    number_type: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
