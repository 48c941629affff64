"""Labels in memory: bounded in bytes, the least recently used go first; what waits to be written is bounded, too."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from teacherfarm.label_store.label_store import (
    SHARED,
    StoreScope,
    record_kind,
    seal,
    unseal,
)
from teacherfarm.label_store.memory_store import ENTRY_BYTES, MemoryStore
from teacherfarm.label_store.write_queue import OBJECTS_BYTES, WriteQueue
from teacherfarm.protos.soft_label import LabelSpec
from tests.label_stores import SCOPE

KEYS = [bytes([n]) * 16 for n in range(64)]
RECORD = bytes(20)
LABEL_BYTES = ENTRY_BYTES + 16 + 16 + 20


def put(store, *numbers):
    store.put(SCOPE, [KEYS[n] for n in numbers], [RECORD] * len(numbers))


def kept(store):
    return {n for n, record in enumerate(store.find(SCOPE, KEYS)) if record is not None}


def test_what_was_not_used_for_longest_goes_first():
    store = MemoryStore(4 * LABEL_BYTES)
    put(store, 0, 1, 2, 3)
    store.find(SCOPE, [KEYS[0]])
    put(store, 1)
    put(store, 4, 5)
    assert kept(store) == {0, 1, 4, 5}
    assert store.stats()[0].kept_bytes == 4 * LABEL_BYTES


@given(st.lists(st.tuples(st.integers(0, 63), st.integers(0, 400)), max_size=60), st.integers(0, 4000))
def test_the_bound_holds_and_bytes_are_counted_right(puts, most_bytes):
    store, last = MemoryStore(most_bytes), {}
    for number, size in puts:
        store.put(SCOPE, [KEYS[number]], [bytes(size)])
        last[number] = size
        assert store.stats()[0].kept_bytes <= most_bytes
    left = kept(store)
    assert store.stats()[0].kept_bytes == sum(ENTRY_BYTES + 32 + last[number] for number in left)
    assert store.stats()[0].kept_labels == len(left)


def test_a_label_larger_than_all_room_is_not_kept():
    store = MemoryStore(LABEL_BYTES)
    store.put(SCOPE, [KEYS[0]], [bytes(1000)])
    assert kept(store) == set()


def test_the_queue_is_bounded_and_gives_back_its_room():
    queue = WriteQueue(3 * (36 + OBJECTS_BYTES))
    assert [queue.put(SCOPE, [KEYS[n]], [RECORD]) for n in range(4)] == [True, True, True, False]
    assert queue.take(1) == ({SCOPE: [(KEYS[0], RECORD)]}, 1)
    assert queue.put(SCOPE, KEYS[4:5], [RECORD])
    assert not queue.put(SCOPE, KEYS[5:6], [RECORD])
    other = replace(SCOPE, project="q")
    assert queue.take(10**6) == ({SCOPE: [(KEYS[n], RECORD) for n in (1, 2, 4)]}, 3)
    assert queue.put(other, [], [])
    assert queue.take(1) == ({other: []}, 0)


def test_a_scope_is_what_is_compared_and_nothing_else():
    assert SCOPE.id != replace(SCOPE, project=SHARED).id
    assert SCOPE.id != replace(SCOPE, record=("labels", "embedding in int8")).id
    # Names cannot run into each other.
    assert replace(SCOPE, project="a", crops="b, c").id != replace(SCOPE, project="a, b", crops="c").id
    named = replace(SCOPE, teacher="t", teacher_digest="d")
    assert named.id == SCOPE.id
    assert named == SCOPE
    back = StoreScope.from_json(named.to_json())
    assert (back, back.teacher, back.teacher_digest) == (named, "t", "d")


def test_kinds_of_records():
    assert record_kind(LabelSpec(outputs=("labels",))) == ("labels",)
    assert record_kind(LabelSpec(outputs=("labels",), feature_type="int8")) == ("labels",)
    assert record_kind(LabelSpec(outputs=("labels",), top_k=10, temperature=4.0)) == ("labels, top 10 at T=4.0",)
    assert record_kind(LabelSpec(outputs=("labels", "embedding"))) != record_kind(
        LabelSpec(outputs=("embedding", "labels"))
    )
    assert record_kind(LabelSpec(outputs=("embedding",))) != record_kind(
        LabelSpec(outputs=("embedding",), feature_type="int8")
    )


@given(st.binary(min_size=1, max_size=64), st.integers(0, 600), st.integers(1, 255))
def test_a_changed_byte_or_place_is_seen(record, place, change):
    sealed = seal(SCOPE.id, KEYS[0], record)
    assert unseal(SCOPE.id, KEYS[0], sealed, len(record)) == record
    assert unseal(SCOPE.id, KEYS[1], sealed, len(record)) is None
    assert unseal(bytes(16), KEYS[0], sealed, len(record)) is None
    torn = bytearray(sealed)
    torn[place % len(torn)] ^= change
    assert unseal(SCOPE.id, KEYS[0], bytes(torn), len(record)) is None
    assert unseal(SCOPE.id, KEYS[0], sealed[:-1], len(record)) is None
    assert unseal(SCOPE.id, KEYS[0], sealed, len(record) + 1) is None
