"""Reads pickles of numpy arrays and torch tensors, and can make nothing else: no class and no function that a pickle
names is ever looked up, so none can run.

A small machine of its own for the instructions that such pickles consist of, bounded in instructions, bytes and
nesting. Knows nothing of files; :mod:`teacherfarm.label_store.torch_files` knows what torch wraps around a pickle.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from teacherfarm.label_store.pickle_values import (
    ALLOWED,
    Global,
    NumberType,
    PickledArray,
    PickledStorage,
    PickledTensor,
)
from teacherfarm.protos.faults import BadLabelFile, UnsafeLabelFile

MAX_INSTRUCTIONS = 20_000
"""FKD's files of labels have about a hundred."""

MAX_AXES = 8

_ELEMENT = re.compile(r"[<>=|]?(f[248]|[iu][1248]|b1)")
_MARK = object()
_HOOKS = object()


def read_pickle(data: bytes, start: int, name: str, *, most: int = MAX_INSTRUCTIONS) -> tuple[object, int]:
    """The value of the pickle that begins at ``start``, and where it ends; ``name`` is used in faults.

    Values are numbers, strings, bytes, lists, tuples, dicts, :class:`PickledArray`, :class:`PickledTensor`; a string
    that Python 2 wrote is bytes. ``most``: instructions.
    Raises UnsafeLabelFile for anything else that a pickle asks for, BadLabelFile for one that is damaged.
    """
    machine = _Machine(data, start, name, most)
    try:
        return machine.run(), machine.position
    except BadLabelFile:
        raise
    except Exception as error:
        raise BadLabelFile(
            f"{name} is damaged at byte {machine.position} ({type(error).__name__}: {error}): "
            "copy it again from where it came"
        ) from error


