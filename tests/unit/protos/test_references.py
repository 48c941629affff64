"""Packed references: small, whole after a trip, divisible into slices, and nothing hostile gets through."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacherfarm.protos.faults import BadReference
from teacherfarm.protos.references import (
    BOX_REFERENCE,
    CUTMIX,
    MIXUP,
    VIEW_REFERENCE,
    CropReferences,
)

BOX = np.dtype([("top", "<u4"), ("left", "<u4"), ("height", "<u4"), ("width", "<u4"), ("flip", "?")])


def table(num, dtype=VIEW_REFERENCE, seed=0):
    return np.frombuffer(np.random.default_rng(seed).bytes(num * dtype.itemsize), dtype)


def mixed(num_crops, num_references, dtype=MIXUP, seed=1):
    random = np.random.default_rng(seed)
    mixing = np.zeros(num_crops, dtype)
    mixing["partner"] = random.integers(0, num_references, num_crops)
    if dtype == MIXUP:
        mixing["own_share"] = random.integers(0, 257, num_crops)
    else:
        mixing["top"] = random.integers(0, 9, num_crops)
    return CropReferences(table=table(num_references), mixing=mixing)


def unpacked(references):
    return CropReferences.unpack(references.pack(), len(references), references.place, references.mixing_kind)


def test_a_reference_is_20_bytes_and_one_with_a_box_25():
    assert (VIEW_REFERENCE.itemsize, BOX_REFERENCE.itemsize) == (20, 25)
    views = CropReferences.of_views([7, 8], [2**64 - 1, 0], [0, 2**32 - 1])
    assert views.pack() == (
        (7).to_bytes(8, "little") + b"\xff" * 8 + bytes(4) + (8).to_bytes(8, "little") + bytes(8) + b"\xff" * 4
    )
    boxes = np.array([(1, 2, 3, 4, True), (65535, 0, 1, 1, False)], BOX)
    given_boxes = CropReferences.of_boxes([7, 8], [1, 2], boxes)
    assert given_boxes.table.tolist() == [(7, 1, 1, 2, 3, 4, 1), (8, 2, 65535, 0, 1, 1, 0)]


@given(
    st.sampled_from([VIEW_REFERENCE, BOX_REFERENCE]),
    st.sampled_from([None, MIXUP, CUTMIX]),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
def test_packed_references_come_back(kind, mixing, num_crops, seed):
    if mixing is None:
        references = CropReferences(table=table(num_crops, kind, seed))
    else:
        extra = seed % (num_crops + 1)
        references = CropReferences(
            table=table(num_crops + extra, kind, seed), mixing=mixed(num_crops, num_crops + extra, mixing, seed).mixing
        )
    again = unpacked(references)
    assert len(again) == num_crops
    assert again.table.tobytes() == references.table.tobytes()
    assert again.mixing_kind == references.mixing_kind
    if references.mixing is not None:
        assert again.mixing.tobytes() == references.mixing.tobytes()


@given(st.integers(1, 30), st.sampled_from([MIXUP, CUTMIX]), st.integers(0, 2**32 - 1), st.data())
def test_a_part_names_the_same_crops_and_partners(num_crops, kind, seed, data):
    whole = mixed(num_crops, num_crops + seed % 5, kind, seed)
    rows = np.array(data.draw(st.lists(st.integers(0, num_crops - 1), unique=True, min_size=1)), np.int64)
    part = unpacked(whole.take(rows))
    assert len(part) == len(rows)
    for place, row in enumerate(rows):
        assert part.table[place] == whole.table[row]
        assert part.table[part.mixing["partner"][place]] == whole.table[whole.mixing["partner"][row]]
        rest = [name for name in kind.names if name != "partner"]
        assert part.mixing[rest][place] == whole.mixing[rest][row]


def test_slices_of_unmixed_references_are_their_rows():
    whole = CropReferences(table=table(10))
    assert whole.take(slice(3, 7)).pack() == whole.pack()[60:140]


@pytest.mark.parametrize(
    ("payload", "num_crops", "place", "mixing"),
    [
        (b"", 1, "view", "none"),
        (bytes(39), 2, "view", "none"),
        (bytes(60), 2, "view", "none"),
        (bytes(40), 2, "box", "none"),
        (bytes(24), 1, "view", "cutmix"),
        (bytes(40 + 8), 3, "view", "mixup"),
        (bytes(3 * 20 + 4), 1, "view", "mixup"),
        (bytes(20) + b"\1\0\0\0", 1, "view", "mixup"),
        (bytes(20) + b"\0\0\1\1", 1, "view", "mixup"),
    ],
)
def test_bytes_that_are_no_such_references_are_refused(payload, num_crops, place, mixing):
    with pytest.raises(BadReference):
        CropReferences.unpack(payload, num_crops, place, mixing)


@given(st.binary(max_size=200), st.integers(1, 8), st.sampled_from(["view", "box"]), st.sampled_from(["none", "mixup"]))
def test_no_bytes_raise_anything_but_the_fault(payload, num_crops, place, mixing):
    try:
        references = CropReferences.unpack(payload, num_crops, place, mixing)
    except BadReference:
        return
    assert len(references) == num_crops


@pytest.mark.parametrize("views", [[-1], [2**32]])
def test_views_beyond_32_bits_are_refused(views):
    with pytest.raises(BadReference, match=r"0\.\.2\*\*32"):
        CropReferences.of_views([1], [1], views)


def test_boxes_beyond_16_bits_are_refused():
    with pytest.raises(BadReference, match="height lies below 65536, got 65536"):
        CropReferences.of_boxes([1], [1], np.array([(0, 0, 65536, 1, False)], BOX))
