"""Crops by reference: found and named without reading an image, cut on several threads where a teacher is asked.

Each image is read and decoded once for all crops of a slice. No decoded image is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.crop_plan import BOX, CropPlan
from teacherfarm.crops.cutting import cut, decode, wants_padded
from teacherfarm.crops.mixing import mix_table
from teacherfarm.protos.crop import CROP_KEY_BYTES, Rendering, content_keys
from teacherfarm.protos.faults import BadReference, TeacherFarmFault
from teacherfarm.protos.references import CUTMIX, CropReferences, Mixing, Place
from teacherfarm.protos.wire import Buffer
from teacherfarm.teacher_server.samples.cutting_turns import CuttingTurns, Tenant
from teacherfarm.teacher_server.samples.served_samples import ServedSamples


class CropCutter:
    """Cuts one session's crops from a data set, in one rendering, by one crop plan (None: every crop has its box).

    ``turns``: how many slices, of all sessions, are cut at once, and whose is next, for ``tenant`` is the session's
    project. Credit counts what a slice is answered with; mixing needs more for a moment, and only so many may need it.
    """

    def __init__(
        self,
        samples: ServedSamples,
        rendering: Rendering,
        plan: CropPlan | None,
        pool: Executor,
        turns: CuttingTurns,
        tenant: Tenant,
    ) -> None:
        self.turns, self.tenant = turns, tenant
        self.samples = samples
        self.rendering = rendering
        self.plan = plan
        self.pool = pool

    def __repr__(self) -> str:
        return f"<CropCutter of {self.samples!r}, {self.rendering}>"

    async def find(
        self, payload: Buffer, num_crops: int, place: Place, mixing: Mixing, priority: int
    ) -> ReferencedCrops:
        """The crops that a slice names. Raises BadReference where it is none; single crops are refused by name."""
        references = CropReferences.unpack(payload, num_crops, place, mixing)
        if place == "view" and self.plan is None:
            raise BadReference("views are numbers of a crop plan, and Hello named none: send boxes, or name the plan")
        # A thousand boxes take milliseconds.
        return await asyncio.get_running_loop().run_in_executor(None, ReferencedCrops, self, references, priority)


class ReferencedCrops:
    """One slice by reference; see :class:`teacherfarm.teacher_server.slice_crops.SliceCrops`."""

    def __init__(self, cutter: CropCutter, references: CropReferences, priority: int) -> None:
        self.priority = priority
        self.refused: dict[int, TeacherFarmFault] = {}
        self._cutter = cutter
        self._table, self._mixing = references.table, references.mixing
        self._num_crops = len(references)
        self._faults: dict[int, TeacherFarmFault] = {}
        self._rows = self._find_rows()
        self._boxes = self._find_boxes()
        if self._mixing is not None and self._mixing.dtype == CUTMIX:
            self._check_mixing(self._mixing)
        self._refuse()
        self.keys = self._make_keys()

    def __len__(self) -> int:
        return self._num_crops

    def __repr__(self) -> str:
        return f"<ReferencedCrops {len(self)} of {self._cutter.samples!r}, {len(self.refused)} refused>"

    async def render(self, rows: Sequence[int]) -> tuple[NDArray[np.uint8], Sequence[int]]:
        """Pixels [n, H, W, 3] of those of ``rows`` that could be cut, and which these are."""
        wanted = [row for row in rows if row not in self.refused]
        async with self._cutter.turns.turn(self._cutter.tenant, len(wanted)):
            return await self._render(wanted)

    async def _render(self, rows: list[int]) -> tuple[NDArray[np.uint8], Sequence[int]]:
        wanted = np.asarray(rows, np.int64)
        needed = wanted
        if self._mixing is not None:
            partners = self._mixing["partner"][wanted].astype(np.int64)
            needed = np.concatenate([wanted, np.setdiff1d(partners, wanted)])
        pixels = await self._cut(needed)
        self._refuse()
        done = [row for row in rows if row not in self.refused]
        if not done:
            return pixels[:0], done
        if self._mixing is None:
            return (pixels if len(done) == len(rows) else pixels[[row in done for row in rows]]), done
        return await asyncio.get_running_loop().run_in_executor(
            self._cutter.pool, self._mix, pixels, needed, np.asarray(done, np.int64)
        ), done

    async def _cut(self, needed: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Entries of the table as pixels, each image decoded once; a fault is noted for what cannot be cut."""
        rendering, loop = self._cutter.rendering, asyncio.get_running_loop()
        pixels = np.empty((len(needed), rendering.height, rendering.width, 3), np.uint8)
        images: dict[int, list[int]] = {}
        for place, row in enumerate(self._rows[needed].tolist()):
            images.setdefault(row, []).append(place)
        cuts = [
            loop.run_in_executor(self._cutter.pool, self._cut_image, row, needed[places], places, pixels)
            for row, places in images.items()
        ]
        try:
            await asyncio.gather(*cuts)
        finally:
            for waiting in cuts:
                waiting.cancel()
        return pixels

    def _cut_image(self, row: int, entries: NDArray[np.int64], places: list[int], pixels: NDArray[np.uint8]) -> None:
        samples = self._cutter.samples
        try:
            padded = wants_padded(self._cutter.rendering)
            image = decode(samples.read(row), samples.describe(row), padded=padded)
        except TeacherFarmFault as fault:
            self._faults |= dict.fromkeys(entries.tolist(), fault)
            return
        boxes, first = self._boxes[entries], places[0]
        if places == list(range(first, first + len(places))):
            cut(image, boxes, self._cutter.rendering, out=pixels[first : first + len(places)])
        else:
            pixels[places] = cut(image, boxes, self._cutter.rendering)

    def _mix(self, pixels: NDArray[np.uint8], needed: NDArray[np.int64], done: NDArray[np.int64]) -> NDArray[np.uint8]:
        assert self._mixing is not None
        places = np.full(len(self._table), -1)
        places[needed] = np.arange(len(needed))
        chosen = CropReferences(table=self._table, mixing=self._mixing).take(done)
        assert chosen.mixing is not None
        # The entries of `chosen` in the order in which it names them: crops first, then partners that are none.
        partners = self._mixing["partner"][done].astype(np.int64)
        entries = np.concatenate([done, np.setdiff1d(partners, done)])
        return mix_table(pixels[places[entries]], chosen.mixing)

    def _find_rows(self) -> NDArray[np.int64]:
        samples, table = self._cutter.samples, self._table
        rows = samples.find(table["content"])
        for entry in np.flatnonzero(rows < 0).tolist():
            self._faults[entry] = samples.why_not(int(table["sample"][entry]), int(table["content"][entry]))
        for entry in np.flatnonzero((rows >= 0) & ~samples.readable[rows]).tolist():
            self._faults[entry] = samples.unreadable(int(rows[entry]))
        return rows

    def _find_boxes(self) -> NDArray[np.void]:
        index, table, plan = self._cutter.samples.index, self._table, self._cutter.plan
        known = np.ones(len(table), np.bool_)
        known[list(self._faults)] = False
        heights, widths = (np.where(known, sides[self._rows], 1) for sides in (index.heights, index.widths))
        if table.dtype.names is not None and "view" in table.dtype.names:
            assert plan is not None
            return plan.boxes(table["sample"], table["view"].astype(np.int64), heights, widths)
        boxes = np.empty(len(table), BOX)
        for side in ("top", "left", "height", "width"):
            boxes[side] = table[side]
        boxes["flip"] = table["flip"] != 0
        bottoms, rights = boxes["top"] + boxes["height"], boxes["left"] + boxes["width"]
        fits = (boxes["height"] > 0) & (boxes["width"] > 0) & (bottoms <= heights) & (rights <= widths)
        for entry in np.flatnonzero(known & ~fits).tolist():
            top, left, height, width, _ = boxes[entry].item()
            self._faults[entry] = BadReference(
                f"box top={top} left={left} height={height} width={width} does not lie inside "
                f"{self._cutter.samples.describe(int(self._rows[entry]))}, which has {heights[entry]} x "
                f"{widths[entry]} pixels"
            )
        return boxes

    def _check_mixing(self, mixing: NDArray[np.void]) -> None:
        rendering = self._cutter.rendering
        bottoms = mixing["top"].astype(np.int64) + mixing["height"]
        rights = mixing["left"].astype(np.int64) + mixing["width"]
        for row in np.flatnonzero((bottoms > rendering.height) | (rights > rendering.width)).tolist():
            self.refused[row] = BadReference(
                f"the box that crop {row} takes from its partner does not lie inside {rendering.height} x "
                f"{rendering.width} pixels"
            )

    def _refuse(self) -> None:
        """Refuse the crops that need an entry of the table which is at fault."""
        for entry, fault in self._faults.items():
            if entry < self._num_crops:
                self.refused[entry] = fault
        if self._mixing is not None:
            for row, partner in enumerate(self._mixing["partner"].tolist()):
                if partner in self._faults:
                    self.refused.setdefault(row, self._faults[partner])

    def _make_keys(self) -> bytes:
        """Those of the same crops sent as pixels by a student that cut them from the same images."""
        hashes, blank = self._cutter.samples.index.hashes, ""
        contents = [blank if row < 0 else hashes[row].tobytes().hex() for row in self._rows.tolist()]
        keys = content_keys(contents, self._boxes, self._cutter.rendering)
        if self._mixing is None:
            return keys
        import xxhash

        size, digest = CROP_KEY_BYTES, xxhash.xxh3_128_digest
        kind = b"cutmix" if self._mixing.dtype == CUTMIX else b"mixup"
        mixed = []
        for row, record in enumerate(self._mixing):
            partner = int(record["partner"]) * size
            how = record.tobytes()[self._mixing.dtype.fields["partner"][0].itemsize :]  # type: ignore[index]
            mixed.append(digest(kind + keys[row * size : row * size + size] + keys[partner : partner + size] + how))
        return b"".join(mixed)
