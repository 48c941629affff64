"""The fault tree: one code per class, and every fault survives pickling and the wire as its own class."""

import copy
import multiprocessing.queues
import pickle

import pytest

from teacherfarm.protos import faults
from teacherfarm.protos.faults import TeacherFarmFault, from_code


def all_faults(root: type[TeacherFarmFault] = TeacherFarmFault) -> list[type[TeacherFarmFault]]:
    return [root, *(fault for child in root.__subclasses__() for fault in all_faults(child))]


EVERY_FAULT = all_faults()


def test_every_fault_has_a_code_of_its_own():
    for fault in EVERY_FAULT:
        assert "code" in vars(fault), f"{fault.__name__} inherits its parent's wire code"
    codes = [fault.code for fault in EVERY_FAULT]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes, "0 is what an unset protobuf field reads as"


def test_two_faults_with_one_code_are_refused_at_import():
    class Outer(Exception):
        code = 1

    class Inner(Outer):
        code = 1

    with pytest.raises(AssertionError, match="share wire code"):
        faults._tree(Outer)


def test_the_drawing_names_every_fault():
    for fault in EVERY_FAULT:
        assert fault.__name__ in faults.__doc__


@pytest.mark.parametrize("kind", EVERY_FAULT)
def test_a_fault_survives_code_pickle_and_copy(kind):
    fault = kind("what, and what to do", retry_after_s=1.5)
    for again in (
        from_code(kind.code, "what, and what to do", 1.5),
        pickle.loads(pickle.dumps(fault)),
        multiprocessing.queues._ForkingPickler.loads(multiprocessing.queues._ForkingPickler.dumps(fault)),
        copy.copy(fault),
    ):
        assert type(again) is kind
        assert (str(again), again.message, again.retry_after_s) == ("what, and what to do",) * 2 + (1.5,)


def test_an_unknown_code_is_the_root_class_and_says_so():
    fault = from_code(12345, "from the future", 2.0)
    assert type(fault) is TeacherFarmFault
    assert "12345" in str(fault)
    assert "from the future" in str(fault)
    assert (fault.retry, fault.retry_after_s) == ("never", 2.0)


def test_a_callers_mistake_is_a_value_error_too():
    assert {fault.__name__ for fault in EVERY_FAULT if issubclass(fault, ValueError)} >= {
        "WrongCropSize",
        "WrongNumberType",
        "WrongLayout",
        "WrongBatchSize",
        "UnknownOutput",
        "TemperatureMismatch",
    }
    assert not issubclass(faults.SessionLost, ValueError)


def test_retry_advice():
    advice = {fault.__name__: fault.retry for fault in EVERY_FAULT}
    assert {name for name, retry in advice.items() if retry == "later"} == {
        "Overloaded",
        "QuotaExceeded",
        "NotReady",
        "Starved",
        "WindowFull",
    }
    assert {name for name, retry in advice.items() if retry == "elsewhere"} == {
        "SessionLost",
        "GoingAway",
        "BackendDied",
    }
