"""A user's random transform whose random numbers depend on (seed, sample, view) alone. Knows nothing of data sets."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacherfarm.crops.counter_random import TRANSFORM_DRAW, random_words

if TYPE_CHECKING:
    from PIL.Image import Image


class StatelessTransform:
    """Calls ``transform`` on crops as Pillow images, with torch's (CPU), Python's and NumPy's global generators seeded
    for each crop, and leaves those generators as they were.
    """

    def __init__(self, transform: Callable[[Image], Tensor], *, seed: int) -> None:
        self.transform = transform
        self.seed = seed

    def __call__(self, crops: NDArray[np.uint8], sample_number: int, views: NDArray[np.int64]) -> list[Tensor]:
        """One tensor for each of the crops [m, H, W, 3] of a sample; ValueError when the shapes differ."""
        from PIL.Image import fromarray

        words = random_words(self.seed, sample_number, views, TRANSFORM_DRAW)
        tensors: list[Tensor] = []
        with _generators_kept():
            for row, crop in enumerate(crops):
                low, high = int(words[0, row]), int(words[1, row])
                # Not torch.manual_seed: that seeds every GPU too, and queues the call where CUDA is not started.
                torch.default_generator.manual_seed(low | high << 32)
                random.seed(low | high << 32)
                np.random.seed(low)
                tensor = self.transform(fromarray(crop))
                if not isinstance(tensor, Tensor):
                    raise ValueError(
                        f"student_transform must return a tensor, got {type(tensor).__name__}: end it with ToTensor()"
                    )
                if tensors and (tensor.shape != tensors[0].shape or tensor.dtype != tensors[0].dtype):
                    raise ValueError(
                        f"student_transform must return equal shapes for all crops, got {tensor.dtype} "
                        f"{list(tensor.shape)} after {tensors[0].dtype} {list(tensors[0].shape)}"
                    )
                tensors.append(tensor)
        return tensors


@contextmanager
def _generators_kept() -> Iterator[None]:
    of_torch, of_python, of_numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(of_torch)
        random.setstate(of_python)
        np.random.set_state(of_numpy)
