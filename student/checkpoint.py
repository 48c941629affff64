"""Checkpoints of a training run: written whole or not at all, read without pickled code, resumed to the bit.

One file holds the run; every further rank of a distributed run adds one with its own random and loader states.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from teacherfarm.protos.faults import DigestMismatch

CHECKPOINT_VERSION = 1


class HasState(Protocol):
    """A module, optimiser, scheduler, gradient scaler, averaged model, LabelledLoader, ..."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a checkpoint holds.

    ``parts``: everything with a state, by name ("model", "optimizer", "scheduler", "scaler", "ema", ...); bare modules,
    not DDP wrappers. ``loader``: its state is each rank's own. ``teachers``: teacher digests by name. ``settings``:
    what must be equal to go on (crop plan, view schedule, batch size ...), as plain values.
    """

    parts: Mapping[str, HasState]
    loader: HasState | None = None
    teachers: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, run: Run, *, step: int, progress: Mapping[str, Any], keep: int = 3) -> Path:
    """Write ``folder/step-<step>.pt`` and remove all but the newest ``keep``; every rank calls it at the same step.

    ``progress``: plain values that :func:`load_checkpoint` gives back (epoch, best accuracy ...).
    """
    if keep < 1:
        raise ValueError(f"keep is at least 1, got {keep}")
    folder.mkdir(parents=True, exist_ok=True)
    rank, num_ranks = _ranks()
    path = folder / f"step-{step:09d}.pt"
    own = {"rng": _random_state(), "loader": run.loader.state_dict() if run.loader is not None else None}
    if rank:
        _write(_rank_file(path, rank), own)
    if num_ranks > 1:
        # The run's own file is what makes a checkpoint: it comes after all others.
        torch.distributed.barrier()
    if rank == 0:
        content = {
            "version": CHECKPOINT_VERSION,
            "step": step,
            "progress": dict(progress),
            "parts": {name: part.state_dict() for name, part in run.parts.items()},
            "teachers": dict(run.teachers),
            "settings": dict(run.settings),
            "num_ranks": num_ranks,
            **own,
        }
        _write(path, content)
        for old in list_checkpoints(folder)[:-keep]:
            for file in [old, *folder.glob(f"{old.stem}.rank*.pt")]:
                file.unlink(missing_ok=True)
    return path


def load_checkpoint(path: Path, run: Run) -> dict[str, Any]:
    """Put every part into the saved state, random generators last, and return the saved ``progress``.

    Raises DigestMismatch where a teacher is another one than before (naming both), ValueError where the file is no
    checkpoint or parts, settings or the number of ranks differ. Nothing was changed then.
    """
    content = _content(path)
    rank, num_ranks = _ranks()
    _refuse_other_run(path, content, run, num_ranks)
    own = _read(_rank_file(path, rank)) if rank else content
    for name, part in run.parts.items():
        part.load_state_dict(content["parts"][name])
    if run.loader is not None:
        run.loader.load_state_dict(own["loader"])
    _restore_random_state(own["rng"])
    return dict(content["progress"])


def read_progress(path: Path) -> dict[str, Any]:
    """The saved ``progress`` alone; changes nothing."""
    return dict(_content(path)["progress"])


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", path.name))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    found = list_checkpoints(folder)
    return found[-1] if found else None


def _content(path: Path) -> dict[str, Any]:
    content = _read(path)
    if not isinstance(content, dict) or content.get("version") != CHECKPOINT_VERSION:
        raise ValueError(f"{path} is not a checkpoint of this version of teacherfarm ({CHECKPOINT_VERSION})")
    return content


def _refuse_other_run(path: Path, content: dict[str, Any], run: Run, num_ranks: int) -> None:
    for name in sorted(content["teachers"].keys() | run.teachers.keys()):
        before, now = content["teachers"].get(name), run.teachers.get(name)
        if before != now:
            raise DigestMismatch(
                f"{path} was trained with teacher {name!r} of digest {before or 'none'}, this run has "
                f"{now or 'none'}: labels of two teachers would mix. Serve the first teacher again, or "
                "start a new run in another folder"
            )
    for name in sorted(content["settings"].keys() | run.settings.keys()):
        before, now = content["settings"].get(name), run.settings.get(name)
        if before != now:
            raise ValueError(
                f"{path} was saved with {name} = {before!r}, this run has {now!r}: use the former to go on"
            )
    if content["parts"].keys() != run.parts.keys():
        raise ValueError(f"{path} holds {sorted(content['parts'])}, this run has {sorted(run.parts)}")
    if content["num_ranks"] != num_ranks:
        raise ValueError(
            f"{path} was saved by {content['num_ranks']} processes, this run has {num_ranks}: each has its "
            "own samples, so start as many as before"
        )


def _ranks() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _rank_file(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.stem}.rank{rank}.pt")


def _write(path: Path, content: Any) -> None:
    """All of it on disk under its name, or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error


def _random_state() -> dict[str, Any]:
    kind, words, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(words).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_random_state(state: Mapping[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, numpy_words, *rest = state["numpy"]
    np.random.set_state((kind, numpy_words.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
