import dataclasses
import gc
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from teacherfarm.protos.faults import BadTeacher, Starved, WrongCropSize, WrongLayout, WrongNumberType
from teacherfarm.protos.messages import FarmLoad
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.accounts import ClientStats
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.shard_sampler import ShardSampler
from teacherfarm.student.teacher_watch import TeacherMismatch
from tests.unit.student.fake_teacher import FakeTeacher, make_card

torch.set_num_threads(1)


class Crops(Dataset):
    """Crop i is filled with the number i."""

    def __init__(self, size=22):
        self.size = size
        self.epochs = []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"crops": torch.full((8, 8, 3), index, dtype=torch.uint8), "index": index}

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def crops_of(batch):
    return batch["crops"]


def make(size=22, *, teacher=None, shuffle=False, workers=0, loader=None, **options):
    teacher = teacher or FakeTeacher()
    loader = loader or DataLoader(Crops(size), batch_size=4, shuffle=shuffle, num_workers=workers)
    return LabelledLoader(loader, teacher, options.pop("teacher_view", crops_of), **options)


def indices(batches):
    return [batch["index"].tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_batch_comes_once_in_order_with_its_own_labels(workers):
    labelled = make(workers=workers)
    seen = []
    for batch, labels in labelled:
        seen += batch["index"].tolist()
        expected = labelled.teacher.answer(batch["crops"].numpy())
        np.testing.assert_array_equal(labels.records, expected.records)
        assert len(labels) == len(batch["index"])
    assert seen == list(range(22))  # the last batch is short
    assert len(labelled) == 6
    assert labelled.teacher.untaken == 0


def test_the_users_batch_is_passed_through_untouched():
    batches = [object(), object()]
    labelled = LabelledLoader(batches, FakeTeacher(), lambda _: np.zeros((2, 8, 8, 3), np.uint8))
    assert all(batch is original for (batch, _), original in zip(labelled, batches, strict=True))


@pytest.mark.parametrize("window", [4, 5, 8, 100])
def test_asks_ahead_but_never_more_than_the_room(window):
    teacher = FakeTeacher(window=window)
    teacher.ready = False  # answers take a while, so it asks as far ahead as it can
    labelled = make(teacher=teacher)
    assert [len(labels) for _, labels in labelled] == [4] * 5 + [2]
    assert teacher.most_untaken == min(window // 4 * 4, 22)


def test_a_crop_batch_larger_than_the_room_is_still_asked():
    assert [len(labels) for _, labels in make(teacher=FakeTeacher(window=3))] == [4] * 5 + [2]


def test_asks_at_most_prefetch_batches_ahead():
    teacher = FakeTeacher(window=1000)
    teacher.ready = False
    labelled = make(teacher=teacher, prefetch_batches=2)
    for count, _ in enumerate(labelled, 1):
        assert len(teacher.asked) <= (count + 2) * 4
    assert teacher.most_untaken == 8
    with pytest.raises(ValueError, match="prefetch_batches"):
        make(prefetch_batches=0)


def test_asking_ahead_grows_while_answers_are_ready():
    teacher = FakeTeacher(window=1000)
    iterator = iter(make(400, teacher=teacher))
    asked = []
    for _ in range(5):
        next(iterator)
        asked.append(len(teacher.asked))
    assert asked == [8, 16, 24, 32, 40]


def test_break_leaves_nothing_dangling():
    teacher = FakeTeacher()
    labelled = make(teacher=teacher)
    for _ in labelled:
        break
    gc.collect()
    assert teacher.untaken == 0
    assert [len(labels) for _, labels in labelled] == [4] * 5 + [2]


def test_a_newer_pass_ends_the_older_one():
    labelled = make()
    older = iter(labelled)
    next(older)
    newer = iter(labelled)
    next(newer)
    with pytest.raises(RuntimeError, match="newer pass"):
        next(older)
    labelled.close()
    assert labelled.teacher.untaken == 0


def test_a_fault_is_raised_and_gives_up_what_is_in_flight():
    labelled = make()
    iterator = iter(labelled)
    next(iterator)
    labelled.teacher.fault = Starved("nobody answered")
    with pytest.raises(Starved):
        next(iterator)
    assert labelled.teacher.untaken == 0
    with pytest.raises(RuntimeError, match="Starved"):
        next(iterator)
    labelled.teacher.fault = None
    labelled.load_state_dict(labelled.state_dict())
    assert indices(batch for batch, _ in labelled)[0] == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("view", "fault", "words"),
    [
        (lambda b: b["crops"].float() / 255, WrongNumberType, "return two views"),
        (lambda b: b["crops"].bfloat16(), WrongNumberType, "return two views"),
        (lambda b: b["crops"].permute(0, 3, 1, 2).float(), WrongNumberType, "channels-first"),
        (lambda b: b["crops"].permute(0, 3, 1, 2), WrongLayout, "channels first"),
        (lambda b: b["crops"][:, :4], WrongCropSize, "4, 8, 3"),
        (lambda b: list(b["crops"]), WrongLayout, "got list"),
        (lambda b: b["crops"].to("meta"), WrongLayout, "tensor on meta"),
    ],
)
def test_wrong_pixels_are_named_before_they_are_sent(view, fault, words):
    labelled = make(teacher_view=view)
    with pytest.raises(fault, match=words):
        next(iter(labelled))
    assert labelled.teacher.asked == []


def test_a_permuted_view_is_sent_as_it_looks():
    labelled = make(teacher_view=lambda b: b["crops"].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))
    assert indices(batch for batch, _ in labelled)[-1] == [20, 21]


