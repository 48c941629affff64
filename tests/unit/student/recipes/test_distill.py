import argparse
import csv
import json
import signal

import pytest
import torch

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.checkpoint import list_checkpoints
from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.methods.method import Asks
from teacherfarm.student.recipes.distill import add_arguments, distill
from teacherfarm.student.recipes.distill_data import DistillData
from teacherfarm.student.recipes.kept_labels import KeptLabels
from teacherfarm.student.recipes.ranks import Ranks
from tests.unit.student.image_folders import write_images
from tests.unit.student.pattern_teacher import CLASSES, PatternTeacher

torch.set_num_threads(1)
ALONE = Ranks(rank=0, num_ranks=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", CLASSES, 8)
    write_images(folder / "val", CLASSES, 3, seed=1)
    return folder


def options(data, out, *more):
    always = ["--teacher-address", "zmq://unused:1", "--student", "tests.unit.student.pattern_teacher:make_student"]
    short = ["--workers", 0, "--batch-size", 8, "--epochs", 4, "--lr", 0.3, "--device", "cpu", "--measure-link", 0]
    given = list(map(str, [data, "--out", out, *always, *short, *more]))
    parser = argparse.ArgumentParser()
    add_arguments(parser, given)
    return KeptLabels(parser.parse_args(given))


def always(teacher):
    """Connects to this teacher, whatever it is asked."""

    def connect(*, spec=None, digest="", by_reference=None):
        teacher.spec = (spec or LabelSpec()).resolve(teacher.card)
        return teacher

    return connect


def weights(out):
    return torch.load(out / "student.pt")


def test_a_student_learns_from_the_stream(data, tmp_path, capsys):
    teacher = PatternTeacher()
    assert (
        distill(
            options(data, tmp_path, "--crops-per-image", 2, "--epochs", 8, "--lr-per", "step"), ALONE, always(teacher)
        )
        == 0
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["top1"] > 0.9
    assert result["agreement"] > 0.9
    assert result["teacher_top1"] == 1
    assert result["teacher_digest"] == "digest-of-patterns"
    said = capsys.readouterr().out
    assert "48 images to train on, 18 to evaluate; 6 of 6 classes" in said
    assert "epoch 8/8  loss" in said
    assert "-bound" in said
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    # m = 2: three passes of two epochs, then two single-crop ones.
    assert [int(row["epoch"]) for row in rows] == [2, 4, 6, 7, 8]
    assert [int(row["steps"]) for row in rows] == [12, 24, 36, 42, 48]
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert any((tmp_path / "tensorboard").iterdir())
    assert teacher.untaken == 0
    assert len(teacher.asked) == 3 * 96 + 2 * 48 + 18
    passes = [frozenset(teacher.keys[12 * n : 12 * n + 12]) for n in range(3)]
    assert len(set(passes)) == 3  # every pass has other crops


@pytest.mark.parametrize(
    "more",
    [
        [
            "--order",
            "permute",
            "--views",
            50,
            "--crops-per-image",
            2,
            "--ema",
            0.9,
            "--optimizer",
            "adamw",
            "--lr",
            0.01,
        ],
        [
            "--clip-norm",
            1,
            "--warmup-epochs",
            1,
            "--method",
            "kd",
            "--hard-weight",
            0.3,
            "--accumulate",
            4,
            "--amp",
            "bf16",
        ],
    ],
)
@pytest.mark.parametrize("stop_at", [8, 17])
def test_a_stopped_run_goes_on_to_the_same_bits(data, tmp_path, more, stop_at, capsys):
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    assert distill(options(data, undisturbed, *more), ALONE, always(PatternTeacher())) == 0

    teacher = PatternTeacher()
    submit, count = teacher.submit, 0

    def submit_and_stop(crops, **arguments):
        nonlocal count
        count += 1
        if count == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return submit(crops, **arguments)

    teacher.submit = submit_and_stop
    assert distill(options(data, stopped, *more), ALONE, always(teacher)) == 130
    assert "--resume goes on from there" in capsys.readouterr().out
    assert not (stopped / "student.pt").exists()
    assert distill(options(data, stopped, *more, "--resume"), ALONE, always(PatternTeacher())) == 0
    torch.testing.assert_close(weights(stopped), weights(undisturbed), rtol=0, atol=0)
    assert (stopped / "log.csv").read_text().count("\n") == (undisturbed / "log.csv").read_text().count("\n")
    # Nothing left to do is fine, too: only the validation images are asked once more.
    again = PatternTeacher()
    assert distill(options(data, stopped, *more, "--resume"), ALONE, always(again)) == 0
    assert len(again.asked) == 18
    torch.testing.assert_close(weights(stopped), weights(undisturbed), rtol=0, atol=0)


def test_the_student_alone_asks_nobody_for_crops(data, tmp_path):
    teacher = PatternTeacher()
    assert distill(options(data, tmp_path, "--method", "kd", "--soft-weight", 0), ALONE, always(teacher)) == 0
    assert len(teacher.asked) == 18  # the evaluation's
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(row["loss"] == row["loss/ce"] for row in rows)
    assert json.loads((tmp_path / "result.json").read_text())["top1"] > 0.9


def test_a_phase_without_a_teacher_cuts_no_crops_for_one(data, tmp_path):
    of = DistillData(options(data, tmp_path), PatternTeacher().card, ALONE)
    for spec, size in ((None, 0), (LabelSpec(), 16)):
        teacher = None if spec is None else PatternTeacher()
        batch, labels = next(iter(of.train_loader(1, teacher, Asks(spec=spec))))
        assert batch["crops"].shape == (8, size, size, 3)
        assert batch["images"].shape == (8, 16, 16, 3)
        assert len(labels) == 8


def make_plain(num_classes):
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, num_classes))


