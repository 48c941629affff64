"""ReLabel's label maps: read from torch's files, and pooled as RoIAlign and ReLabel's training pool them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.label_store.relabel_files import axis_weights, read_label_map
from teacherfarm.protos.faults import BadLabelFile

NUM_CLASSES = 30


def some_map(seed=0, size=(15, 15), num_classes=NUM_CLASSES):
    generator = torch.Generator().manual_seed(seed)
    values, classes = (torch.randn(num_classes, *size, generator=generator) * 5).topk(5, dim=0)
    return values, classes


def relabel(values, classes, fractions, *, swapped=True, num_classes=NUM_CLASSES):
    """ReLabel's training target, restated with torchvision: fractions (top, left, height, width) [M, 4]."""
    dense = torch.zeros(num_classes, *values.shape[1:]).scatter_(0, classes.long(), values.float())
    top, left, height, width = torch.as_tensor(fractions, dtype=torch.float32).T
    corners = (top, left, top + height, left + width) if swapped else (left, top, left + width, top + height)
    boxes = torch.stack(corners, 1) * values.shape[2] - 0.5
    pooled = roi_align(dense[None], [boxes], output_size=(1, 1))
    return torch.softmax(pooled[:, :, 0, 0], 1)


def some_fractions(num, seed=0, size=(375, 500)):
    boxes = CropPlan(seed=seed).boxes([3], np.arange(num), [size[0]], [size[1]])
    fields = ((boxes[name] / size[axis % 2]) for axis, name in enumerate(("top", "left", "height", "width")))
    return np.stack(list(fields), 1)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
@pytest.mark.parametrize("types", [(torch.float32, torch.int64), (torch.float16, torch.int16), (torch.float32, None)])
def test_labels_of_crops_are_those_of_relabels_training(tmp_path, options, types):
    values, classes = some_map()
    values = values.to(types[0])
    pair = torch.stack([values, classes.to(values)]) if types[1] is None else [values, classes.to(types[1])]
    torch.save(pair, tmp_path / "a.pt", **options)
    found = read_label_map(tmp_path / "a.pt", num_classes=NUM_CLASSES)
    fractions = some_fractions(40)
    ours = np.exp(found.log_probabilities(fractions, NUM_CLASSES))
    np.testing.assert_allclose(ours, relabel(values, classes, fractions), atol=2e-5)
    upright = np.exp(found.log_probabilities(fractions, NUM_CLASSES, upright=True))
    np.testing.assert_allclose(upright, relabel(values, classes, fractions, swapped=False), atol=2e-5)
    assert np.abs(ours - upright).max() > 0.01


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 20),
    low=st.floats(-30, 30, width=32),
    length=st.floats(0, 40, width=32),
    seed=st.integers(0, 1000),
)
def test_an_axis_is_weighted_as_roi_align_does(size, low, length, seed):
    low, high = np.array([low], np.float32), np.array([low + length], np.float32)
    if abs(float(high[0] - low[0]) - round(float(high[0] - low[0]))) < 1e-4:
        return  # the number of samples jumps there: float32 decides
    line = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(seed))
    box = torch.tensor([[low[0], low[0], high[0], high[0]]])
    due = roi_align(line, [box], output_size=(1, 1))[0, 0, 0, 0].item()
    weights = axis_weights(low, high, size)[0]
    assert weights @ line[0, 0].double().numpy() @ weights == pytest.approx(due, abs=1e-4)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (torch.zeros(2, 5, 15), "holds arrays"),
        ([torch.zeros(5, 15, 15), torch.zeros(5, 15, 14)], "holds arrays"),
        ([torch.zeros(5, 15, 15), torch.full((5, 15, 15), NUM_CLASSES)], r"0\.\.29"),
        ([torch.zeros(5, 15, 15), torch.full((5, 15, 15), -1)], r"0\.\.29"),
        ([torch.full((5, 2, 2), torch.nan), torch.zeros(5, 2, 2)], "no numbers"),
    ],
)
def test_a_file_that_is_no_label_map_is_refused_with_its_name(tmp_path, value, word):
    torch.save(value, tmp_path / "bad.pt")
    with pytest.raises(BadLabelFile, match=word) as fault:
        read_label_map(tmp_path / "bad.pt", num_classes=NUM_CLASSES)
    assert str(tmp_path / "bad.pt") in str(fault.value)