def test_keys_travel_with_their_crops():
    labelled = make(keys=lambda batch: b"".join(bytes([i]) * 16 for i in batch["index"].tolist()))
    list(labelled)
    assert labelled.teacher.keys[5] == bytes([20]) * 16 + bytes([21]) * 16


def test_weights_of_the_batch_multiply_the_teachers():
    teacher = FakeTeacher()
    teacher.starve = {1, 6}
    labelled = make(8, teacher=teacher, weight_view=lambda batch: (batch["index"] != 2).float() * 0.5)
    weights = np.concatenate([labels.weight for _, labels in labelled])
    assert weights.tolist() == [0.5, 0, 0, 0.5, 0.5, 0.5, 0, 0.5]
    assert "3 of 8 crops without an answer" in labelled.report()
    with pytest.raises(ValueError, match="4 numbers"):
        next(iter(make(weight_view=lambda batch: 1.0)))


class Told:
    def __init__(self, **children):
        self.told = []
        self.__dict__.update(children)

    def set_epoch(self, epoch):
        self.told.append(epoch)


def test_set_epoch_reaches_whoever_asks_for_it_once():
    dataset = Crops()
    sampler = DistributedSampler(dataset, num_replicas=2, rank=0)
    labelled = make(loader=DataLoader(dataset, batch_size=4, sampler=sampler))
    labelled.set_epoch(3)
    assert sampler.epoch == 3
    assert dataset.epochs == [3]
    assert labelled.sampler is sampler
    assert labelled.dataset is dataset
    assert labelled.batch_size == 4
    assert labelled.batch_sampler.sampler is sampler

    sampler = Told()
    loader = Told(sampler=sampler, dataset=(dataset := Told()))  # accelerate's: it tells its own samplers
    make(loader=loader).set_epoch(1)
    assert (loader.told, sampler.told, dataset.told) == ([1], [], [1])


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("consumed", [1, 3, 6])
def test_resume_skips_exactly_what_was_consumed(shuffle, workers, consumed):
    torch.manual_seed(7)
    first = make(shuffle=shuffle, workers=workers)
    seen, state = [], None
    for count, (batch, _) in enumerate(first, 1):
        seen.append(batch["index"].tolist())
        torch.rand(3)  # the student draws, too
        if count == consumed:
            state = first.state_dict()
            random_state = torch.get_rng_state()
    assert state["batches"] == consumed

    torch.manual_seed(1234)
    again = make(shuffle=shuffle, workers=workers)
    again.load_state_dict(state)
    torch.set_rng_state(random_state)
    assert indices(batch for batch, _ in again) == seen[consumed:]
    assert again.teacher.asked == [index for batch in seen[consumed:] for index in batch]
    assert torch.equal(torch.get_rng_state(), random_state)  # the student's own draws go on undisturbed


