import numpy as np
import pytest
import torch
from torchvision.transforms import functional

from teacherfarm.student.pixels import to_student

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equals_to_tensor_and_normalize(memory_format):
    crops = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
    expected = torch.stack([functional.normalize(functional.to_tensor(crop), MEAN, STD) for crop in crops])
    kept = crops.copy()
    for given in (crops, torch.from_numpy(crops)):
        images = to_student(given, MEAN, STD, "cpu", memory_format=memory_format)
        torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)
        assert images.is_contiguous(memory_format=memory_format)
    np.testing.assert_array_equal(crops, kept)


def test_one_channel():
    images = to_student(torch.full((2, 4, 4, 1), 255, dtype=torch.uint8), (0.5,), (0.5,))
    torch.testing.assert_close(images, torch.ones(2, 1, 4, 4))


@pytest.mark.parametrize(
    ("crops", "mean", "std", "words"),
    [
        (torch.zeros(2, 3, 4, 4), MEAN, STD, "takes uint8 crops"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), MEAN, STD, "takes uint8 crops"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), (0.5,), (0.5,), "as many means"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), (123.7, 116.3, 103.5), STD, "pixels in 0..1"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), MEAN, (0.2, 0.0, 0.2), "pixels in 0..1"),
    ],
)
def test_other_pixels_and_units_are_refused(crops, mean, std, words):
    with pytest.raises(ValueError, match=words):
        to_student(crops, mean, std)
