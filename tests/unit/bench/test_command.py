"""``python -m bench``: what it lists and refuses."""

import pytest

from bench.__main__ import BENCHMARKS, main


def test_without_a_name_it_lists_what_there_is(capsys):
    assert main([]) == 2
    shown = capsys.readouterr().out
    assert all(name in shown for name in BENCHMARKS)


@pytest.mark.parametrize(
    "arguments",
    [["speed"], ["wire", "--seconds", "0"], ["wire", "--models", "models"], ["wire", "--data", "train"]],
)
def test_wrong_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error" in capsys.readouterr().err
