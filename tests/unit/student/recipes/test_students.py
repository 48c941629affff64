import pytest
import torch

from teacherfarm.student.recipes.students import default_taps, load_pretrained, make_student

torch.set_num_threads(1)


@pytest.mark.parametrize(
    "source", ["torchvision:squeezenet1_1", "timm:test_vit", "tests.unit.student.pattern_teacher:make_student"]
)
def test_students_have_the_teachers_classes(source):
    student = make_student(source, 7).eval()
    size = 160 if source.startswith("timm") else 64
    assert student(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_students_for_small_images_have_names_and_stages():
    student = make_student("cifar:resnet8", 7).eval()
    assert student(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert default_taps("cifar:resnet8", student, height=32, width=32) == ("layer1", "layer2", "layer3")


def test_a_student_that_fails_on_crops_of_this_size_is_told_to_name_its_taps():
    student = make_student("torchvision:alexnet", 7)
    with pytest.raises(ValueError, match=r"stages of torchvision:alexnet .*--student-taps"):
        default_taps("torchvision:alexnet", student, height=16, width=16)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("resnet18", "expected torchvision:NAME, timm:NAME, cifar:NAME or package.module:function"),
        ("torchvision:resnet81", "did you mean .*resnet18"),
        ("timm:resnet81", "did you mean"),
        ("cifar:resnet81", "did you mean .*resnet8"),
        ("no_such_package:make", "cannot import no_such_package .*PYTHONPATH"),
        ("tests.unit.student.pattern_teacher:absent", "has no 'absent'"),
        ("tests.unit.student.pattern_teacher:make_nothing", "returned a Tensor, expected a torch.nn.Module"),
    ],
)
def test_what_was_expected_is_named(source, words):
    with pytest.raises(ValueError, match=words):
        make_student(source, 7)


def test_pretrained_weights_fit_but_for_the_last_layer(monkeypatch):
    import timm

    create = timm.create_model
    seen = []

    def offline(name, *, pretrained=False, **options):
        seen.append(pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    torch.manual_seed(1)
    student = make_student("timm:resnet10t", 7)
    head = student.fc.weight.clone()
    torch.manual_seed(2)
    load_pretrained(student, "timm:resnet10t")
    assert seen == [False, True]
    torch.manual_seed(2)
    theirs = create("resnet10t", pretrained=False).state_dict()
    assert torch.equal(student.fc.weight, head)
    assert all(torch.equal(value, theirs[name]) for name, value in student.state_dict().items() if "fc." not in name)
    with pytest.raises(ValueError, match="only torchvision: and timm: students have weights"):
        load_pretrained(student, "cifar:resnet8x4")