class _Machine:
    def __init__(self, data: bytes, start: int, name: str, most: int) -> None:
        self.data = data
        self.position = start
        self.name = name
        self.most = most
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        # Each byte of a file becomes one byte of content at most: whoever encodes a string twice uses it up.
        self.bytes_left = len(data) - start

    def run(self) -> object:
        for _ in range(self.most):
            code = self.data[self.position]
            self.position += 1
            if code == 0x2E:  # STOP
                (value,) = self.stack
                return value
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                self.refuse(f"uses the pickle instruction {bytes([code])!r}, which files of arrays have no use for")
            instruction(self)
        return self.refuse(f"has more than {self.most} pickle instructions")

    def refuse(self, what: str) -> NoReturn:
        raise UnsafeLabelFile(
            f"{self.name} {what}. Such a file holds arrays and numbers only, so this one is not read; it may have "
            "been made to run a program on your machine: ask whoever gave it to you"
        )

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.position:
            raise ValueError(f"{count} bytes announced, {len(self.data) - self.position} left")
        taken = self.data[self.position : self.position + count]
        self.position += count
        return taken

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        end = self.data.index(b"\n", self.position)
        line = self.take(end - self.position).decode()
        self.position += 1
        return line

    def above_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                above = self.stack[place + 1 :]
                del self.stack[place:]
                return above
        raise ValueError("no mark")

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("stack underflow")
        self.stack[len(self.stack) - count :] = [tuple(self.stack[len(self.stack) - count :])]

    def find(self, module: object, name: object) -> None:
        # Only strings: the text of nested lists can be endless.
        if not isinstance(module, str) or not isinstance(name, str):
            self.refuse("asks for something without a name")
        known = ALLOWED.get((module, name))
        if known is None:
            self.refuse(f"asks for {module}.{name}")
        self.stack.append(known)

    def reduce(self) -> None:
        arguments = self.stack.pop()
        made_by = self.stack.pop()
        if not isinstance(made_by, Global) or not isinstance(arguments, tuple):
            self.refuse(f"calls a {type(made_by).__name__}")
        match made_by.kind, arguments:
            case "encode", (str(text), "latin1" | "latin-1"):
                self.bytes_left -= len(text)
                if self.bytes_left < 0:
                    self.refuse("grows when it is read")
                self.stack.append(text.encode("latin-1"))
            case "bytes", ():
                self.stack.append(b"")
            case "hooks", ():
                self.stack.append(_HOOKS)
            case "array", (Global("ndarray"), (0,), b"b"):
                self.stack.append(PickledArray())
            case "dtype", (bytes(code), *rest):
                self.stack += [made_by, (_text(code), *rest)]
                self.reduce()
            case "dtype", (str(code), int(), int()) if _ELEMENT.fullmatch(code):
                self.stack.append(NumberType(code[-2:], code[0] == ">"))
            case "dtype", (str(code), *_):
                self.refuse(f"holds an array of type {code[:40]!r}, not of numbers")
            case "buffer", (bytes(content), NumberType() as number_type, tuple(shape), "C" | "F" as order):
                self.stack.append(PickledArray(_array(content, number_type, shape, order == "F")))
            case "tensor", (PickledStorage() as storage, int(offset), tuple(shape), tuple(strides), bool(), _, *rest):
                own = [part.detail for part in rest if isinstance(part, Global) and part.kind == "torch type"]
                element = own[0] if own else storage.number_type
                self.stack.append(PickledTensor(storage, element, offset, _whole(shape), _whole(strides)))
            case _:
                self.refuse(f"calls {made_by.kind} with unusual arguments")

    def build(self) -> None:
        state = self.stack.pop()
        match self.stack[-1], state:
            case NumberType() as number_type, (int(), str() | bytes() as order, None, None, None, *_) if order in (
                "<",
                ">",
                "|",
                "=",
                b"<",
                b">",
                b"|",
                b"=",
            ):
                number_type.big_endian = order in (">", b">")
            case PickledArray(array=None) as whole, (1, tuple(shape), NumberType() as kind, bool(fortran), bytes(raw)):
                whole.array = _array(raw, kind, shape, fortran)
            case thing, _:
                self.refuse(f"sets the state of a {type(thing).__name__}")

    def persistent(self) -> None:
        match self.stack.pop():
            case ("storage", Global("storage", number_type), str(key), str(), int(num_elements), *rest) if rest in (
                [],
                [None],
            ):
                self.stack.append(PickledStorage(key, number_type, num_elements))
            case other:
                self.refuse(f"refers to a {type(other).__name__} outside of itself")

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2:
            self.refuse(f"sets items of a {type(target).__name__}")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Hashing nested tuples can take for ever.
            if not isinstance(key, (str, bytes, int)):
                self.refuse(f"has a {type(key).__name__} as a key")
            target[key] = value

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            self.refuse(f"appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(values)


def _whole(numbers: tuple[object, ...]) -> tuple[int, ...]:
    if len(numbers) > MAX_AXES or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a shape of something else than whole numbers")
    return cast("tuple[int, ...]", numbers)


def _array(content: bytes, number_type: NumberType, shape: tuple[object, ...], fortran: bool) -> NDArray[Any]:
    """An array over ``content``, not a copy; ValueError where shape and content do not fit."""
    return np.frombuffer(content, number_type.dtype()).reshape(_whole(shape), order="F" if fortran else "C")


def _push(make: Callable[[_Machine], object]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(make(machine))


def _number(layout: str) -> Callable[[_Machine], None]:
    size = struct.calcsize(layout)
    return _push(lambda machine: struct.unpack(layout, machine.take(size))[0])


def _counted(size: int, convert: Callable[[bytes], object]) -> Callable[[_Machine], None]:
    return _push(lambda machine: convert(machine.take(machine.unsigned(size))))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _whole_number(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _put(size: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.memo.__setitem__(machine.unsigned(size), machine.stack[-1])


def _get(size: int) -> Callable[[_Machine], None]:
    return _push(lambda machine: machine.memo[machine.unsigned(size)])


_INSTRUCTIONS: dict[int, Callable[[_Machine], Any]] = {
    0x80: lambda machine: machine.take(1),  # PROTO
    0x95: lambda machine: machine.take(8),  # FRAME
    0x28: _push(lambda _: _MARK),
    0x30: lambda machine: machine.stack.pop(),
    0x4E: _push(lambda _: None),
    0x88: _push(lambda _: True),
    0x89: _push(lambda _: False),
    0x4A: _number("<i"),
    0x4B: _number("<B"),
    0x4D: _number("<H"),
    0x47: _number(">d"),
    0x8A: _counted(1, _whole_number),  # LONG1
    0x58: _counted(4, _text),
    0x8C: _counted(1, _text),
    0x8D: _counted(8, _text),
    0x54: _counted(4, bytes),  # BINSTRING
    0x55: _counted(1, bytes),
    0x42: _counted(4, bytes),
    0x43: _counted(1, bytes),
    0x8E: _counted(8, bytes),
    0x96: _counted(8, bytes),  # BYTEARRAY8
    0x29: _push(lambda _: ()),
    0x85: lambda machine: machine.tuple_of(1),
    0x86: lambda machine: machine.tuple_of(2),
    0x87: lambda machine: machine.tuple_of(3),
    0x74: _push(lambda machine: tuple(machine.above_mark())),
    0x5D: _push(lambda _: []),
    0x61: lambda machine: machine.extend([machine.stack.pop()]),
    0x65: lambda machine: machine.extend(machine.above_mark()),
    0x7D: _push(lambda _: {}),
    0x73: lambda machine: machine.set_items([*reversed([machine.stack.pop(), machine.stack.pop()])]),
    0x75: lambda machine: machine.set_items(machine.above_mark()),
    0x71: _put(1),
    0x72: _put(4),
    0x68: _get(1),
    0x6A: _get(4),
    0x94: lambda machine: machine.memo.__setitem__(len(machine.memo), machine.stack[-1]),
    0x63: lambda machine: machine.find(machine.line(), machine.line()),  # GLOBAL
    0x69: lambda machine: machine.refuse(f"asks for {machine.line()}.{machine.line()}"),  # INST
    0x93: lambda machine: machine.find(*reversed([machine.stack.pop(), machine.stack.pop()])),
    0x52: lambda machine: machine.reduce(),
    0x62: lambda machine: machine.build(),
    0x51: lambda machine: machine.persistent(),
}
