"""Measures the way to a farm and back: round trip, bandwidth, and labels per second of a teacher."""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time

import numpy as np
from numpy.typing import NDArray

from teacherfarm.doctor.farm import full
from teacherfarm.doctor.verdict import Figures
from teacherfarm.protos.crop import CropFormat
from teacherfarm.protos.faults import UnexpectedMessage
from teacherfarm.protos.messages import FarmLoad, Goodbye, Hello, Ping, Pong, SliceFault
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.protos.wire import decode_header, encode_header
from teacherfarm.student.client import AsyncTeacherClient
from teacherfarm.student.handshake import shake_hands
from teacherfarm.student.settings import WINDOW_CROPS, Address, Timeouts
from teacherfarm.student.transports.connect import open_transport
from teacherfarm.student.transports.transport import Transport

PINGS = 15
IN_FLIGHT = 4
"""Messages under way while bandwidth is measured: enough to fill a link of some milliseconds."""
BANDWIDTH_S = 1.0
ANSWER_S = 20.0
SETTLE_SHARE = 0.25
BATCH_CROPS = 32
FEWEST_CROPS = 8
POOL_BYTES = 48 << 20
JPEG_CROPS = 8


async def measure(place: Address, teacher: str, api_key: str, *, seconds: float) -> Figures:
    """All figures of one address and teacher, in about ``seconds`` and one more. Raises what the farm refuses."""
    timeouts = Timeouts(connect_s=ANSWER_S, answer_s=ANSWER_S)
    rtt_s = up_bytes_per_s = None
    if place.scheme != "triton":
        rtt_s, up_bytes_per_s = await _ping(place, teacher, api_key, timeouts)
    client = AsyncTeacherClient(full(place), teacher, api_key=api_key, timeouts=timeouts, on_starved="raise")
    async with client:
        card = client.card
        window_crops = crops_in_flight(card.crop_format.crop_bytes, up_bytes_per_s, rtt_s)
        labels_per_s, load = await _label(client, card, window_crops, seconds)
    jpeg_bytes, jpeg_s = _jpeg(card)
    return Figures(
        rtt_s=rtt_s,
        up_bytes_per_s=up_bytes_per_s,
        labels_per_s=labels_per_s,
        window_crops=window_crops,
        crop_bytes=card.crop_format.crop_bytes,
        jpeg_bytes=jpeg_bytes,
        jpeg_s=jpeg_s,
        cores=len(os.sched_getaffinity(0)),
        load=load,
    )


def crops_in_flight(crop_bytes: int, up_bytes_per_s: float | None, rtt_s: float | None) -> int:
    """As many as a student has by default; on a slow link what it moves in a second, or in some round trips."""
    if up_bytes_per_s is None or rtt_s is None:
        return WINDOW_CROPS
    return int(max(FEWEST_CROPS, min(WINDOW_CROPS, up_bytes_per_s / crop_bytes * max(1.0, 4 * rtt_s))))


async def _ping(place: Address, teacher: str, api_key: str, timeouts: Timeouts) -> tuple[float, float]:
    """Seconds of a round trip, and bytes/s of pings that carry as much as a slice does."""
    transport = open_transport(place, timeouts, teacher)
    hello = Hello(teacher=teacher, spec=LabelSpec(), api_key=api_key, student="teacherfarm doctor")
    try:
        welcome, card = await shake_hands(transport, hello, within_s=timeouts.connect_s)
        async with asyncio.timeout(ANSWER_S):
            trips = []
            for _ in range(PINGS):
                sent_s = time.perf_counter()
                transport.send(encode_header(Ping()))
                await _pong(transport)
                trips.append(time.perf_counter() - sent_s)
            payload = os.urandom(card.crop_format.crop_bytes * welcome.slice_crops)
            rate = await _bandwidth(transport, payload)
        transport.send(encode_header(Goodbye()))
        return statistics.median(trips), rate
    finally:
        await transport.close()


