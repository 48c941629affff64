"""``teacherfarm keys curve``: two files that both ends can use, one of them secret, and words on where they go."""

import stat

import pytest

from teacherfarm import cli
from teacherfarm.protos.curve_keys import PLAIN, read_allow_list, read_pair
from teacherfarm.teacher_server.frontends.curve import ServerCurve, make_pair


def test_it_makes_a_pair_and_says_where_its_halves_go(tmp_path, capsys):
    assert cli.main(["keys", "curve", "--out", str(tmp_path / "keys"), "--name", "farm"]) == 0
    said = capsys.readouterr().out
    secret_file = tmp_path / "keys" / "farm.secret"
    pair = read_pair(secret_file, "x")
    assert read_allow_list(tmp_path / "keys", "x") == {pair.public: "farm"}
    assert stat.S_IMODE(secret_file.stat().st_mode) == 0o600
    assert pair.public in said
    assert pair.secret not in said
    assert "--curve-clients" in said
    assert "client_key=" in said
    curve = ServerCurve(key_file=str(secret_file), clients=str(tmp_path / "keys"))
    assert curve.public_key == pair.public
    assert pair.secret not in repr(curve)


def test_the_machines_name_is_the_default(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("socket.gethostname", lambda: "gpu-7")
    assert cli.main(["keys", "curve", f"--out={tmp_path}"]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gpu-7.public", "gpu-7.secret"]


@pytest.mark.parametrize("name", ["../farm", "a b", ".hidden"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name, capsys):
    assert cli.main(["keys", "curve", f"--out={tmp_path}", f"--name={name}"]) == 2
    assert repr(name) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_pair_is_never_overwritten(tmp_path, capsys):
    arguments = ["keys", "curve", f"--out={tmp_path}", "--name=farm"]
    assert cli.main(arguments) == 0
    before = (tmp_path / "farm.secret").read_text()
    assert cli.main(arguments) == 2
    assert "farm.public is there already" in capsys.readouterr().err
    assert (tmp_path / "farm.secret").read_text() == before


def test_public_keys_can_be_pasted_without_quotes():
    pairs = [make_pair() for _ in range(3)]
    assert all(set(pair.public) <= PLAIN for pair in pairs)
    assert len({pair.secret for pair in pairs}) == 3


def test_help_teaches_by_an_example(capsys):
    with pytest.raises(SystemExit):
        cli.main(["keys", "curve", "--help"])
    assert "--curve-key keys/farm.secret --curve-clients keys/students/" in capsys.readouterr().out
