"""A run's clients: one teacher, pinned by its digest, asked for what each phase needs."""

import argparse

import pytest
import torch

from teacherfarm.protos.faults import NoHead, UnknownOutput
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.accounts import ClientStats
from teacherfarm.student.recipes.distill_teachers import DistillTeachers
from teacherfarm.student.recipes.kept_labels import KeptLabels
from teacherfarm.student.recipes.link_check import bare_spec
from teacherfarm.student.recipes.ranks import Ranks
from tests.unit.student.image_folders import write_images
from tests.unit.student.pattern_teacher import PatternTeacher

ONE_RANK = Ranks(rank=0, num_ranks=1, device=torch.device("cpu"))


class Connected(PatternTeacher):
    def __init__(self, spec, digest):
        super().__init__(spec=spec)
        self.digest, self.closed = digest, False
        self.stats = ClientStats(crops_asked=3, bytes_sent=5, sessions=1)

    def close(self):
        assert not self.closed
        self.closed = True

    def head(self):
        return "head"


def counted(teachers):
    stats = teachers.stats(ONE_RANK)
    return stats.crops_asked, stats.bytes_sent


def options(**more):
    nothing = dict.fromkeys(("labels", "label_maps", "record", "views", "order", "teacher_address"))
    return argparse.Namespace(**{**nothing, "method": "kd", **more})


@pytest.fixture
def connected():
    return []


@pytest.fixture
def teachers(connected):
    def connect(*, spec=None, digest="", by_reference=None):
        connected.append(Connected(spec, digest))
        return connected[-1]

    return DistillTeachers(KeptLabels(options(teacher_address="zmq://unused:1")), connect)


def test_one_client_is_open_at_a_time_and_pinned(teachers, connected):
    with teachers:
        assert teachers.head() == "head"
        dense, top = LabelSpec(outputs=("labels",)), LabelSpec(outputs=("labels",), top_k=2)
        assert teachers.asked(LabelSpec()) is teachers.asked(dense) is connected[1]
        assert teachers.asked(top) is connected[2]
        assert teachers.asked(None) is None
        assert [one.closed for one in connected] == [True, True, False]
        assert [one.digest for one in connected] == ["", "digest-of-patterns", "digest-of-patterns"]
        with teachers.asked_besides(dense) as other:
            assert other is connected[3]
            assert not other.closed
    assert all(one.closed for one in connected)
    assert counted(teachers) == (12, 20)


def test_its_opinion_is_asked_of_whoever_knows_classes(teachers, connected):
    with teachers:
        with teachers.knowing_classes() as teacher:
            # The card's client may have been asked for anything: what it tells is not known.
            assert teacher.spec == bare_spec(teachers.card).resolve(teachers.card)
        teachers.asked(LabelSpec())
        with teachers.knowing_classes() as teacher:
            assert teacher is connected[-1]
        assert not teacher.closed


def test_label_maps_hold_classes_and_no_classifier(tmp_path):
    write_images(tmp_path / "train", ("ape", "bee"), 1)
    where = {"data": tmp_path, "train_folder": "train", "student_size": None, "class_map": None}
    teachers = DistillTeachers(KeptLabels(options(label_maps="maps", **where)), connect=None)
    assert teachers.asked(LabelSpec()) is None
    with pytest.raises(UnknownOutput, match="'label maps' has no output 'embedding'; it has labels"):
        teachers.asked(LabelSpec(outputs=("embedding",)))
    with pytest.raises(NoHead, match="recorded labels hold no classifier"):
        teachers.head()
    with teachers.knowing_classes() as teacher:
        assert teacher is None
    assert teachers.stats(ONE_RANK) is None
    with pytest.raises(ValueError, match="--label-maps label every crop: leave --teacher-address"):
        KeptLabels(options(label_maps="maps", teacher_address="zmq://unused:1"))


def test_what_was_asked_before_training_does_not_count(teachers):
    with teachers:
        teachers.asked(LabelSpec())
        teachers.count_anew()
        assert counted(teachers) == (0, 0)
        assert teachers.stats(ONE_RANK).sessions == 2, "they go on: the card's and this one"
        teachers.asked(LabelSpec(outputs=("labels",), top_k=2))
        assert counted(teachers) == (3, 5)
