"""Spreads the labelling of a data set with Ray Data: every actor is a writer of one recording."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.label_store.sealing import seal
from teacherfarm.protos.faults import TeacherFarmFault
from teacherfarm.student.recipes.label_job import Job, Labelling, Progress
from teacherfarm.student.recipes.views_to_label import Todo

CROPS_PER_TASK = 1024
"""So much is done again at most when an actor is lost, and told at once when it is done."""

ENDING_S = 30.0

STORE_BYTES = 128 << 20
"""Of a cluster of our own: only sample numbers and counts pass through it."""


class Labeller:
    """What Ray runs, in processes of its own, on any machine that sees the data set and the recording's folder."""

    def __init__(self, job: Job) -> None:
        self.labelling = Labelling(job)

    def __call__(self, block: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        """Label the samples of a block; committed when it returns."""
        todo = self.labelling.todo(block["data"])
        came = self.labelling.label(todo, workers=0, progress=lambda more: None)
        return {"labels": np.array([came])}


def seal_when_ended(directory: str) -> None:
    """Seal once the actors, which Ray ends in its own time, have let go of their journals; else later."""
    end_s = time.monotonic() + ENDING_S
    while seal(directory, wait_for_writers=True).live and time.monotonic() < end_s:
        time.sleep(0.1)


def label_by_ray(
    job: Job, todo: Todo, *, actors: int, address: str | None, progress: Progress, stop: Callable[[], bool]
) -> int:
    """Label what is missing by so many actors; how many labels came.

    ``address``: of a running cluster; else RAY_ADDRESS; else one of this machine is started, and stopped at the end.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    own = address is None and not os.environ.get("RAY_ADDRESS")
    settings: dict[str, Any] = (
        {"num_cpus": actors, "object_store_memory": STORE_BYTES, "include_dashboard": False} if own else {}
    )
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=True, **settings)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        samples_per_task = max(1, CROPS_PER_TASK // job.views)
        blocks = max(1, min(-(-len(todo.samples) // samples_per_task), 200 * actors))
        done = ray.data.from_numpy(np.array_split(todo.samples, blocks)).map_batches(
            Labeller,
            fn_constructor_args=(job,),
            batch_size=samples_per_task,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
            udf_modifying_row_count=True,
        )
        came = 0
        for block in done.iter_batches(batch_size=None, batch_format="numpy"):
            more = int(block["labels"].sum())
            came += more
            progress(more)
            if stop():
                break
        return came
    except ray.exceptions.RayError as error:
        raise _our_fault(error) from error
    finally:
        ray.shutdown()


def _our_fault(error: BaseException) -> BaseException:
    """The fault that an actor raised, out of what Ray wraps it in; Ray's own error where there is none."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, TeacherFarmFault):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error
