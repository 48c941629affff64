"""Which recorded sample is which of a data set's: by name and hash, whatever container or order the images lie in."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.sample_index import SampleIndex

_NAMED = 5

log = logging.getLogger(__name__)


def match_samples(recorded: SampleIndex, samples: SampleIndex) -> NDArray[np.int64]:
    """The row in ``recorded`` of each of ``samples``, -1 where none can serve, of which a warning names the first few.

    Unlike ``SampleIndex.find``, which refuses all when one differs.
    """
    rows = _look_up(recorded.names, samples.names)
    named = rows >= 0
    ours, theirs = _hashes(recorded), _hashes(samples)
    differs = np.zeros(len(rows), np.bool_)
    differs[named] = ours[rows[named]] != theirs[named]
    unnamed = np.flatnonzero(~named)
    rows[unnamed] = _look_up(ours, theirs[unnamed])
    rows[differs] = -1
    _tell(samples, np.flatnonzero(differs), "are other images than those that were recorded under their names")
    _tell(samples, np.flatnonzero((rows < 0) & ~differs), "were never recorded, under any name")
    return rows


def _look_up(known: NDArray[np.bytes_], wanted: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Where each value of ``wanted`` is in ``known``; -1 where it is not."""
    order = np.argsort(known, kind="stable")
    places = np.searchsorted(known, wanted, sorter=order)
    places[places == len(known)] = 0
    rows: NDArray[np.int64] = order[places] if len(known) else np.full(len(wanted), -1)
    if len(known):
        rows[known[rows] != wanted] = -1
    return rows


def _hashes(index: SampleIndex) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(index.hashes).view("S16").reshape(-1)


def _tell(samples: SampleIndex, rows: NDArray[np.int64], what: str) -> None:
    if len(rows):
        names = ", ".join(repr(samples.name(int(row))) for row in rows[:_NAMED])
        more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        log.warning("samples %s%s %s: their labels are not replayed", names, more, what)
