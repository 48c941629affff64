import argparse
import dataclasses
import errno
import json
import signal

import numpy as np
import pytest
import torch

from teacherfarm import cli
from teacherfarm.label_store.journal import JournalWriter
from teacherfarm.label_store.recorded_labels import RecordedLabels
from teacherfarm.protos.faults import DamagedLabels, LabelsMismatch, LabelsMissing, ReplayRefused
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.image_sources import image_source
from teacherfarm.student.methods.method import MethodMismatch
from teacherfarm.student.methods.registry import find_method
from teacherfarm.student.recipes import distill as recipe
from teacherfarm.student.recipes.kept_labels import KeptLabels
from teacherfarm.student.recipes.phase_training import PhaseTraining
from teacherfarm.student.recipes.ranks import Ranks
from tests.unit.student.image_folders import write_images
from tests.unit.student.pattern_teacher import CLASSES, PatternTeacher

torch.set_num_threads(1)
ALONE = Ranks(rank=0, num_ranks=1, device=torch.device("cpu"))
ADDRESS = ["--teacher-address", "zmq://unused:1"]
IN_TURN = ["--order", "cycle", "--views", 4]

pytestmark = pytest.mark.filterwarnings("ignore:.*views per sample are replayed")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", CLASSES, 4)
    write_images(folder / "val", CLASSES, 2, seed=1)
    return folder


@pytest.fixture
def trained(monkeypatch):
    """Every batch that was trained on: its label records, weights and loss."""
    seen = []
    backward = PhaseTraining.backward

    def noted(self, pixels, step, **how):
        parts = backward(self, pixels, step, **how)
        loss = sum(part.item() for part in parts.values())
        seen.append((step.labels.records.tobytes(), step.labels.weight.tobytes(), loss))
        return parts

    monkeypatch.setattr(PhaseTraining, "backward", noted)
    return seen


def options(data, out, *more):
    always = ["--student", "tests.unit.student.pattern_teacher:make_student", "--workers", 0, "--device", "cpu"]
    short = ["--batch-size", 8, "--epochs", 4, "--lr", 0.3, "--measure-link", 0]
    given = list(map(str, [data, "--out", out, *always, *short, *more]))
    parser = argparse.ArgumentParser()
    recipe.add_arguments(parser, given)
    return parser.parse_args(given)


def run(data, out, teacher, *more):
    def connect(*, spec=None, digest="", by_reference=None):
        teacher.spec = (spec or LabelSpec()).resolve(teacher.card)
        return teacher

    return recipe.distill(KeptLabels(options(data, out, *more)), ALONE, connect)


def taken(seen):
    batches = list(seen)
    seen.clear()
    return batches


@pytest.mark.parametrize(
    "more",
    [
        IN_TURN,
        ["--order", "permute", "--views", 5, "--crops-per-image", 2, "--epochs", 6, "--ema", 0.9],
        [*IN_TURN, "--top-k", 3, "--temperature", 2, "--form", "marginal-renorm"],
    ],
    ids=["in turn", "drawn, two at once", "top-3"],
)
def test_a_run_that_replays_equals_the_run_that_recorded(data, tmp_path, trained, more, capsys):
    labels = tmp_path / "labels"
    assert run(data, tmp_path / "1", PatternTeacher(), *ADDRESS, "--record", labels, *more) == 0
    assert f"--labels {labels} --order {more[1]} trains from the same ones" in capsys.readouterr().out
    first = taken(trained)
    assert run(data, tmp_path / "2", None, "--labels", labels, *more) == 0
    assert taken(trained) == first
    weights = [torch.load(tmp_path / name / "student.pt") for name in "12"]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    said = capsys.readouterr().out
    assert "teacher  patterns: 6 classes, digest digest-of-pa" in said  # the card lies beside the labels
    assert f"labels   {labels}: " in said
    result = json.loads((tmp_path / "2" / "result.json").read_text())
    assert result["agreement"] is None
    assert result["top1"] == json.loads((tmp_path / "1" / "result.json").read_text())["top1"]


def test_fresh_crops_replay_in_turn(data, tmp_path, trained):
    assert run(data, tmp_path / "1", PatternTeacher(), *ADDRESS, "--record", tmp_path / "labels") == 0
    first = taken(trained)
    with pytest.raises(ReplayRefused, match="'fresh' never repeats a view"):
        run(data, tmp_path / "2", None, "--labels", tmp_path / "labels", "--order", "fresh")
    assert run(data, tmp_path / "2", None, "--labels", tmp_path / "labels", "--order", "cycle") == 0
    assert taken(trained) == first


