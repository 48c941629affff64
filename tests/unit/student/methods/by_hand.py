"""Layers as their formulas say, number by number: what methods' projections are compared with."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]


def values(module: nn.Module, name: str = "weight") -> Array:
    """A parameter as float64."""
    return np.asarray(module.get_parameter(name).detach().numpy(), np.float64)


def convolve(maps: Array, weight: Array) -> Array:
    """Stride 1, no bias, zeros around so that the size stays."""
    count, _, height, width = maps.shape
    reach = weight.shape[2] // 2
    result = np.zeros((count, len(weight), height, width))
    for y in range(height):
        for x in range(width):
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        result[:, :, y, x] += maps[:, :, y + dy, x + dx] @ weight[:, :, dy + reach, dx + reach].T
    return result


def normalise_batch(maps: Array) -> Array:
    """Each channel by its mean and variance over the batch, as a fresh layer in training does."""
    result = np.empty_like(maps)
    for channel in range(maps.shape[1]):
        own = maps[:, channel]
        result[:, channel] = (own - own.mean()) / math.sqrt(own.var() + 1e-5)
    return result


def pool(maps: Array, height: int, width: int) -> Array:
    """Averages of equal tiles."""
    high, broad = maps.shape[2] // height, maps.shape[3] // width
    result = np.empty((*maps.shape[:2], height, width))
    for y in range(height):
        for x in range(width):
            tile = maps[:, :, y * high : (y + 1) * high, x * broad : (x + 1) * broad]
            result[:, :, y, x] = tile.mean(axis=(2, 3))
    return result


def unit(vector: Array) -> Array:
    """Of length 1."""
    return vector / math.sqrt(sum(value**2 for value in vector))
