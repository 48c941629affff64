import dataclasses
import typing

import pytest

from teacherfarm.student.methods.method import MethodMismatch
from teacherfarm.student.methods.registry import METHODS, find_method
from tests.methods import make_card, make_setup

FEATURES_ALONE = ("simkd", "sskd", "embedding", "tokens")
"""They compare no classes."""


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is(name):
    method = find_method(name)
    assert method.name == name
    assert method.about
    assert "\n" not in method.about
    assert not method.about.endswith(".")
    assert method.paper
    assert method.__doc__


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_has_a_default_and_a_line_of_help(name):
    settings = find_method(name).Settings
    assert settings.__dataclass_params__.frozen
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        assert field.metadata["help"], field.name
        choices = field.metadata.get("choices")
        assert not choices or field.default in choices
        if typing.get_origin(hints[field.name]) is typing.Literal:
            assert set(typing.get_args(hints[field.name])) == set(choices)
    settings()


@pytest.mark.parametrize("name", METHODS)
def test_a_teacher_that_gives_nothing_is_refused_in_words(name):
    method = find_method(name)
    with pytest.raises(MethodMismatch, match=r"\bteacher\b"):
        method.asks(method.Settings(), make_setup(make_card(activation="none", features={}), make_setup().student))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in FEATURES_ALONE])
def test_other_classes_than_the_teachers_are_refused(name):
    method = find_method(name)
    activation = "sigmoid" if name == "sigmoid-kd" else "softmax"
    setup = make_setup(make_card(num_classes=12, activation=activation), make_setup().student)
    with pytest.raises(MethodMismatch, match=r"the student has 10 classes and the teacher 'teacher' 12"):
        method.asks(method.Settings(), setup)


def test_an_unknown_method_gets_the_near_one():
    with pytest.raises(ValueError, match=r"no method 'simkt'; did you mean 'simkd'\? known: kd, "):
        find_method("simkt")
