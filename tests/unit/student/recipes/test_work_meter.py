from teacherfarm.student.recipes.work_meter import WorkMeter


def test_a_log_gets_lines_with_rate_and_time_left(capsys):
    with WorkMeter("labelling", total=1000, done_before=400, unit="label", line_every_s=0) as meter:
        meter(100)
        assert meter.line(2.0) == "labelling: 500 of 1000, 50 labels/s, 00:10 left"
        meter(0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("labelling: 500 of 1000, ") for line in lines)


def test_lines_come_seldom(capsys):
    with WorkMeter("labelling", total=10, done_before=0, unit="label") as meter:
        meter(1)
        assert meter.line(0.0).endswith("1 of 10, 0 labels/s, ? left")
    assert capsys.readouterr().err == ""