async def _bandwidth(transport: Transport, payload: bytes) -> float:
    ping = encode_header(Ping())
    for _ in range(IN_FLIGHT):
        transport.send(ping, payload)
    await _pong(transport)
    # From one answer to another: the first one's way is the round trip, not the bandwidth.
    began_s, num_answered = time.perf_counter(), 0
    while (passed_s := time.perf_counter() - began_s) < BANDWIDTH_S or not num_answered:
        transport.send(ping, payload)
        await _pong(transport)
        num_answered += 1
    rate = num_answered * len(payload) / passed_s
    for _ in range(IN_FLIGHT - 1):
        await _pong(transport)
    return rate


async def _pong(transport: Transport) -> None:
    header, _ = await transport.receive()
    match decode_header(header):
        case Pong():
            return
        case SliceFault(fault=fault):
            raise fault
        case other:
            raise UnexpectedMessage(f"a ping was answered with {type(other).__name__}")


async def _label(
    client: AsyncTeacherClient, card: TeacherCard, window_crops: int, seconds: float
) -> tuple[float, FarmLoad | None]:
    """Labels/s of a student that does nothing else with so many crops in flight, and the teacher's load meanwhile."""
    crops = noise(card.crop_format)
    batch = max(1, min(BATCH_CROPS, len(crops), window_crops // 4))
    batches = itertools.cycle([crops[first : first + batch] for first in range(0, len(crops) - batch + 1, batch)])
    waiting = {await client.submit(next(batches)) for _ in range(window_crops // batch)}
    began_s = counted_from_s = time.perf_counter()
    settled_s, end_s = began_s + SETTLE_SHARE * seconds, began_s + seconds
    num_labels, load_before = 0, client.stats.load
    try:
        while (now_s := time.perf_counter()) < end_s or not num_labels:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for answer in done:
                num_labels += len(answer.result())
                waiting.remove(answer)
                waiting.add(await client.submit(next(batches)))
            if now_s < settled_s:
                num_labels, counted_from_s, load_before = 0, time.perf_counter(), client.stats.load
        rate = num_labels / (time.perf_counter() - counted_from_s)
        return rate, client.stats.load.since(load_before)
    finally:
        for answer in waiting:
            # One that has a fault already wants somebody to look at it.
            if not answer.cancel():
                answer.exception()


def noise(crop_format: CropFormat) -> NDArray[np.generic]:
    """Crops that nobody else asks, as many as a student has under way, or as fit into some memory."""
    num_crops = max(BATCH_CROPS, min(512, POOL_BYTES // crop_format.crop_bytes))
    generator = np.random.default_rng()
    shape = (num_crops, *crop_format.shape)
    if crop_format.number_type == "float32":
        return generator.random(shape, np.float32)
    return generator.integers(0, 256, shape, crop_format.number_type)


def _jpeg(card: TeacherCard) -> tuple[float | None, float]:
    """Bytes of a photograph-like crop as jpeg and seconds of encoding it; no bytes where the teacher takes no jpeg."""
    crop_format = card.crop_format
    if crop_format.number_type != "uint8" or crop_format.channels not in (1, 3):
        return None, 0.0
    from dataclasses import replace

    from teacherfarm.crops.crop_codec import encode_crops

    pictures = _photograph_like(crop_format)
    began_s = time.perf_counter()
    lengths = encode_crops(pictures, replace(crop_format, codec="jpeg")).crop_bytes
    return sum(lengths) / len(pictures), (time.perf_counter() - began_s) / len(pictures)


def _photograph_like(crop_format: CropFormat) -> NDArray[np.uint8]:
    """Soft shapes and a little grain: noise would be as large in jpeg as it is raw."""
    height, width, channels = crop_format.shape
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (JPEG_CROPS, height // 16 + 1, width // 16 + 1, channels))
    large = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width].astype(np.float32)
    blurred = (large + np.roll(large, 8, axis=1) + np.roll(large, 8, axis=2)) / 3
    grain = generator.normal(0, 6, blurred.shape)
    return np.clip(blurred + grain, 0, 255).astype(np.uint8)
