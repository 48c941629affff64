"""Measures what a plan needs to know: a data set's images, what cutting crops from them takes here, a farm's rate."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_codec import decode_crops, encode_crops
from teacherfarm.crops.crop_plan import CropPlan, sample_number
from teacherfarm.crops.cutting import cut, decode
from teacherfarm.crops.sample_readers import SampleReader
from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.faults import UnreadableImage
from teacherfarm.student.blocking import LabelFuture, TeacherClient
from teacherfarm.student.recipes.study_pixels import choose_images
from teacherfarm.student.sizing import SATURATED

_log = logging.getLogger(__name__)

ROUNDS = 3
"""Each is timed over all images and the fastest counts: others may use the machine at the same time."""
BATCH, BATCHES_AHEAD = 64, 6


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Means over ``num_measured`` images: bytes, pixels, and seconds on one core (``decode_s`` per image, others per
    crop). ``jpeg_bytes`` is a crop's in the teacher's rendering. ``crops``: those crops [N, H, W, 3].
    """

    num_images: int
    num_measured: int
    image_bytes: float
    height: float
    width: float
    decode_s: float
    teacher_cut_s: float
    student_cut_s: float
    encode_s: float
    unpack_s: float
    jpeg_bytes: float
    crops: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class FarmFacts:
    """``labels_per_s``: what this student alone got. ``teachers``: how many there are, ``busy`` the share of their time
    that was used, ``all_per_s`` what all students together got; None where no server says.
    """

    labels_per_s: float
    teachers: int | None = None
    busy: float | None = None
    all_per_s: float | None = None

    @property
    def farm_rate(self) -> float:
        """Labels/s of the whole farm at full load: of teachers that were half idle (the link, this machine or the
        window was the bound) twice what they gave.
        """
        if not self.busy or not self.all_per_s:
            return self.labels_per_s
        return max(self.labels_per_s, self.all_per_s / min(1.0, self.busy / SATURATED))

    @property
    def teacher_rate(self) -> float:
        return self.farm_rate / (self.teachers or 1)


def measure_images(
    reader: SampleReader, *, teacher: Rendering, student: Rendering, num_images: int, crops_per_image: int, seed: int
) -> ImageFacts:
    """Reads, decodes and cuts a sample of the images. Raises UnreadableImage where none of it can be read."""
    plan = CropPlan(seed=seed)
    encoded: list[tuple[bytes, str]] = []
    images, boxes = [], []
    for index in choose_images(len(reader), num_images, seed):
        name = reader.name(index)
        try:
            data = reader.read(index)
            pixels = decode(data, name)
        except UnreadableImage as fault:
            _log.warning("left out: %s", fault)
            continue
        encoded.append((data, name))
        images.append(pixels)
        views = np.arange(crops_per_image)
        boxes.append(plan.boxes(sample_number(name), views, pixels.shape[0], pixels.shape[1]))
    if not images:
        raise UnreadableImage(f"none of the chosen images of {reader.where} can be read; the log names each")

    crops = np.concatenate([cut(image, box, teacher) for image, box in zip(images, boxes, strict=True)])
    jpeg = CropFormat(height=teacher.height, width=teacher.width, codec="jpeg")
    packed = [encode_crops(crop[None], jpeg) for crop in crops]

    pairs = list(zip(images, boxes, strict=True))
    decode_s = _fastest(lambda: [decode(data, name) for data, name in encoded])
    teacher_cut_s = _fastest(lambda: [cut(image, box, teacher) for image, box in pairs])
    student_cut_s = _fastest(lambda: [cut(image, box, student) for image, box in pairs])
    encode_s = _fastest(lambda: [encode_crops(crop[None], jpeg) for crop in crops])
    unpack_s = _fastest(lambda: [decode_crops(one.parts[0], 1, jpeg, one.crop_bytes) for one in packed])
    return ImageFacts(
        num_images=len(reader),
        num_measured=len(images),
        image_bytes=float(np.mean([len(data) for data, _ in encoded])),
        height=float(np.mean([image.shape[0] for image in images])),
        width=float(np.mean([image.shape[1] for image in images])),
        decode_s=decode_s / len(images),
        teacher_cut_s=teacher_cut_s / len(crops),
        student_cut_s=student_cut_s / len(crops),
        encode_s=encode_s / len(crops),
        unpack_s=unpack_s / len(crops),
        jpeg_bytes=float(np.mean([len(one.parts[0]) for one in packed])),
        crops=crops,
    )


def measure_farm(client: TeacherClient, crops: NDArray[np.uint8], *, seconds: float, seed: int) -> FarmFacts:
    """Asks for labels for ``seconds``, after a third of that to warm up, as fast as they come.

    Every crop is asked once: four corner pixels are drawn anew each time, so that no cache answers for a teacher.
    """
    generator = np.random.default_rng(seed)
    waiting: deque[LabelFuture] = deque()
    answered, begun_s, load = 0, 0.0, client.stats.load
    first_s = time.perf_counter()
    ends_s = first_s + seconds * 4 / 3
    while (now_s := time.perf_counter()) < ends_s or not begun_s:
        if not begun_s and now_s >= first_s + seconds / 3 and answered:
            answered, begun_s, load = 0, now_s, client.stats.load
        while len(waiting) < BATCHES_AHEAD:
            waiting.append(client.submit(_new(crops, generator)))
        answered += len(waiting.popleft().result())
    rate = answered / (time.perf_counter() - begun_s)
    for future in waiting:
        future.result()
    told = client.stats.load.since(load)
    if told is None or not told.backends:
        return FarmFacts(labels_per_s=rate)
    return FarmFacts(labels_per_s=rate, teachers=told.backends, busy=told.busy, all_per_s=told.labels_per_s)


def _new(crops: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    batch = crops[generator.integers(0, len(crops), BATCH)]
    batch[:, 0, :4] = generator.integers(0, 256, (BATCH, min(4, batch.shape[2]), batch.shape[3]), np.uint8)
    return batch


def _fastest(work: Callable[[], object]) -> float:
    took = []
    for _ in range(ROUNDS):
        begun_s = time.perf_counter()
        work()
        took.append(time.perf_counter() - begun_s)
    return min(took)