class Counting(Crops):
    def __init__(self):
        super().__init__()
        self.read = 0

    def __getitem__(self, index):
        self.read += 1
        return super().__getitem__(index)


def test_a_shard_sampler_skips_without_reading():
    def loader(rank):
        dataset = Counting()
        sampler = ShardSampler(dataset, rank=rank, num_ranks=2, seed=9)
        return make(loader=DataLoader(dataset, batch_size=4, sampler=sampler))

    ranks = [loader(0), loader(1)]
    orders = []
    for labelled in ranks:
        labelled.set_epoch(1)
        orders.append(indices(batch for batch, _ in labelled))
    assert sorted(index for batches in orders for batch in batches for index in batch) == list(range(22))
    again = loader(1)
    again.load_state_dict({**ranks[1].state_dict(), "batches": 2})
    assert indices(batch for batch, _ in again) == orders[1][2:]
    assert again.dataset.read == 11 - 8
    again.set_epoch(2)
    assert again.loader.sampler.epoch == 2
    assert sum(len(labels) for _, labels in again) == 11


def test_resume_with_a_generator_of_the_loader():
    def loader():
        return DataLoader(Crops(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1))

    first, again = make(loader=loader()), make(loader=loader())
    list(again)  # its generator is elsewhere now
    seen = []
    for batch, _ in first:
        seen.append(batch["index"].tolist())
        if len(seen) == 2:
            state = first.state_dict()
    again.load_state_dict(state)
    assert indices(batch for batch, _ in again) == seen[2:]


def test_a_finished_pass_starts_from_the_beginning():
    labelled = make()
    list(labelled)
    assert labelled.state_dict()["batches"] == 0
    assert len(list(labelled)) == 6


def test_another_epoch_forgets_the_resume():
    labelled = make()
    labelled.load_state_dict({**labelled.state_dict(), "epoch": 2, "batches": 4})
    labelled.set_epoch(2)
    assert labelled.state_dict()["batches"] == 4
    labelled.set_epoch(3)
    assert len(list(labelled)) == 6


def test_resume_with_another_loader_is_refused():
    state = {**make().state_dict(), "batches": 2}
    with pytest.raises(ValueError, match="had 6 batches when this state was saved and has 10 now"):
        make(40).load_state_dict(state)


def test_resume_of_a_loader_that_ends_too_early_is_refused():
    state = {**make(loader=Repeated()).state_dict(), "batches": 301}
    labelled = make(loader=Repeated())
    labelled.load_state_dict(state)
    with pytest.raises(ValueError, match="has consumed 301 batches, but the loader ends after 300"):
        next(iter(labelled))


class Stateful:
    """A loader that counts what it has handed out, like torchdata's."""

    def __init__(self):
        self.given = 0

    def __iter__(self):
        while self.given < 6:
            self.given += 1
            yield {"crops": np.full((2, 8, 8, 3), self.given, np.uint8), "index": torch.tensor([self.given])}
        self.given = 0

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.given = state["given"]


def test_a_stateful_loader_keeps_its_own_state_as_of_the_consumed_batch():
    labelled = make(loader=Stateful(), teacher=FakeTeacher(window=1000))
    iterator = iter(labelled)
    for _ in range(3):
        next(iterator)
    assert labelled.loader.given > 3  # asked ahead
    state = labelled.state_dict()
    assert state["inner"] == {"given": 3}
    again = make(loader=Stateful())
    again.load_state_dict(state)
    assert indices(batch for batch, _ in again) == [[4], [5], [6]]
    assert again.teacher.asked == [4, 4, 5, 5, 6, 6]