def test_batches_of_a_step_are_one_large_batch(data, tmp_path):
    plain = ["--student", "tests.unit.student.recipes.test_distill:make_plain", "--method", "kd", "--epochs", 2]
    for name, more in (("whole", ["--batch-size", 24]), ("parts", ["--batch-size", 8, "--accumulate", 3])):
        assert distill(options(data, tmp_path / name, *plain, *more), ALONE, always(PatternTeacher())) == 0
    torch.testing.assert_close(weights(tmp_path / "parts"), weights(tmp_path / "whole"), rtol=1e-4, atol=1e-6)
    rows = [list(csv.DictReader((tmp_path / name / "log.csv").read_text().splitlines())) for name in ("whole", "parts")]
    assert [row["steps"] for row in rows[0]] == [row["steps"] for row in rows[1]] == ["2", "4"]
    # Six batches in steps of four and two.
    uneven = ["--batch-size", 8, "--accumulate", 4, "--checkpoint-steps", 1, "--keep", 9]
    assert distill(options(data, tmp_path / "uneven", *plain, *uneven), ALONE, always(PatternTeacher())) == 0
    assert [path.stem for path in list_checkpoints(tmp_path / "uneven")] == [f"step-{n:09}" for n in (1, 2, 3, 4)]


def test_averaged_weights_are_what_is_evaluated_and_kept(data, tmp_path):
    assert distill(options(data, tmp_path, "--ema", 0.9), ALONE, always(PatternTeacher())) == 0
    parts = torch.load(list_checkpoints(tmp_path)[-1])["parts"]
    assert parts["ema"]["n_averaged"] == 24
    for name, value in weights(tmp_path).items():
        torch.testing.assert_close(value, parts["ema"][f"module.student.model.{name}"], rtol=0, atol=0)
        if value.is_floating_point():
            assert not torch.equal(value, parts["model"][f"student.model.{name}"])
    *_, last = csv.DictReader((tmp_path / "log.csv").read_text().splitlines())
    assert float(last["val_loss"]) == json.loads((tmp_path / "result.json").read_text())["loss"]


def test_hard_labels_help_out_when_no_teacher_answers(data, tmp_path):
    teacher = PatternTeacher()
    answer = teacher.answer

    def silent(crops):
        labels = answer(crops)
        labels.weight[:] = 0
        return labels

    teacher.answer = silent
    assert distill(options(data, tmp_path, "--on-starved", "skip", "--hard-fallback"), ALONE, always(teacher)) == 0
    assert json.loads((tmp_path / "result.json").read_text())["top1"] > 0.8


def test_targets_are_the_teachers_numbers(data, tmp_path):
    write_images(tmp_path / "train", ("cat", "griffin"), 1)
    write_images(tmp_path / "val", ("cat",), 1)
    of = DistillData(options(tmp_path, tmp_path / "out"), PatternTeacher().card, ALONE)
    batch = {"targets": torch.tensor([0, 1, 0, NO_TARGET]), "weight": torch.tensor([1.0, 1, 0, 1])}
    assert of.train.targets(batch).tolist() == [2, NO_TARGET, NO_TARGET, NO_TARGET]


def test_the_seed_chooses_the_views(data, tmp_path):
    def schedule(*more):
        return DistillData(options(data, tmp_path, *more), PatternTeacher().card, ALONE).schedule

    permuted = ["--order", "permute", "--views", 90]
    one, other = schedule(*permuted, "--seed", 1), schedule(*permuted, "--seed", 2)
    assert [one.seed, other.seed] == [1, 2]
    assert schedule("--seed", 1).seed == 0


