"""The student of ``bench reference``, run in its own network namespace: one JSON line with the rates of its slices."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.interleave import RunSlice, interleave, plan_slices
from bench.scripted_farm import SIZE, TEACHER
from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.crops.cutting import cut, decode
from teacherfarm.crops.sample_index import index_dataset
from teacherfarm.crops.sample_readers import open_samples
from teacherfarm.protos.allocator import keep_large_buffers
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.references import CropReferences
from teacherfarm.protos.wire import Buffer
from teacherfarm.student.by_reference import ByReference
from teacherfarm.student.client import AsyncTeacherClient
from teacherfarm.student.settings import Address, Timeouts
from teacherfarm.student.transports.connect import open_transport
from teacherfarm.student.transports.transport import Transport

VIEWS = 4
BATCH_IMAGES = 4
BATCH_CROPS = VIEWS * BATCH_IMAGES
BATCHES_IN_FLIGHT = 8
NUM_PIXEL_BATCHES = 12
JPEG_SLICES = 8
SETTLE_S = 1.0
"""Before each slice, not counted: a window of raw crops takes as long on the link."""
RENDERING = Rendering(height=SIZE, width=SIZE)
PLAN = CropPlan(seed=1)


@dataclass
class Counter:
    """Bytes of headers and payloads that transports were given."""

    bytes_sent: int = 0

    def open(self, address: Address, timeouts: Timeouts, teacher: str) -> Transport:
        transport = open_transport(address, timeouts, teacher)
        send = transport.send

        def counted(header: bytes, payload: Buffer = b"") -> None:
            self.bytes_sent += len(header) + len(payload)
            send(header, payload)

        transport.send = counted  # type: ignore[method-assign]
        return transport


@dataclass
class Asking:
    """One way of asking: batches on and on, so many in flight."""

    teacher: AsyncTeacherClient
    batches: Iterator[Any]
    counter: Counter
    crops: int = field(default=0)

    async def run_slice(self, seconds: float) -> float:
        """Labels/s of some seconds, from one answer to another, after the window has filled."""
        loop = asyncio.get_running_loop()
        start_s = loop.time() + SETTLE_S
        end_s = start_s + seconds
        answered_s: list[float] = []

        async def ask() -> None:
            while loop.time() < end_s:
                labels = await self.teacher.label(next(self.batches))
                self.crops += len(labels)
                if start_s <= loop.time() < end_s:
                    answered_s.append(loop.time())

        await asyncio.gather(*(ask() for _ in range(BATCHES_IN_FLIGHT)))
        return BATCH_CROPS * (len(answered_s) - 1) / (answered_s[-1] - answered_s[0])


async def measure(address: str, folder: str, dataset: str, seconds: float) -> dict[str, Any]:
    """The rates of all slices by contestant, and bytes a crop."""
    index, reader = index_dataset(folder), open_samples(folder)
    numbers, contents = index.numbers(), index.prefixes()

    def references() -> Iterator[CropReferences]:
        """Four crops of each of a few images, crop by crop, never the same view twice."""
        for start in itertools.count(step=BATCH_IMAGES):
            rows = np.arange(start, start + BATCH_IMAGES) % len(index)
            first_view = VIEWS * (start // len(index))
            views = first_view + np.repeat(np.arange(VIEWS), BATCH_IMAGES)
            yield CropReferences.of_views(np.tile(numbers[rows], VIEWS), np.tile(contents[rows], VIEWS), views)

    def pixels() -> NDArray[np.uint8]:
        images = [decode(reader.read(row)) for row in range(BATCH_IMAGES)]
        boxes = [PLAN.boxes(numbers[row], np.arange(VIEWS), *image.shape[:2]) for row, image in enumerate(images)]
        return np.concatenate([cut(image, box, RENDERING) for image, box in zip(images, boxes, strict=True)])

    ready = [np.roll(pixels(), shift, axis=1) for shift in range(NUM_PIXEL_BATCHES)]
    by_reference = ByReference(dataset=dataset, rendering=RENDERING, plan=PLAN)
    async with contextlib.AsyncExitStack() as stack:

        async def asking(batches: Iterator[Any], **how: Any) -> Asking:
            counter = Counter()
            client = AsyncTeacherClient(address, TEACHER, open_transport=counter.open, **how)
            return Asking(await stack.enter_async_context(client), batches, counter)

        ways = {
            "by reference": await asking(references(), by_reference=by_reference),
            "raw pixels": await asking(itertools.cycle(ready)),
            "JPEG pixels": await asking(itertools.cycle(ready), codec="jpeg"),
        }
        contestants: dict[str, RunSlice] = {name: way.run_slice for name, way in ways.items() if name != "JPEG pixels"}
        plan = plan_slices(seconds, len(contestants), shortest_s=1.0, longest_s=3.0, around_s=SETTLE_S + 0.8)
        rates = await interleave(contestants, rounds=plan.rounds, slice_s=plan.slice_s)
        rates["JPEG pixels"] = [await ways["JPEG pixels"].run_slice(plan.slice_s) for _ in range(JPEG_SLICES)]
    return {
        "rates": rates,
        "bytes_per_crop": {name: way.counter.bytes_sent / way.crops for name, way in ways.items()},
        "batch_crops": BATCH_CROPS,
    }


def main() -> None:
    """``ADDRESS FOLDER DATASET SECONDS``."""
    keep_large_buffers()
    address, folder, dataset, seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(measure(address, folder, dataset, float(seconds)))))


if __name__ == "__main__":
    main()
