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
from teacherfarm.protos.faults import TeacherFarmFault, from_code
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
        self.job = job
        self.labelling: Labelling | None = None

    def __call__(self, block: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
        """Label the samples of a block; committed when it returns. A fault is an answer: Ray would bury it."""
        came, code, message = 0, 0, ""
        try:
            # Not in the constructor: of a fault there, Ray tells no more than that an actor died.
            self.labelling = self.labelling or Labelling(self.job)
            came = self.labelling.label(self.labelling.todo(block["data"]), workers=0, progress=lambda more: None)
        except TeacherFarmFault as fault:
            code, message = fault.code, str(fault)
        return {"labels": np.array([came]), "code": np.array([code]), "message": np.array([message])}


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
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--engine ray needs Ray Data ({error}): pip install 'teacherfarm[ray]', on every node of the cluster"
        ) from error

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
            if failed := np.flatnonzero(block["code"]).tolist():
                raise from_code(int(block["code"][failed[0]]), str(block["message"][failed[0]]))
            if stop():
                break
        return came
    finally:
        ray.shutdown()