def test_a_recording_that_was_stopped_and_resumed_replays(data, tmp_path, trained):
    teacher, labels = PatternTeacher(), tmp_path / "labels"
    submit, count = teacher.submit, 0

    def submit_and_stop(crops, **arguments):
        nonlocal count
        count += 1
        if count == 8:
            signal.raise_signal(signal.SIGTERM)
        return submit(crops, **arguments)

    teacher.submit = submit_and_stop
    both = [*ADDRESS, "--record", labels, *IN_TURN]
    assert run(data, tmp_path / "1", teacher, *both) == 130
    assert 0 < len(RecordedLabels.open(str(labels))) < 24 * 4
    assert run(data, tmp_path / "1", PatternTeacher(), *both, "--resume") == 0
    first = taken(trained)
    assert len(RecordedLabels.open(str(labels))) == RecordedLabels.open(str(labels)).num_sealed == 24 * 4
    assert run(data, tmp_path / "2", None, "--labels", labels, *IN_TURN) == 0
    assert taken(trained) == first


def test_with_both_nothing_is_asked_twice(data, tmp_path, trained):
    teacher, labels = PatternTeacher(), tmp_path / "labels"
    twice = [*ADDRESS, "--labels", labels, "--record", labels, "--order", "cycle", "--views", 2]
    assert run(data, tmp_path / "1", teacher, *twice) == 0
    assert len(teacher.asked) == 24 * 2 + 12  # four epochs of two views, and the evaluation
    first = taken(trained)
    again = PatternTeacher()
    assert run(data, tmp_path / "2", again, *twice) == 0
    assert len(again.asked) == 12
    assert taken(trained) == first


def test_m_of_the_recorded_views_as_in_fkd(data, tmp_path, trained, monkeypatch):
    labels, images = tmp_path / "labels", 24
    run(data, tmp_path / "1", PatternTeacher(), *ADDRESS, "--record", labels, "--order", "cycle", "--views", 8,
        "--epochs", 8)  # fmt: skip
    taken(trained)
    read, soft_labels = [], RecordedLabels.soft_labels

    def noted(self, rows, views):
        read.append(list(zip(rows.tolist(), views.tolist(), strict=True)))
        return soft_labels(self, rows, views)

    monkeypatch.setattr(RecordedLabels, "soft_labels", noted)
    rates, of = [], PhaseTraining.rate
    monkeypatch.setattr(PhaseTraining, "rate", lambda *a: rates.append(of(*a)) or rates[-1])
    with pytest.warns(UserWarning, match=r"8 views per sample are replayed.*at least 50"):
        run(data, tmp_path / "2", None, "--labels", labels, "--crops-per-image", 4, "--epochs", 12, "--seed", 3)
    # Two passes of four epochs each, then four single-crop ones; six batches in each.
    assert len(read) == len(trained) == 2 * 12 + 4 * 3
    assert len(set(rates[:24])) == 2
    assert len(set(rates)) == 6
    for batches, crops in ((read[:12], 4), (read[12:24], 4), (read[24:27], 1)):
        views = {}
        for batch in batches:
            assert len(batch) == 8
            # Crop-index-major: the first crop of every image, then the second ones.
            assert [row for row, _ in batch] == [row for row, _ in batch[: 8 // crops]] * crops
            for row, view in batch:
                views.setdefault(row, []).append(view)
        assert len(views) == images
        assert all(len(set(drawn)) == crops for drawn in views.values())
    first, second = ({crop for batch in part for crop in batch} for part in (read[:12], read[12:24]))
    assert first != second  # drawn anew at each visit
    assert {view for batch in read for _, view in batch} == set(range(8))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--crop-scale", 0.1, 0.9], r"plan.scale \[0.5, 1.0\], wanted is \[0.1, 0.9\]"),
        (["--teacher-address", "zmq://unused:1"], "teacher_digest 'digest-of-patterns', wanted is 'digest-of-others'"),
    ],
)
def test_other_labels_than_asked_are_refused(data, tmp_path, more, words):
    labels = tmp_path / "labels"
    run(data, tmp_path / "1", PatternTeacher(), *ADDRESS, "--record", labels, *IN_TURN)
    other = PatternTeacher()
    other.card = dataclasses.replace(other.card, teacher_digest="digest-of-others")
    with pytest.raises(LabelsMismatch, match=f"{words}.*record anew"):
        run(data, tmp_path / "2", other if "--teacher-address" in more else None, "--labels", labels, *more)


def test_labels_that_hold_too_little_for_a_method_are_refused(data, tmp_path):
    labels, top = tmp_path / "labels", ["--top-k", 3, "--temperature", 2, *IN_TURN]
    run(data, tmp_path / "1", PatternTeacher(), *ADDRESS, "--record", labels, *top)
    with pytest.raises(MethodMismatch, match="needs the whole distribution, the labels hold its top 3"):
        run(data, tmp_path / "2", None, "--labels", labels, "--method", "dkd")
    with pytest.raises(MethodMismatch, match="labels keep 3 classes, the method wants the 5"):
        run(data, tmp_path / "3", None, "--labels", labels, "--top-k", 5, "--temperature", 2)


