"""CRD's memory: one unit vector for each image of a data set, similarities to some of them, and which to choose."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


class EmbeddingMemory(nn.Module):
    """``rows`` [images, dimensions], at first uniform noise of about unit length, the same in every process.

    ``normaliser``: what exp(similarity) is divided by, fixed by the first batch; 0 before it.
    """

    rows: Tensor
    normaliser: Tensor

    def __init__(self, num_images: int, dimensions: int, *, seed: int) -> None:
        super().__init__()
        bound = (3 / dimensions) ** 0.5
        random = torch.Generator().manual_seed(seed)
        self.register_buffer("rows", (2 * torch.rand(num_images, dimensions, generator=random) - 1) * bound)
        self.register_buffer("normaliser", torch.zeros(()))

    def exponentials(self, vectors: Tensor, images: Tensor, temperature: float) -> Tensor:
        """exp(<row, vector> / temperature) of ``images`` [N, K] for ``vectors`` [N, D], without gradient to the rows.

        All rows are multiplied and some picked: gathering [N, K, D] takes more memory as long as there are fewer
        images than K * D.
        """
        similar = (vectors @ self.rows.to(vectors.dtype).T).gather(1, images)
        return (similar / temperature).exp()

    def move(self, images: Tensor, vectors: Tensor, weight: Tensor, momentum: float) -> None:
        """Each image's row towards the mean of its vectors; images may come several times, those of weight 0 stay."""
        same = (images[:, None] == images) * weight
        total = same.sum(dim=1, keepdim=True)
        mean = same @ vectors / total.clamp(min=torch.finfo(total.dtype).tiny)
        before = self.rows[images].to(vectors.dtype)
        after = functional.normalize(momentum * before + (1 - momentum) * mean, dim=1)
        self.rows[images] = torch.where(total > 0, after, before).to(self.rows.dtype)


def draw_other_classes(classes: Tensor, images: Tensor, targets: Tensor, count: int, *, seed: int | Tensor) -> Tensor:
    """``count`` images [N, count] for each of ``images``, uniformly with repetition, none of whose class is its target.

    ``classes``: of every image, -1 where unknown. A target that no image has excludes nothing. The draw follows
    from the seed and the image alone: processes that share a batch draw what one process would.
    """
    ordered, order = classes.sort(stable=True)
    begin, end = torch.searchsorted(ordered, targets), torch.searchsorted(ordered, targets, right=True)
    size = (end - begin)[:, None]
    numbers = torch.arange(count, device=images.device)
    noise = _scramble(_scramble(_scramble(images) + seed)[:, None] + numbers)
    place = noise.remainder((len(classes) - size).clamp(min=1))
    place = torch.where(place >= begin[:, None], place + size, place)
    drawn: Tensor = order[place.clamp(max=len(classes) - 1)]
    return drawn


def _scramble(numbers: Tensor) -> Tensor:
    """Int64 numbers as noise: the finisher of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        numbers = (numbers ^ _shifted(numbers, shift)) * factor
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, shift: int) -> Tensor:
    """To the right, filled with zeros: >> repeats the sign."""
    shifted: Tensor = (numbers >> shift) & (2 ** (64 - shift) - 1)
    return shifted
