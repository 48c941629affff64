"""One data set that the server cuts crops from: finds the samples that students mean, and reads their images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from teacherfarm.crops.sample_index import SampleIndex
from teacherfarm.crops.sample_readers import SampleReader
from teacherfarm.protos.faults import SampleChanged, SampleMismatch, TeacherFarmFault, UnknownSample, UnreadableImage


class ServedSamples:
    """A data set as it was indexed. Safe to use from several threads."""

    def __init__(self, name: str, reader: SampleReader, index: SampleIndex) -> None:
        self.name = name
        self.index = index
        self.readable = (index.heights > 0) & (index.heights < 1 << 16) & (index.widths < 1 << 16)
        self._reader = reader
        self._prefixes = index.prefixes()
        self._by_content = np.argsort(self._prefixes, kind="stable")
        self._contents = self._prefixes[self._by_content]
        self._by_number = np.argsort(index.numbers(), kind="stable")
        self._numbers = index.numbers()[self._by_number]

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"<ServedSamples {self.name!r}, {len(self)} samples>"

    def find(self, contents: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Rows of the samples that hold images with such hashes (their first halves), -1 where there are none.

        What an image is called does not matter: the crop's box goes by the name that the student knows.
        """
        places = np.searchsorted(self._contents, contents)
        places[places == len(self._contents)] = 0
        return np.where(self._contents[places] == contents, self._by_content[places], -1)

    def why_not(self, number: int, content: int) -> TeacherFarmFault:
        """The fault of a sample that :meth:`find` did not find."""
        place = int(np.searchsorted(self._numbers, np.uint64(number)))
        if place == len(self._numbers) or int(self._numbers[place]) != number:
            return UnknownSample(
                f"data set {self.name!r} has no sample with the number {number:016x} of its name, and none whose image "
                f"hashes to {content:016x}..."
            )
        row = int(self._by_number[place])
        return SampleMismatch(
            f"sample {self.index.name(row)!r} of data set {self.name!r} is another image here: it hashes to "
            f"{int(self._prefixes[row]):016x}..., the student's to {content:016x}..."
        )

    def unreadable(self, row: int) -> TeacherFarmFault:
        """The fault of a sample whose image could not be understood when it was indexed."""
        return UnreadableImage(f"cannot read {self.describe(row)}: it could not be understood when it was indexed")

    def describe(self, row: int) -> str:
        """A sample in words."""
        return f"sample {self.index.name(row)!r} of data set {self.name!r}"

    def read(self, row: int) -> bytes:
        """An encoded image, the very one that was indexed. Raises SampleChanged or UnreadableImage."""
        import xxhash

        data = self._reader.read(row)
        digest = xxhash.xxh3_128_digest(data)
        if digest != self.index.hashes[row].tobytes():
            raise SampleChanged(
                f"{self.describe(row)} changed since it was indexed: it hashes to {digest.hex()}, then to "
                f"{self.index.hashes[row].tobytes().hex()}; restart the server to index it again"
            )
        return data
