"""Exactly one answer per crop batch, in the order asked, over a link that keeps dying (guarantee 1)."""

from __future__ import annotations

import numpy as np
import pytest

from teacherfarm.student import TeacherClient
from teacherfarm.student.labelled_loader import LabelledLoader
from tests.hostile_link import HostileLink

BATCH, BATCHES = 32, 40


@pytest.mark.parametrize("seed", [1, 2])
def test_every_label_comes_once_and_right(wire, seed, tiny_farm, tiny_crops, right_records):
    order = np.random.default_rng(seed).integers(0, len(tiny_crops), (BATCHES, BATCH))
    epoch = [{"crops": tiny_crops[rows], "rows": rows} for rows in order]
    place = getattr(tiny_farm, wire).partition("://")[2]
    with HostileLink(place, seed=(wire, seed), most_bytes=900_000, most_delay_s=0.03) as link:
        with TeacherClient(f"{wire}://{link.place}", "tiny", window=256) as teacher:
            seen = 0
            for batch, labels in LabelledLoader(epoch, teacher, lambda batch: batch["crops"]):
                assert batch is epoch[seen]
                assert labels.records.tobytes() == right_records[batch["rows"]].tobytes()
                assert (labels.weight == 1).all()
                seen += 1
            stats = teacher.stats
        assert link.num_cut >= 4, "the link was too kind: the test tested nothing"
    assert seen == BATCHES
    assert (stats.crops_asked, stats.crops_answered, stats.crops_failed) == (BATCH * BATCHES, BATCH * BATCHES, 0)
    assert stats.crops_resent > 0
    assert stats.sessions >= 4
