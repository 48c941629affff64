"""Runs a teacher with ONNX Runtime in this process. The only module that imports onnxruntime.

On a CPU one session is called by as many threads as there are cores, each computing with one thread: that beats one
call on all cores (439 against 369 crops/s, EfficientNet-Lite0 on two cores). On a GPU two threads keep the device fed,
and teacher batches are padded to a ladder of sizes that was warmed before ready.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.faults import DamagedArtifact
from teacherfarm.protos.teacher_card import CROPS_INPUT, TeacherCard
from teacherfarm.teacher_server.backends.backend import GraphOutputs

if TYPE_CHECKING:
    import onnxruntime

PREFERRED_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
CPU_LARGEST_BATCH = 64
GPU_LARGEST_BATCH = 64
CPU_BATCH_BYTES = 1 << 20
CPU_CALL_BYTES = 160 << 10
"""Pixels in one call on a CPU, one crop of 224 px: smaller activations stay in a core's cache.

EfficientNet-Lite0, two calls side by side: 252, 244, 239, 230, 222 crops/s in calls of 1, 2, 4, 6, 8 crops.
"""
GPU_CALLS = 2


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def cpu_largest_batch(crop_bytes: int) -> int:
    """Teacher batch on a CPU, 6 crops of 224 px: whoever waits for a core waits for a small one."""
    return max(1, min(CPU_LARGEST_BATCH, CPU_BATCH_BYTES // crop_bytes))


def size_ladder(largest_batch: int) -> tuple[int, ...]:
    """Powers of two up to the largest batch, and the largest batch itself."""
    sizes = [1 << power for power in range(largest_batch.bit_length()) if 1 << power < largest_batch]
    return (*sizes, largest_batch)


class OnnxBackend:
    """A teacher in ONNX Runtime. ``threads``: calls side by side on a CPU (default: one per core)."""

    def __init__(
        self,
        card: TeacherCard,
        model_file: Path,
        *,
        threads: int | None = None,
        largest_batch: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        self._card = card
        self._model_file = model_file
        self._threads = threads
        self._largest_batch = largest_batch
        self._wanted_providers = providers
        self._providers: tuple[str, ...] = ()
        self._session: onnxruntime.InferenceSession | None = None
        self._workers: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"<OnnxBackend {self._card.name} {self.provider_class} slots={self.slots} batch<={self.largest_batch}>"

    @property
    def on_gpu(self) -> bool:
        return bool(self._providers) and self._providers[0] != "CPUExecutionProvider"

    @property
    def calls(self) -> int:
        """How many threads call the session side by side."""
        return self._threads or (GPU_CALLS if self.on_gpu else available_cores())

    @property
    def slots(self) -> int:
        # One more than run, so that a thread that finishes finds its next teacher batch without asking the event loop.
        return self.calls + 1

    @property
    def largest_batch(self) -> int:
        if self._largest_batch is not None:
            return self._largest_batch
        return GPU_LARGEST_BATCH if self.on_gpu else cpu_largest_batch(self._card.crop_format.crop_bytes)

    @property
    def provider_class(self) -> str:
        return self._providers[0].removesuffix("ExecutionProvider").lower() if self._providers else "unknown"

    async def start(self) -> None:
        self._workers = ThreadPoolExecutor(thread_name_prefix=f"teacher-{self._card.name}")
        await asyncio.get_running_loop().run_in_executor(self._workers, self._load)
        self._workers.shutdown()
        self._workers = ThreadPoolExecutor(self.calls, thread_name_prefix=f"teacher-{self._card.name}")

    async def run(self, pixels: NDArray[Any], outputs: Sequence[str]) -> GraphOutputs:
        assert self._workers is not None, "start() was not awaited"
        return await asyncio.get_running_loop().run_in_executor(self._workers, self.compute, pixels, outputs)

    async def run_alone(self, pixels: NDArray[Any], outputs: Sequence[str]) -> GraphOutputs:
        return await self.run(pixels, outputs)

    async def close(self) -> None:
        workers, self._workers = self._workers, None
        if workers is not None:
            await asyncio.get_running_loop().run_in_executor(None, workers.shutdown)
        self._session = None

    def compute(self, pixels: NDArray[Any], outputs: Sequence[str]) -> GraphOutputs:
        """The same as :meth:`run`, in the calling thread."""
        assert self._session is not None, "the model is not loaded"
        num_crops, names = len(pixels), list(outputs)
        if self.on_gpu:
            values = self._session.run(names, {CROPS_INPUT: self._padded(pixels)})
            return {name: value[:num_crops] for name, value in zip(names, values, strict=True)}
        step = self._crops_in_call
        parts = [self._session.run(names, {CROPS_INPUT: pixels[i : i + step]}) for i in range(0, num_crops, step)]
        if len(parts) == 1:
            return dict(zip(names, parts[0], strict=True))
        return {name: np.concatenate(values) for name, *values in zip(names, *parts, strict=True)}

    @property
    def _crops_in_call(self) -> int:
        """On a CPU; a largest batch that was asked for is kept to."""
        return self._largest_batch or max(1, CPU_CALL_BYTES // self._card.crop_format.crop_bytes)

    def _load(self) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        available = onnxruntime.get_available_providers()
        wanted = self._wanted_providers or [name for name in PREFERRED_PROVIDERS if name in available]
        if missing := [name for name in wanted if name not in available]:
            raise DamagedArtifact(
                f"this ONNX Runtime has no {', '.join(missing)}; it has {', '.join(available)}. "
                "For a GPU: pip install teacherfarm[gpu] in an environment without plain onnxruntime"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.graph_optimization_level = {
            "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
            "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
            "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
            "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        }[self._card.optimisation_level]
        try:
            self._session = onnxruntime.InferenceSession(str(self._model_file), options, providers=list(wanted))
        except Exception as error:
            # onnxruntime raises pybind types without a common public base class.
            raise DamagedArtifact(
                f"ONNX Runtime cannot load {self._model_file.name} ({error}): export it again"
            ) from error
        self._providers = tuple(self._session.get_providers())
        names = {output.name for output in self._session.get_outputs()}
        if absent := [name for name in self._card.graph_outputs if name not in names]:
            raise DamagedArtifact(f"{self._model_file.name} lacks outputs the card names: {', '.join(absent)}")
        self._warm_up()

    def _warm_up(self) -> None:
        sizes = size_ladder(self.largest_batch) if self.on_gpu else (self._crops_in_call,)
        crop = np.zeros((1, *self._card.crop_format.shape), self._card.crop_format.number_type)
        for size in sizes:
            self.compute(np.repeat(crop, size, axis=0), self._card.graph_outputs)

    def _padded(self, pixels: NDArray[Any]) -> NDArray[Any]:
        size = next(size for size in size_ladder(self.largest_batch) if size >= len(pixels))
        if size == len(pixels):
            return pixels
        padded = np.zeros((size, *pixels.shape[1:]), pixels.dtype)
        padded[: len(pixels)] = pixels
        return padded
