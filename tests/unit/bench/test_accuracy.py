"""The accuracy study's bookkeeping: who takes part, what counts as a gain, what is kept and what is made anew."""

import math
import tarfile

import pytest

from bench.accuracy import fingerprint, parse, settings_of, unpacked
from bench.accuracy_cells import ALONE, LEFT_OUT, Budget, Cell, Contestant, contestants, keep_cell, read_cell
from bench.accuracy_table import READING, Score, table, write_page
from teacherfarm.student.methods.registry import METHODS
from tests.methods import make_card


def cell(name, seed, top1, key="k"):
    return Cell(name=name, seed=seed, top1=top1, cpu_s=60, crop_mb=10, answer_mb=2.5, key=key)


def test_every_method_takes_part_or_is_left_out_for_a_reason():
    taking_part = {one.method for one in contestants(4)}
    assert taking_part | LEFT_OUT.keys() == set(METHODS)
    assert not taking_part & LEFT_OUT.keys()
    names = [one.name for one in contestants(4)]
    assert names[0] == ALONE
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("one", contestants(4), ids=lambda one: one.name)
def test_the_command_knows_every_contestants_options(one):
    given = vars(settings_of(one))
    assert sum(name.startswith("method.") for name in given) == len(one.options) / 2


def test_a_gain_counts_when_it_is_larger_than_its_own_deviation():
    alone = Score.of([cell(ALONE, seed, top1) for seed, top1 in enumerate((0.50, 0.52, 0.54))])
    assert (alone.mean, alone.deviation) == (pytest.approx(52), pytest.approx(2))
    better = Score.of([cell("kd", seed, top1) for seed, top1 in enumerate((0.525, 0.545, 0.565))])
    much_better = Score.of([cell("kd", seed, top1) for seed, top1 in enumerate((0.535, 0.545, 0.555))])
    assert math.hypot(2, 2) > 2.5 > math.hypot(2, 1)
    assert (better.beats(alone), much_better.beats(alone)) == (False, True)
    assert Score.of([cell("kd", 0, 0.9)]).beats(alone) is None


def test_the_table_has_what_is_finished():
    both = [Contestant(name=ALONE, method="kd"), Contestant(name="kd", method="kd"), Contestant(name="at", method="at")]
    cells = {ALONE: [cell(ALONE, 0, 0.5), cell(ALONE, 1, 0.51)], "kd": [cell("kd", 0, 0.6), cell("kd", 1, 0.61)]}
    lines = table(both, cells, {ALONE: 0, "kd": 20, "at": 30}).splitlines()
    assert lines[2:] == [
        "| alone | 50.50 ± 0.71 | 2 |  |  | 0 | 10 + 2 | 60 |",
        "| kd | 60.50 ± 0.71 | 2 | +10.00 | yes | 20 | 10 + 2 | 60 |",
    ]


def test_a_finished_cell_is_kept_until_the_conditions_change(tmp_path):
    assert read_cell(tmp_path, "simkd f=2", 1, "k") is None
    keep_cell(tmp_path, cell("simkd f=2", 1, 0.5))
    assert read_cell(tmp_path, "simkd f=2", 1, "k") == cell("simkd f=2", 1, 0.5)
    assert read_cell(tmp_path, "simkd f=2", 1, "other") is None
    assert read_cell(tmp_path, "simkd f=2", 2, "k") is None


def test_conditions_are_the_budget_the_options_and_the_teacher():
    card = make_card()
    budget = Budget(student="cifar:resnet8", epochs=4)
    one = Contestant(name="kd", method="kd")
    keys = {
        fingerprint(one, budget, card),
        fingerprint(one, Budget(student="cifar:resnet8", epochs=5), card),
        fingerprint(one, budget, make_card(teacher_digest="another")),
        fingerprint(Contestant(name="kd", method="kd", options=("--temperature", "2")), budget, card),
    }
    assert len(keys) == 4


def test_what_people_wrote_below_the_figures_stays(tmp_path):
    page = tmp_path / "ACCURACY.md"
    write_page(page, ["first"], "| old |", contestants(4))
    assert page.read_text().endswith(f"{READING}\n")
    page.write_text(page.read_text() + "\nKD wins.\n")
    write_page(page, ["second"], "| new |", contestants(4))
    text = page.read_text()
    assert "- second\n" in text
    assert "| new |" in text
    assert "old" not in text
    assert text.endswith(f"{READING}\n\nKD wins.\n")


def test_an_archive_is_unpacked_once(tmp_path):
    image = tmp_path / "set" / "train" / "cat" / "1.jpg"
    image.parent.mkdir(parents=True)
    image.touch()
    (tmp_path / "set" / "test").mkdir()
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "set", "set")
    out = tmp_path / "out"
    out.mkdir()
    assert unpacked(tmp_path / "set.tar.gz", out) == out / "data" / "set"
    (tmp_path / "set.tar.gz").write_bytes(b"not read again")
    assert unpacked(tmp_path / "set.tar.gz", out) == out / "data" / "set"
    assert unpacked(tmp_path / "set", out) == tmp_path / "set"
    with pytest.raises(SystemExit, match="no train and test"):
        unpacked(out, out)


def test_an_unknown_contestant_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(["--data", "x", "--out", str(tmp_path), "--only", "kdd"])
    assert "there is no contestant 'kdd': alone, kd" in capsys.readouterr().err
