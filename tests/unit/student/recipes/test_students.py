import pytest
import torch

from teacherfarm.student.recipes.students import make_student

torch.set_num_threads(1)


@pytest.mark.parametrize(
    "source", ["torchvision:squeezenet1_1", "timm:test_vit", "tests.unit.student.pattern_teacher:make_student"]
)
def test_students_have_the_teachers_classes(source):
    student = make_student(source, 7).eval()
    size = 160 if source.startswith("timm") else 64
    assert student(torch.zeros(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("resnet18", "expected torchvision:NAME, timm:NAME or package.module:function"),
        ("torchvision:resnet81", "did you mean .*resnet18"),
        ("timm:resnet81", "did you mean"),
        ("no_such_package:make", "cannot import no_such_package .*PYTHONPATH"),
        ("tests.unit.student.pattern_teacher:absent", "has no 'absent'"),
        ("tests.unit.student.pattern_teacher:make_nothing", "returned a Tensor, expected a torch.nn.Module"),
    ],
)
def test_what_was_expected_is_named(source, words):
    with pytest.raises(ValueError, match=words):
        make_student(source, 7)