def test_ranks_have_equally_many_batches_of_their_own_images(data, tmp_path):
    card, teacher = PatternTeacher().card, PatternTeacher()
    samples = []
    for rank in range(3):
        ranks = Ranks(rank=rank, num_ranks=3, device=torch.device("cpu"))
        loader = DistillData(options(data, tmp_path), card, ranks).train_loader(1, teacher, Asks(spec=LabelSpec()))
        loader.set_epoch(1)
        assert len(loader) == 2
        samples.append([sample for batch, _ in loader for sample in batch["samples"].tolist()])
    assert sorted(sample for share in samples for sample in share) == list(range(48))


def test_checkpoints_come_every_so_many_steps(data, tmp_path):
    distill(
        options(data, tmp_path, "--epochs", 1, "--checkpoint-steps", 2, "--keep", 9), ALONE, always(PatternTeacher())
    )
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"step-{n:09}.pt" for n in (2, 4, 6)]


def test_an_older_run_is_not_overwritten(data, tmp_path):
    distill(options(data, tmp_path, "--epochs", 1), ALONE, always(PatternTeacher()))
    with pytest.raises(ValueError, match="holds an earlier run: --resume goes on with it"):
        distill(options(data, tmp_path, "--epochs", 1), ALONE, always(PatternTeacher()))
    with pytest.raises(ValueError, match="fkd's top_k = 5, this run has 3"):
        distill(options(data, tmp_path, "--epochs", 1, "--top-k", 3, "--resume"), ALONE, always(PatternTeacher()))
    with pytest.raises(ValueError, match="epochs = 1, this run has 2"):
        distill(options(data, tmp_path, "--epochs", 2, "--resume"), ALONE, always(PatternTeacher()))


def test_top_k_and_starved_crops(data, tmp_path):
    teacher = PatternTeacher()
    answer = teacher.answer

    def half_answered(crops):
        labels = answer(crops)
        labels.weight[::2] = 0
        return labels

    teacher.answer = half_answered
    more = ["--top-k", 3, "--temperature", 2, "--on-starved", "skip", "--hard-fallback", "--form", "marginal-renorm"]
    assert distill(options(data, tmp_path, *more), ALONE, always(teacher)) == 0
    assert teacher.spec == LabelSpec(outputs=("labels",), top_k=3, temperature=2.0)
    with (tmp_path / "log.csv").open() as file:
        assert [int(row["unanswered"]) for row in csv.DictReader(file)] == [24] * 4


def test_unreadable_images_and_unknown_classes_do_not_stop_it(tmp_path, caplog):
    write_images(tmp_path / "data" / "train", (*CLASSES[:3], "griffin"), 4)
    write_images(tmp_path / "data" / "val", CLASSES[:2], 2)
    (tmp_path / "data" / "train" / "ant" / "0000.png").write_bytes(b"no image")
    assert distill(options(tmp_path / "data", tmp_path / "out", "--epochs", 1), ALONE, always(PatternTeacher())) == 0
    assert "ant/0000:" in caplog.text
    with pytest.raises(ValueError, match=r"method kd learns from the data's own labels.*griffin"):
        distill(options(tmp_path / "data", tmp_path / "2", "--method", "kd"), ALONE, always(PatternTeacher()))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--batch-size", 2, "--crops-per-image", 4], "must hold one image's 4, got 2"),
        (["--hard-fallback"], "--on-starved skip only"),
        (["--accumulate", 0], "--accumulate counts the batches of a step, at least 1, got 0"),
        (["--lr-steps", 3], "--lr-schedule steps and --lr-steps EPOCH ... go together"),
        (["--method", "simkd"], "no feature maps are known of this student"),
        (["--method", "funmatch", "--record", "labels"], "never seen again: leave --labels and --record out"),
        (["--method", "meal-v2", "--cutmix", "--record", "labels"], "never seen again: leave --labels and --record"),
        (["--mix", "fkd", "--on-starved", "skip", "--hard-fallback"], "method fkd mixes crops of several: leave one"),
        (["--views", 100], "order 'fresh' never repeats a view"),
        (["--val-folder", "test"], r"has no folder 'test' \(its folders are train, val\)"),
        (["--student", "resnet18"], "expected torchvision:NAME"),
        (
            ["--student", "tests.unit.student.pattern_teacher:make_two_headed"],
            r"returned tuple in training, not logits",
        ),
        (["--lr", "1e30"], "the loss is .* try a lower --lr"),
    ],
)
def test_mistakes_are_named(data, tmp_path, more, words):
    with pytest.raises(ValueError, match=words):
        distill(options(data, tmp_path / "out", "--epochs", 9, *more), ALONE, always(PatternTeacher()))


def test_help_teaches(capsys):
    parser = argparse.ArgumentParser(prog="teacherfarm distill")
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    said = capsys.readouterr().out
    assert "teacherfarm distill DATA --teacher-address zmq://127.0.0.1:7001 --student torchvision:resnet18" in said
    assert "torchrun" in said
