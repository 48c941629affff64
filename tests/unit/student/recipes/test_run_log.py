"""A run's figures as rows: parts of the loss that come and go with phases, and what a resumed run keeps."""

import csv

from teacherfarm.student.recipes.run_log import PassRow, RunLog


def row(epoch):
    return PassRow(
        epoch=epoch,
        steps=10 * epoch,
        learning_rate=0.1,
        loss=3.0,
        images_per_s=5.0,
        stall=0.25,
        unanswered=1,
        val_loss=2.0,
        val_top1=0.5,
        val_top5=0.75,
    )


def test_parts_are_columns_and_scalars(tmp_path):
    with RunLog(tmp_path) as log:
        log.add(row(1), {"map": 3.0})
        log.add(row(2), {"kd": 1.0, "ce": 2.0})
    with (tmp_path / "log.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["loss/map"], first["loss/kd"]) == ("3.0", "")
    assert (second["loss/map"], second["loss/kd"], second["loss/ce"], second["loss"]) == ("", "1.0", "2.0", "3.0")
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"pass/loss/map" in events
    assert b"pass/loss/ce" in events


def test_a_resumed_run_keeps_the_rows_before_it(tmp_path):
    with RunLog(tmp_path) as log:
        for epoch in (1, 2, 3):
            log.add(row(epoch), {"kd": float(epoch), "ce": 0.5})
    with RunLog(tmp_path, resume_epoch=2) as log:
        assert log.rows == [row(1), row(2)]
        assert log.parts == [{"kd": 1.0, "ce": 0.5}, {"kd": 2.0, "ce": 0.5}]
        log.add(row(3), {"kd": 9.0, "ce": 0.5})
    assert [line.rpartition(",")[0].rpartition(",")[2] for line in (tmp_path / "log.csv").read_text().splitlines()] == [
        "loss/kd", "1.0", "2.0", "9.0",
    ]  # fmt: skip
