"""`teacherfarm labels`: one action's module is loaded, the others are names."""

import sys
import types

import pytest

from teacherfarm import cli
from teacherfarm.student.recipes import labels_command
from teacherfarm.student.recipes.labels_command import ACTIONS, Action


@pytest.fixture
def action(monkeypatch):
    """An action that keeps what it was given."""
    seen = []

    def add_arguments(parser):
        parser.add_argument("place")
        parser.add_argument("--all", action="store_true")

    module = types.SimpleNamespace(add_arguments=add_arguments, main=lambda options: seen.append(options) or 3)
    monkeypatch.setitem(sys.modules, "some_action", module)
    rows = (
        Action(name="some", module="some_action", about="does something"),
        Action(name="other", module="not_installed", about="does something else"),
    )
    monkeypatch.setattr(labels_command, "ACTIONS", rows)
    return seen


def test_an_action_is_loaded_when_it_is_chosen_and_no_other(action):
    assert cli.main(["labels", "some", "here", "--all"]) == 3
    assert (action[0].place, action[0].all) == ("here", True)


def test_help_names_every_action_and_loads_none(action, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "some_action")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["labels", "--help"])
    assert "does something else" in capsys.readouterr().out


def test_no_action_is_a_mistake(action, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["labels"])
    assert "ACTION" in capsys.readouterr().err


def test_an_absent_library_of_an_action_is_named(action, capsys):
    assert cli.main(["labels", "other"]) == 1
    assert "'not_installed'" in capsys.readouterr().err


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)
def test_every_action_has_help_of_its_own(action, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["labels", action.name, "--help"])
    assert f"usage: teacherfarm labels {action.name} " in capsys.readouterr().out
