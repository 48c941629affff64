"""FKD's generator, loader and decoder, restated from the formulas of its paper and files: what its files must mean."""

import os

import numpy as np
import torch
from torchvision.transforms import functional


def quantise(distributions, form):
    """float32 probabilities [M, C] as FKD's generator keeps them."""
    probabilities = torch.as_tensor(distributions, dtype=torch.float32)
    values, classes = probabilities.sort(dim=1, descending=True, stable=True)
    if form == "full":
        return probabilities.numpy()
    if form == "hard":
        return classes[:, 0].numpy()
    if form == "smoothing":
        return torch.stack([classes[:, 0].float(), values[:, 0]], 1).numpy()
    k = int(form.rpartition("k")[2])
    return torch.stack([classes[:, :k].float(), values[:, :k]], 1).numpy()


def decode(kept, form, num_classes):
    """A batch of kept labels as dense targets, by the decode formulas of its paper."""
    kept = torch.as_tensor(np.asarray(kept))
    if form == "full":
        return kept.float()
    if form == "hard":
        return torch.nn.functional.one_hot(kept, num_classes).float()
    if form == "smoothing":
        kept = kept[:, :, None]
    classes, values = kept[:, 0].long(), kept[:, 1].float()
    k = classes.shape[1]
    if form.startswith("marginal_renorm"):
        dense = torch.zeros(len(kept), num_classes).scatter_(1, classes, values)
        return dense / dense.abs().sum(1, keepdim=True).clamp_min(1e-12)
    rest = (1 - values.sum(1, keepdim=True)) / (num_classes - k)
    return rest.expand(-1, num_classes).clone().scatter_(1, classes, values)


def fractions(boxes, height, width, number_type=np.float32):
    """What the generator stores for boxes (top, left, height, width)."""
    rows = [(top / height, left / width, tall / height, wide / width) for top, left, tall, wide in boxes]
    return torch.FloatTensor(rows).numpy().astype(number_type).reshape(len(rows), 4)


def save(path, boxes, flips, kept, size, number_type=np.float32, **options):
    """A label file as the generator saves it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    kept = kept if kept.dtype == np.int64 else kept.astype(number_type)
    torch.save([fractions(boxes, *size, number_type), np.array(flips, bool), kept], path, **options)


def load(root, split, image_path):
    """The file that the trainer opens for an image, and what it makes of it: FKD is older than weights_only."""
    path = os.path.join(root, "/".join([split, *image_path.split("/")[-2:]]).split(".")[0] + ".tar")
    return torch.load(path, map_location=torch.device("cpu"), weights_only=False)


def replay(image, coords, flip, size):
    """The crop that the trainer cuts from a Pillow image."""
    top, left, height, width = (
        coords[0].item() * image.size[1],
        coords[1].item() * image.size[0],
        coords[2].item() * image.size[1],
        coords[3].item() * image.size[0],
    )
    crop = functional.resized_crop(image, top, left, height, width, size, functional.InterpolationMode.BILINEAR)
    return functional.hflip(crop) if flip else crop
