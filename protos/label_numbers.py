"""The arithmetic of soft labels on arrays: tempering, the best k classes and what completes them, features in int8.

Knows no specs, cards or records.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Completion = Literal["smoothing", "renorm"]


def log_softmax(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float32]:
    """Float32 log-softmax of ``logits / temperature`` over the last axis; exact for log-probabilities, too."""
    scaled = logits.astype(np.float32)
    if temperature != 1.0:
        scaled /= np.float32(temperature)
    scaled -= scaled.max(axis=-1, keepdims=True)
    scaled -= np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
    return scaled


def top_k(log_probabilities: NDArray[Any], k: int, temperature: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k most probable classes at a temperature, best first (ties: lower class), and their
    log-probabilities.
    """
    tempered = log_softmax(log_probabilities, temperature)
    if k < tempered.shape[-1]:
        classes = np.sort(np.argpartition(-tempered, k - 1, axis=-1)[..., :k], axis=-1)
        smallest = np.take_along_axis(tempered, classes, axis=-1).min(axis=-1, keepdims=True)
        # The partition keeps any of the classes that tie for the last place.
        if (tied := (tempered >= smallest).sum(axis=-1) > k).any():
            classes[tied] = np.sort(np.argsort(-tempered[tied], axis=-1, kind="stable")[..., :k], axis=-1)
    else:
        classes = np.broadcast_to(np.arange(k), tempered.shape)
    values = np.take_along_axis(tempered, classes, axis=-1)
    order = np.argsort(-values, axis=-1, kind="stable")
    return np.take_along_axis(classes, order, axis=-1), np.take_along_axis(values, order, axis=-1)


def to_int8(values: NDArray[Any], channel_axis: int | None) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Per crop (and channel, where there is an axis): int8 values and the float32 scale that gives them back."""
    values = values.astype(np.float32)
    others = tuple(axis for axis in range(1, values.ndim) if channel_axis is None or axis != channel_axis + 1)
    scale = np.abs(values).max(axis=others, keepdims=True) / 127.0
    safe = np.where(scale == 0, np.float32(1), scale)
    return np.rint(values / safe).astype(np.int8), scale.reshape(len(values), -1).astype(np.float32)


def complete(
    classes: NDArray[Any], log_probabilities: NDArray[Any], num_classes: int, completion: Completion
) -> NDArray[np.float32]:
    """Top-k labels [N, k] as distributions [N, num_classes] (FKD, arXiv 2112.01528: marginal smoothing and
    re-norm).
    """
    kept = np.exp(log_probabilities.astype(np.float32))
    # Rounding to float16 may have lifted the sum above 1.
    kept /= np.maximum(kept.sum(axis=1, keepdims=True), np.float32(1))
    k = kept.shape[1]
    if completion == "renorm":
        kept = kept / kept.sum(axis=1, keepdims=True)
        full = np.zeros((len(kept), num_classes), np.float32)
    elif completion == "smoothing":
        rest = np.maximum(1.0 - kept.sum(axis=1, keepdims=True), 0.0)
        if k == num_classes:
            kept, share = kept / kept.sum(axis=1, keepdims=True), np.zeros_like(rest)
        else:
            share = rest / np.float32(num_classes - k)
        full = np.broadcast_to(share, (len(kept), num_classes)).astype(np.float32)
    else:
        raise ValueError(f"completion is 'smoothing' or 'renorm', got {completion!r}")
    np.put_along_axis(full, classes.astype(np.int64), kept, axis=1)
    return full
