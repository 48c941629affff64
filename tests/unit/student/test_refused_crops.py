"""What becomes of crops that the server could not cut."""

from __future__ import annotations

import concurrent.futures
import itertools

import numpy as np
import pytest

from teacherfarm.crops.mixing import Mix, mix_references
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.faults import SampleMismatch
from teacherfarm.protos.references import CropReferences
from teacherfarm.student.batch import PendingBatch
from teacherfarm.student.by_reference import ByReference
from teacherfarm.student.refused_crops import RefusedCrops

CONTENTS = np.array([11, 12, 0, 14], np.uint64)
"""The third image could not be read, where the student named it."""


def refuse(mix, rows):
    """The faults that a batch by reference gets, and how many of its crops are still missing, when "raise" is told."""
    references = CropReferences.of_views(np.arange(4, dtype=np.uint64), CONTENTS, 0)
    if mix is not None:
        references = mix_references(references, mix)
    batch = PendingBatch(1, references, b"", 0, concurrent.futures.Future(), 0.0)
    faults = []
    refused = RefusedCrops(
        ByReference(dataset="train", rendering=Rendering(height=8, width=8), on_refused="raise"),
        ids=itertools.count(),
        complete=lambda batch: None,
        fail=lambda batch, fault: faults.append(fault),
        send=lambda batch: None,
    )
    refused.act(batch, np.array(rows), [SampleMismatch("it differs")] * len(rows))
    return faults, batch.missing_crops


@pytest.mark.parametrize(
    "mix",
    [
        Mix(kind="mixup", partner=(1, 2, 3, 0), own_share=150),
        Mix(kind="cutmix", partner=(1, 2, 3, 0)),
    ],
)
def test_a_crop_that_is_mixed_with_no_image_is_left_out_like_that_one(mix):
    assert refuse(mix, [1, 2]) == ([], 2)


def test_any_other_crop_is_refused_by_its_sample():
    assert refuse(None, [2]) == ([], 3)
    (fault,), missing = refuse(Mix(kind="mixup", partner=(1, 2, 3, 0), own_share=150), [0, 1, 2])
    assert isinstance(fault, SampleMismatch)
    assert "the sample with the number 0000000000000000 cannot be cut" in str(fault)
    assert missing == 2
