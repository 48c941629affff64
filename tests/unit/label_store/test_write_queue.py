"""What waits to be written takes no more memory than it may, however small the records."""

import tracemalloc
from dataclasses import replace

import pytest

from teacherfarm.label_store.write_queue import WriteQueue
from tests.label_stores import SCOPE


@pytest.mark.parametrize("record_bytes", [4, 40, 2000])
def test_a_full_queue_takes_what_it_was_given(record_bytes):
    most_bytes, scope = 1 << 20, replace(SCOPE, record_bytes=record_bytes)
    tracemalloc.start()
    try:
        queue, number = WriteQueue(most_bytes), 0
        while queue.put(
            scope, [(number + n).to_bytes(16, "big") for n in range(32)], [bytes(record_bytes) for _ in range(32)]
        ):
            number += 32
        taken_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.7 * most_bytes < taken_bytes < 1.1 * most_bytes


def test_what_was_taken_makes_room():
    queue = WriteQueue(1000)
    scope = replace(SCOPE, record_bytes=100)
    assert [queue.put(scope, [bytes(16)], [bytes(100)]) for _ in range(6)] == [True] * 4 + [False] * 2
    groups, num_labels = queue.take(1)
    assert (num_labels, groups) == (1, {scope: [(bytes(16), bytes(100))]})
    assert queue.put(scope, [bytes(16)], [bytes(100)])
    assert queue.take(1 << 20)[1] == 4
    assert len(queue) == 0