def test_a_teacher_that_disagrees_with_the_targets_is_reported_once():
    teacher = FakeTeacher(make_card(num_classes=40))

    def wrong(batch):
        return (teacher.logits(batch["crops"].numpy()).argmax(axis=1) + 1) % 40

    labelled = make(250, teacher=teacher, target_view=wrong)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(labelled)  # 250 crops say little
    with pytest.warns(TeacherMismatch, match=r"top-1 .* 0.0%.*another order.*BGR") as caught:
        assert len([*labelled, *labelled]) == 126
    assert len(caught) == 1
    assert labelled.teacher_top1 == 0

    with pytest.raises(BadTeacher, match="another order"):
        list(make(teacher=teacher, target_view=wrong, on_mismatch="raise", loader=Repeated()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(make(teacher=teacher, target_view=wrong, on_mismatch="ignore", loader=Repeated()))


class Repeated:
    def __iter__(self):
        for index in range(300):
            yield {"crops": torch.full((2, 8, 8, 3), index % 256, dtype=torch.uint8)}


def test_a_teacher_that_agrees_is_not():
    teacher = FakeTeacher(make_card(num_classes=40))
    labelled = make(
        teacher=teacher,
        loader=Repeated(),
        target_view=lambda b: torch.from_numpy(teacher.logits(b["crops"].numpy()).argmax(axis=1)),
    )
    list(labelled)
    assert labelled.teacher_top1 == 1
    with pytest.raises(ValueError, match="one class number"):
        list(make(target_view=lambda batch: torch.zeros(len(batch["crops"]), 10)))


class SlowTeacher(FakeTeacher):
    """Its answers take two seconds of a clock that the test moves."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def answer(self, crops):
        self.clock.now += 2
        return super().answer(crops)


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


def test_the_loader_knows_its_stall(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("teacherfarm.student.label_pass.time", clock)
    labelled = make(40, teacher=SlowTeacher(clock))
    for _ in labelled:
        clock.now += 6
    assert labelled.stall == pytest.approx(0.25)
    assert "teacher-bound 25 %: waited 20.0 of 80.0 s" in labelled.report()


class ToldTeacher(FakeTeacher):
    """Its farm tells its load whenever crops are asked."""

    def __init__(self):
        super().__init__()
        self.stats = ClientStats()
        self.load = FarmLoad(busy=0.5, backends=1, labels_per_s=100)

    def submit(self, crops, *, keys=b"", priority=0):
        self.stats.load = self.stats.load.plus(self.load, 1.0)
        return super().submit(crops, keys=keys, priority=priority)


@pytest.mark.parametrize("ending", ["all", "break", "running"])
def test_the_load_of_a_pass_is_that_of_its_own_time(ending):
    teacher = ToldTeacher()
    teacher.stats.load = teacher.stats.load.plus(FarmLoad(busy=1.0, backends=9, labels_per_s=900), 60.0)
    labelled = make(8, teacher=teacher)
    running = iter(labelled)
    next(running)
    if ending != "running":
        if ending == "all":
            list(running)
        running.close("over")
        # What the farm does afterwards, in an evaluation, is not this pass's.
        teacher.stats.load = teacher.stats.load.plus(FarmLoad(busy=0.0, backends=1, labels_per_s=0), 60.0)
    labelled.report()
    assert labelled._seen.load == teacher.load


def test_frameworks_that_move_batches_leave_the_labels_alone():
    _, labels = next(iter(make()))
    assert labels.to(torch.device("cpu"), non_blocking=True) is labels


def test_it_says_how_it_is():
    labelled = make()
    iterator = iter(labelled)
    next(iterator)
    assert "1 batches consumed, 1 in flight" in repr(labelled)


def test_top_k_labels_pass_the_watch():
    teacher = FakeTeacher(spec=LabelSpec(top_k=3))
    labelled = make(teacher=teacher, target_view=lambda batch: batch["index"] * 0)
    assert all(labels.is_top_k for _, labels in labelled)
    assert dataclasses.is_dataclass(labels := next(iter(labelled))[1])
    assert labels.classes.shape == (4, 3)
