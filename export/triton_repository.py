"""One teacher's entry of a Triton model repository: its files, its config.pbtxt, written whole or not at all.

Knows Triton's layout and text format; nothing of PyTorch.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.teacher_card import (
    CARD_FILE,
    CARD_PARAMETER,
    CROPS_INPUT,
    GOLDEN_FILE,
    LOG_PROBABILITIES,
    LOGITS,
    TeacherCard,
)

TritonBackend = Literal["onnxruntime", "python", "tensorrt"]

CONFIG_FILE = "config.pbtxt"
VERSION_FOLDER = "1"

_TYPES = {"uint8": "UINT8", "uint16": "UINT16", "float32": "FP32", "float16": "FP16"}


class EntryExists(FileExistsError):
    """There is an entry of this name, and it must stay."""


def check_name(name: str) -> str:
    """A teacher's name is a folder's name and a model's name in Triton."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
        raise ValueError(
            f"a teacher's name has letters, digits, '.', '_' and '-' and starts with a letter or digit, got {name!r}"
        )
    return name


def config_pbtxt(card: TeacherCard, backend: TritonBackend, max_batch: int) -> str:
    """Triton's description of the entry.

    Batches come formed from the lanes, so the queue adds no delay. The version is explicit so that a second version
    folder never changes what is served, and the digests let a pool refuse another teacher of the same name. The card
    is there for students that ask Triton without a gateway.
    """
    outputs = []
    shape: tuple[int, ...]
    for name in card.graph_outputs:
        if name in (LOG_PROBABILITIES, LOGITS):
            kind, shape = "float16" if name == LOG_PROBABILITIES else "float32", (card.num_classes,)
        else:
            kind, shape = card.feature(name).number_type, card.feature(name).shape
        outputs.append(_tensor(name, _TYPES[kind], shape))
    parameters = {
        "teacher_digest": card.teacher_digest,
        "artifact_digest": card.artifact_digest,
        "precision": card.precision,
        "teacherfarm": card.exported_by,
        # In ASCII: what JSON escapes is then what protobuf's text format escapes, quotes and backslashes.
        CARD_PARAMETER: json.dumps(json.loads(card.to_json()), separators=(",", ":")),
    }
    lines = [
        f"name: {json.dumps(card.name)}",
        f"backend: {json.dumps(backend)}",
        f"max_batch_size: {max_batch}",
        f"input [\n{_tensor(CROPS_INPUT, _TYPES[card.crop_format.number_type], card.crop_format.shape)}\n]",
        "output [\n" + ",\n".join(outputs) + "\n]",
        "dynamic_batching { max_queue_delay_microseconds: 0 }",
        "version_policy { specific { versions: [ 1 ] } }",
        f"instance_group [ {{ count: 1 kind: {'KIND_CPU' if backend == 'python' else 'KIND_AUTO'} }} ]",
        *(
            f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
            for key, value in parameters.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _tensor(name: str, data_type: str, shape: tuple[int, ...]) -> str:
    return f"  {{ name: {json.dumps(name)} data_type: TYPE_{data_type} dims: [ {', '.join(map(str, shape))} ] }}"


def write_entry(
    folder: Path,
    card: TeacherCard,
    *,
    backend: TritonBackend,
    max_batch: int,
    model: bytes,
    golden: Mapping[str, NDArray[Any]],
    side_files: Mapping[str, bytes],
) -> None:
    """All files of the entry into an existing folder. ``side_files``: further files by path inside it."""
    version = folder / VERSION_FOLDER
    version.mkdir()
    (version / Path(card.model_file).name).write_bytes(model)
    if backend == "python":
        shutil.copyfile(Path(__file__).with_name("triton_python_model.py"), version / "model.py")
    for name, content in side_files.items():
        (folder / name).write_bytes(content)
    with open(folder / GOLDEN_FILE, "wb") as file:
        arrays: dict[str, Any] = dict(golden)
        np.savez_compressed(file, **arrays)
    (folder / CONFIG_FILE).write_text(config_pbtxt(card, backend, max_batch))
    (folder / CARD_FILE).write_text(card.to_json())


@contextmanager
def atomic_entry(out: Path, name: str, *, force: bool) -> Iterator[Path]:
    """A folder to build the entry in, which becomes ``out/name`` in one rename when the block ends well.

    Until then it lies beside it under a hidden name, which no server reads; on an error it is removed. Raises
    EntryExists when the entry exists and ``force`` is not set.
    """
    final = out / check_name(name)
    refuse_existing(out, name, force=force)
    out.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out, name)
    building = out / f".{name}.partial-{os.getpid()}"
    building.mkdir()
    try:
        yield building
        for path in sorted(building.rglob("*"), reverse=True):
            _sync(path)
        _sync(building)
        if final.exists():
            refuse_existing(out, name, force=force)
            old = out / f".{name}.replaced-{os.getpid()}"
            final.rename(old)
            building.rename(final)
            shutil.rmtree(old)
        else:
            building.rename(final)
        _sync(out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def refuse_existing(out: Path, name: str, *, force: bool) -> None:
    """EntryExists when there is an entry of this name and it must stay."""
    if (out / name).exists() and not force:
        raise EntryExists(f"{out / name} exists already: choose another --name or --out, or replace it with --force")


def _remove_leftovers(out: Path, name: str) -> None:
    """What killed exports of this name left behind; those of living processes stay."""
    pattern = re.compile(rf"\.{re.escape(name)}\.(partial|replaced)-(\d+)")
    for path in out.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not _is_alive(int(match[2])):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return process != os.getpid()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        with contextlib.suppress(OSError):
            os.close(handle)
