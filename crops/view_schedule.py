"""Which views of a sample are used at which visit, m of them per visit. Knows nothing of boxes or labels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from teacherfarm.crops.counter_random import VIEW_DRAWS, check_seed, random_words

Order = Literal["fresh", "cycle", "permute"]

FEW_VIEWS = 50
"""Replaying fewer views than this costs accuracy: labels of 100 crops an image still train as well as 500 (FKD)."""


@dataclass(frozen=True, kw_only=True)
class ViewSchedule:
    """``per_visit`` views for each visit to a sample; one pass over the data therefore counts ``per_visit`` epochs.

    A visit is a pass over the data, counted from 0 in units of this schedule's ``per_visit``.

    ``order``: "fresh" never repeats a view (``views`` must be None); "cycle" goes through ``views`` in turn; "permute"
    draws ``per_visit`` of ``views`` without replacement at each visit, independently of other visits and samples (FKD,
    arXiv 2112.01528). ``seed`` acts on "permute" alone.
    """

    views: int | None = None
    order: Order = "fresh"
    per_visit: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.order not in ("fresh", "cycle", "permute"):
            raise ValueError(f"a view schedule's order is 'fresh', 'cycle' or 'permute', got {self.order!r}")
        if self.per_visit < 1:
            raise ValueError(f"per_visit is at least 1, got {self.per_visit}")
        if self.order == "fresh" and self.views is not None:
            raise ValueError(
                f"order 'fresh' never repeats a view, so views={self.views} has no effect: leave it out, or use "
                "order='cycle' or 'permute'"
            )
        if self.order != "fresh" and self.views is None:
            raise ValueError(f"order {self.order!r} needs the number of views, for example views=200")
        if self.views is not None and not self.per_visit <= self.views < 2**32:
            raise ValueError(f"views lies in per_visit..2**32 - 1, got {self.views} with per_visit={self.per_visit}")
        if self.order != "permute" and self.seed:
            raise ValueError(f"order {self.order!r} draws nothing, so seed={self.seed} has no effect: leave it out")

    @property
    def replays(self) -> bool:
        """Whether a view can come twice, which methods that need fresh views (FunMatch) refuse."""
        return self.order != "fresh"

    @property
    def epochs_per_pass(self) -> int:
        """How many epochs one pass over the data counts."""
        return self.per_visit

    def views_at(self, samples: ArrayLike, visits: ArrayLike) -> NDArray[np.int64]:
        """Views [..., per_visit] of sample numbers (unsigned 64-bit) at their visits, broadcast."""
        sample, visit = np.broadcast_arrays(np.asarray(samples, np.uint64), np.asarray(visits, np.int64))
        if visit.size and visit.min() < 0:
            raise ValueError(f"visits are counted from 0, got {visit.min()}")
        if self.views is None or self.order == "cycle":
            views = visit[..., None] * self.per_visit + np.arange(self.per_visit)
            if self.views is None:
                if views.size and views.max() >= 2**32:
                    raise ValueError(f"view {views.max()} does not fit into 32 bits")
                return np.asarray(views, np.int64)
            return np.asarray(views % self.views, np.int64)
        return self._permuted(sample, visit, self.views)

    def single(self) -> ViewSchedule:
        """The same views one by one, for the last ``per_visit`` epochs of a run.

        Visit v of this schedule and visits v * per_visit .. of the single one cover the same epochs, so "fresh" and
        "cycle" go on where the passes ended when visits go on counting in epochs.
        """
        return ViewSchedule(views=self.views, order=self.order, per_visit=1, seed=self.seed)

    def warn_if_few(self) -> None:
        """Warn when fewer than 50 views are replayed, with the reason."""
        if self.views is not None and self.views < FEW_VIEWS:
            warnings.warn(
                f"{self.views} views per sample are replayed again and again: the student sees few crops and overfits "
                f"to them. Use at least {FEW_VIEWS} (FKD's results are for 500, and hold for 100), or order='fresh'",
                UserWarning,
                stacklevel=3,
            )

    def to_dict(self) -> dict[str, object]:
        """For manifests and checkpoints: plain JSON values that :meth:`from_dict` reads back to an equal schedule."""
        return {"views": self.views, "order": self.order, "per_visit": self.per_visit, "seed": self.seed}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> ViewSchedule:
        """Raises ValueError naming what is missing, unknown or of the wrong type."""
        expected = ("views", "order", "per_visit", "seed")
        if sorted(values) != sorted(expected):
            raise ValueError(f"a view schedule has the fields {', '.join(expected)}; got {', '.join(values)}")
        views, order, per_visit, seed = (values[name] for name in expected)
        numbers = {"per_visit": per_visit, "seed": seed} | ({} if views is None else {"views": views})
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"a view schedule's {name} is a whole number, got {value!r}")
        return cls(views=views, order=order, per_visit=per_visit, seed=seed)  # type: ignore[arg-type]

    def _permuted(self, sample: NDArray[np.uint64], visit: NDArray[np.int64], num_views: int) -> NDArray[np.int64]:
        # Draw j picks the r-th of the views that are still left, which is r plus how many chosen ones lie below it:
        # the start of a random permutation without holding all of it.
        draws = np.arange(-(-self.per_visit // 4), dtype=np.uint64) + np.uint64(VIEW_DRAWS)
        words = np.moveaxis(random_words(self.seed, sample[..., None], visit[..., None], draws), 0, -1)
        words = words.reshape(*sample.shape, -1)
        chosen = np.empty((*sample.shape, self.per_visit), np.int64)
        for turn in range(self.per_visit):
            left = np.uint64(num_views - turn)
            view = ((words[..., turn] * left) >> np.uint64(32)).astype(np.int64)
            earlier = np.sort(chosen[..., :turn], axis=-1)
            for place in range(turn):
                view += view >= earlier[..., place]
            chosen[..., turn] = view
        return chosen
