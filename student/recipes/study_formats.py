"""Ways to write one soft label down: how many classes, which number type, what the other classes get back.

The float16 log-probabilities among them are what a LabelSpec asks for, made by the same code; the others are there to
compare with. Pure: distributions in, distributions as a student would read them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.soft_label import Completion, LabelSpec, complete, log_softmax, top_k

NumberType = Literal["f16-logp", "f32-logp", "f16-prob", "u8-logp"]

NUMBER_TYPES: tuple[NumberType, ...] = get_args(NumberType)
NAMES: dict[NumberType, str] = {
    "f16-logp": "float16 log-probabilities",
    "f32-logp": "float32 log-probabilities",
    "f16-prob": "float16 probabilities",
    "u8-logp": "uint8 log-probabilities",
}
NUMBER_BYTES: dict[NumberType, int] = {"f16-logp": 2, "f32-logp": 4, "f16-prob": 2, "u8-logp": 1}
SCALE_BYTES = 2
"""uint8 codes divide the range from 0 down to a label's least log-probability, a float16, in 255 steps."""
COMPLETIONS: tuple[Completion, ...] = get_args(Completion)


@dataclass(frozen=True, kw_only=True)
class LabelFormat:
    """``top_k``: 0 is dense. A top-k label is cut at the temperature it is used at, a dense one is kept at 1 and
    brought to any temperature afterwards. ``completion`` means nothing to dense labels.
    """

    top_k: int
    number_type: NumberType = "f16-logp"
    completion: Completion = "smoothing"

    @property
    def name(self) -> str:
        return f"top-{self.top_k}" if self.top_k else "dense"

    @property
    def spec_known(self) -> bool:
        """Whether a label spec can ask for it."""
        return self.number_type == "f16-logp"

    def spec(self, temperature: float) -> LabelSpec:
        """The label spec that asks for it, to be used at ``temperature``."""
        return LabelSpec(top_k=self.top_k, temperature=temperature if self.top_k else 1.0)

    def label_bytes(self, num_classes: int) -> int:
        """Bytes of one label's record."""
        numbers = (self.top_k or num_classes) * NUMBER_BYTES[self.number_type]
        classes = self.top_k * (2 if num_classes <= 65536 else 4)
        return numbers + classes + (SCALE_BYTES if self.number_type == "u8-logp" else 0)

    def read_back(self, log_probabilities: NDArray[np.float32], temperature: float) -> NDArray[Any]:
        """Distributions [N, C] at ``temperature`` as a student has them that got log-probabilities [N, C] in this
        format.
        """
        if not self.top_k:
            return np.exp(log_softmax(self._rounded(log_probabilities), temperature))
        # The graph of a teacher gives float16; what is cut from it is rounded once more.
        source = log_probabilities.astype(np.float16) if self.number_type == "f16-logp" else log_probabilities
        classes, values = top_k(source, self.top_k, temperature)
        return complete(classes, self._rounded(values), log_probabilities.shape[1], self.completion)

    def _rounded(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """Log-probabilities as this number type gives them back; -inf where it lost them."""
        if self.number_type == "f32-logp":
            return values
        if self.number_type == "f16-logp":
            return values.astype(np.float16)
        if self.number_type == "f16-prob":
            with np.errstate(divide="ignore"):
                return np.log(np.exp(values).astype(np.float16).astype(np.float32))
        least = values.min(axis=1, keepdims=True).astype(np.float16).astype(np.float32)
        step = np.where(least < 0, least, np.float32(-1)) / 255
        return np.clip(np.rint(values / step), 0, 255).astype(np.uint8) * step


def formats(top_ks: Sequence[int], num_classes: int) -> Iterator[LabelFormat]:
    """Every combination, from few classes to dense; ``top_ks`` of more classes than there are are left out."""
    for k in sorted({k for k in top_ks if 0 < k < num_classes}):
        for number_type in NUMBER_TYPES:
            for completion in COMPLETIONS:
                yield LabelFormat(top_k=k, number_type=number_type, completion=completion)
    for number_type in NUMBER_TYPES:
        yield LabelFormat(top_k=0, number_type=number_type)
