"""Batches of a CropDataset whose crops are mixed with one another, before the teacher sees them or after.

Which crops, and by how much, follows from the seed and the batch's own samples and views: whichever worker makes a
batch, and whenever, its mix is the same. Knows no teacher, no method and no labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from teacherfarm.crops.mixing import (
    Mix,
    MixKind,
    draw_cutmix,
    draw_fkd_mix,
    draw_funmatch_mix,
    draw_mixup,
    draw_self_mix,
    mix_crops,
    mix_references,
)
from teacherfarm.protos.crop import Rendering
from teacherfarm.student.by_reference import as_references
from teacherfarm.student.crop_collate import Crops, collate_crops, empty_batch
from teacherfarm.student.methods.method import Draw, Mixing


class MixedBatch(Crops):
    """``mix``: how ``images`` were mixed. ``targets`` and ``samples`` stay each crop's own, and so do ``views`` but for
    "crops": what the teacher sees then is no view of any sample, and has -1.
    """

    mix: Mix


class MixedCrops:
    """``DataLoader(dataset, collate_fn=MixedCrops("labels", "fkd", seed=3))``: batches with ``batch["mix"]``.

    ``mixing``: "labels" and "self" mix ``images`` alone, and the labels of the plain ``crops`` are to be mixed by the
    loss. "crops" mixes both alike, for a teacher that is to see what the student sees: such crops lose their keys,
    weigh nothing where either image could not be read, and their labels belong to no single sample and view, so they
    are neither recorded nor replayed. Give ``teacher_rendering`` where they are references and the mix cuts boxes.
    "self" needs one of the SelfMix draws. ``mixing`` "none" is ``collate_crops``.
    """

    def __init__(
        self, mixing: Mixing, draw: Draw, seed: int = 0, *, teacher_rendering: Rendering | None = None
    ) -> None:
        if (mixing == "none") != (draw == ""):
            raise ValueError(f"mixing {mixing!r} does not go with draw {draw!r}: give both, or 'none' and ''")
        if mixing == "self" and not draw.startswith("selfmix"):
            raise ValueError(f"mixing 'self' stays inside each image, draw {draw!r} does not: use 'selfmix'")
        self.mixing = mixing
        self.draw = draw
        self.seed = seed
        self.teacher_rendering = teacher_rendering

    def __repr__(self) -> str:
        return f"<MixedCrops {self.mixing} by {self.draw or 'nothing'}, seed {self.seed}>"

    def __call__(self, items: Sequence[Crops]) -> Crops | MixedBatch:
        plain = collate_crops(items)
        if self.mixing == "none":
            return plain
        images, crops = plain["images"], plain["crops"]
        size = _size(images)
        mix = self._mix(plain, len(items), *size)
        # Filled in place: what a worker hands over travels as it is.
        batch: MixedBatch = plain  # type: ignore[assignment]
        batch["mix"] = mix
        batch["images"] = _mixed(images, mix)
        if self.mixing == "crops":
            self._mix_for_teacher(batch, crops, mix, size, same=images is crops)
        return batch

    def _mix(self, batch: Crops, num_images: int, height: int, width: int) -> Mix:
        names = batch["samples"].numpy().tobytes() + batch["views"].numpy().tobytes()
        digest = hashlib.blake2b(names, digest_size=16).digest()
        random = np.random.default_rng([self.seed, int.from_bytes(digest, "little")])
        num_crops = len(batch["samples"])
        match self.draw:
            case "fkd":
                return draw_fkd_mix(random, num_crops, height, width)
            case "funmatch":
                return draw_funmatch_mix(random, num_crops)
            case "mixup":
                return draw_mixup(random, num_crops)
            case "cutmix":
                return draw_cutmix(random, num_crops, height, width)
            case "selfmix" | "selfmix-mixup":
                kind: MixKind = "cutmix" if self.draw == "selfmix" else "mixup"
                return draw_self_mix(random, num_images, num_crops // num_images, height, width, kind=kind)
        raise ValueError(f"there is no draw {self.draw!r}: fkd, funmatch, mixup, cutmix, selfmix or selfmix-mixup")

    def _mix_for_teacher(
        self, batch: MixedBatch, crops: Tensor, mix: Mix, size: tuple[int, int], *, same: bool
    ) -> None:
        references = as_references(crops.numpy())
        if references is not None:
            if mix.box is not None:
                if self.teacher_rendering is None:
                    raise ValueError("boxes of crops by reference are the teacher's: give MixedCrops teacher_rendering")
                mix = mix.at(size, (self.teacher_rendering.height, self.teacher_rendering.width))
            batch["crops"] = mix_references(references, mix)  # type: ignore[typeddict-item]
        elif crops.numel() == 0:
            raise ValueError("these crops are for no teacher's eyes (teacher_rendering None): mix labels instead")
        else:
            batch["crops"] = batch["images"] if same else _mixed(crops, mix.at(size, _size(crops)))
        batch["keys"] = b""
        batch["views"] = torch.full_like(batch["views"], -1)
        batch["weight"] = batch["weight"] * batch["weight"][list(mix.partner)]


def _size(images: Tensor) -> tuple[int, int]:
    """Height and width of uint8 [N, H, W, 3], or of what a student's transform made of it [N, C, H, W]."""
    if images.ndim == 4 and images.dtype == torch.uint8 and images.shape[-1] == 3:
        return images.shape[1], images.shape[2]
    if images.ndim == 4 and images.is_floating_point():
        return images.shape[2], images.shape[3]
    raise ValueError(
        f"crops are mixed as uint8 [N, H, W, 3] or as floats [N, C, H, W], the student's are {images.dtype} "
        f"{list(images.shape)}: let student_transform end with ToTensor(), or leave it out"
    )


def _mixed(images: Tensor, mix: Mix) -> Tensor:
    mixed = empty_batch(images.shape, images.dtype)
    if images.dtype == torch.uint8:
        mix_crops(images.numpy(), mix, out=mixed.numpy())
        return mixed
    partners = images[list(mix.partner)]
    if mix.kind == "mixup":
        return torch.lerp(partners, images, mix.own_fraction(1, 1), out=mixed)
    mixed.copy_(images)
    if mix.box is not None:
        rows = slice(mix.box.top, mix.box.top + mix.box.height)
        columns = slice(mix.box.left, mix.box.left + mix.box.width)
        mixed[:, :, rows, columns] = partners[:, :, rows, columns]
    return mixed
