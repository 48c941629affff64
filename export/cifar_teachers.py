"""The networks for 32 x 32 images as teachers, with weights of your own: nobody publishes any under these names."""

from __future__ import annotations

from teacherfarm.export.teachers import Teacher, WeightsChoice
from teacherfarm.export.weights import load_weights, read_state_dict

HEAD = "classifier"


def cifar_teacher(name: str, weights: WeightsChoice, num_classes: int | None) -> Teacher:
    """``cifar:NAME``, with as many classes as the weights have (random ones: 10, unless told).

    Its crops are boxes of half the image at least: the papers train with the whole image, shifted by up to 4 pixels
    into zeros, which a box inside the image cannot be.
    """
    from teacherfarm.networks.cifar import MEAN, SIZE, STD, make_cifar_network

    if weights.pretrained:
        raise ValueError(f"nobody publishes weights of cifar:{name}: train it, and give the file by --weights FILE")
    if num_classes is None and weights.file is not None:
        head = read_state_dict(weights.file).get(f"{HEAD}.weight")
        num_classes = None if head is None else len(head)
    module = make_cifar_network(name, num_classes or 10)
    if weights.file is not None:
        load_weights(module, weights.file)
    return Teacher(
        module=module,
        height=SIZE,
        width=SIZE,
        mean=MEAN,
        std=STD,
        interpolation="bilinear",
        center_crop_fraction=1.0,
        crop_scale=(0.5, 1.0),
        name=name.replace("_", "-"),
        source=f"cifar:{name}",
        weights_source="random: not a teacher" if weights.file is None else weights.file.name,
        head=HEAD,
    )