def test_what_was_not_recorded_ends_a_replay_or_is_left_out(data, tmp_path, trained):
    labels = tmp_path / "labels"
    run(data, tmp_path / "1", PatternTeacher(), *ADDRESS, "--record", labels, *IN_TURN, "--epochs", 3)
    taken(trained)
    with pytest.raises(LabelsMissing, match=r"view 3 of '.*holds 72 of 96"):
        run(data, tmp_path / "2", None, "--labels", labels, "--order", "cycle")
    taken(trained)
    assert run(data, tmp_path / "3", None, "--labels", labels, "--order", "cycle", "--on-starved", "skip") == 0
    weights = [np.frombuffer(weight, np.float32) for _, weight, _ in trained]
    assert [weight.any() for weight in weights] == [True] * 9 + [False] * 3


def test_the_labels_decide_what_the_options_leave_open(data, tmp_path):
    labels = tmp_path / "labels"
    run(data, tmp_path / "1", PatternTeacher(), *ADDRESS, "--record", labels,
        "--top-k", 3, "--temperature", 4, *IN_TURN, "--seed", 7)  # fmt: skip
    kept = KeptLabels(options(data, tmp_path / "2", "--labels", labels))
    filled = kept.options
    assert (filled.order, filled.views) == ("permute", 4)
    card = PatternTeacher().card
    decided = [kept.decided_for(find_method(name), card) for name in ("fkd", "kd", "sskd")]
    assert decided == [{"top_k": 3, "temperature": 4.0}, {"temperature": 4.0}, {}]
    assert kept.plan(kept.card(None), image_source(data / "train")).seed == 7
    alone = KeptLabels(options(data, tmp_path / "2", *ADDRESS)).options
    assert (alone.order, alone.views) == ("fresh", None)
    streamed = KeptLabels(options(data, tmp_path / "2", *ADDRESS))
    few = dataclasses.replace(card, num_classes=4, classes=())
    assert streamed.decided_for(find_method("fkd"), card) == {}
    assert streamed.decided_for(find_method("fkd"), few) == {"top_k": 4}
    (labels / "card.json").unlink()
    card = kept.card(None)
    assert (card.name, card.num_classes, card.classes) == ("patterns", 6, ())
    (labels / "card.json").write_text("{}")
    with pytest.raises(DamagedLabels, match=r"card.json.*remove it"):
        kept.card(None)


def test_fkds_files_train_as_the_labels_that_they_were_made_of(data, tmp_path, trained):
    labels, fkd, again = tmp_path / "labels", tmp_path / "fkd", tmp_path / "again"
    full = ["--form", "full"]
    run(data, tmp_path / "1", PatternTeacher(), *ADDRESS, "--record", labels, *IN_TURN, *full)
    taken(trained)
    assert cli.main(["labels", "export", "fkd", str(labels), "--out", str(fkd), "--form", "full"]) == 0
    source = ["--data", str(data / "train"), "--card", str(labels / "card.json")]
    assert cli.main(["labels", "import", "fkd", str(fkd), *source, "--out", str(again)]) == 0
    assert RecordedLabels.open(str(again)).manifest.plan is None
    run(data, tmp_path / "2", None, "--labels", labels, "--seed", 0, *full)
    before = taken(trained)
    run(data, tmp_path / "3", None, "--labels", again, "--seed", 0, *full)
    # Labels and pixels: the loss is of both.
    assert taken(trained) == before
    for more in (["--crop-scale", 0.1, 0.9], ["--record", tmp_path / "other", *ADDRESS]):
        kept = KeptLabels(options(data, tmp_path / "4", "--labels", again, *more))
        with pytest.raises(ValueError, match=f"a box of its own for each label: leave {more[0]} out"):
            kept.plan(kept.card(PatternTeacher()), image_source(data / "train"))


def test_somebody_must_label(data, tmp_path):
    with pytest.raises(ValueError, match="Give --teacher-address ADDRESS, or --labels DIR or --label-maps DIR"):
        KeptLabels(options(data, tmp_path))
    with pytest.raises(ValueError, match="no recorded labels in"):
        KeptLabels(options(data, tmp_path, "--labels", tmp_path / "none"))
    run(data, tmp_path / "1", PatternTeacher(), *ADDRESS, "--record", tmp_path / "labels", *IN_TURN)
    with pytest.raises(ValueError, match="--record keeps what a teacher streams"):
        KeptLabels(options(data, tmp_path, "--labels", tmp_path / "labels", "--record", tmp_path / "more"))


def test_a_full_disk_is_said_at_the_end_and_by_the_exit(data, tmp_path, trained, monkeypatch, capsys):
    run(data, tmp_path / "1", PatternTeacher(), *ADDRESS, *IN_TURN)
    streamed = taken(trained)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JournalWriter, "append", full)
    assert run(data, tmp_path / "2", PatternTeacher(), *ADDRESS, "--record", tmp_path / "labels", *IN_TURN) == 1
    assert taken(trained) == streamed
    said = capsys.readouterr().out
    assert said.strip().splitlines()[-1].startswith("recording stopped: ")
    assert "No space left" in said
    assert (tmp_path / "2" / "student.pt").exists()
