"""``teacherfarm keys``: a key is shown once, on standard output alone; the file keeps a digest."""

import re

import pytest

from teacherfarm import cli
from teacherfarm.teacher_server.projects.api_keys import digest_of
from teacherfarm.teacher_server.projects.projects_file import read_projects


@pytest.fixture(autouse=True)
def no_file_from_elsewhere(monkeypatch):
    monkeypatch.delenv("TEACHERFARM_PROJECTS", raising=False)


@pytest.fixture
def keys(tmp_path, capsys):
    """``keys(*arguments)``: exit status, standard output and standard error, with the projects file given."""

    def run(*arguments):
        status = cli.main(["keys", *arguments, "--projects", str(tmp_path / "projects.toml")])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_from_nothing_to_a_key(keys, tmp_path):
    status, out, err = keys("create", "vision", "--note", "alice,\nher cluster")
    assert status == 0
    key = out.strip()
    assert re.fullmatch(r"tf_[0-9a-f]{64}\n", out)
    assert key not in err
    assert "is new and has no limits" in err
    text = (tmp_path / "projects.toml").read_text()
    assert key not in text
    assert "alice, her cluster" in text
    [entry] = read_projects(tmp_path / "projects.toml")
    assert (entry.name, entry.keys) == ("vision", (digest_of(key),))
    _, out, err = keys("create", "vision")
    assert "is new" not in err
    assert read_projects(tmp_path / "projects.toml")[0].keys == (digest_of(key), digest_of(out.strip()))


def test_the_list_shows_what_may_be_used_and_no_whole_digest(keys, tmp_path):
    (tmp_path / "projects.toml").write_text(
        '[projects.vision]\nweight = 2.5\ncrops_per_second = 100\nstreams = 4\nteachers = ["a", "b-*"]\n'
        "[projects.speech]\nteachers = []\n"
    )
    key = keys("create", "vision", "--note", "alice")[1].strip()
    other = keys("create", "vision")[1].strip()
    status, out, _ = keys("list")
    assert status == 0
    lines = [re.split(r"  +", line) for line in out.splitlines()]
    assert lines[0] == ["PROJECT", "WEIGHT", "CROPS/S", "IN FLIGHT", "STREAMS", "TEACHERS", "KEY", "NOTE"]
    assert lines[1][:7] == ["vision", "2.5", "100", "-", "4", "a,b-*", digest_of(key)[:12]]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d alice", lines[1][7])
    assert lines[2][1] == digest_of(other)[:12]
    assert lines[3] == ["speech", "1", "-", "-", "-", "none", "none"]
    assert digest_of(key) not in out


@pytest.mark.parametrize("by", ["id", "digits", "key"])
def test_a_key_is_revoked(keys, tmp_path, by):
    key, other = keys("create", "vision")[1].strip(), keys("create", "vision")[1].strip()
    named = {"id": digest_of(key)[:12], "digits": digest_of(key)[:8].upper(), "key": key}[by]
    status, out, _ = keys("revoke", named)
    assert status == 0
    assert "1 key left" in out
    assert key not in out
    assert read_projects(tmp_path / "projects.toml")[0].keys == (digest_of(other),)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("revoke", "0123abcd"), "has no key with an id '0123abcd'"),
        (("revoke", "0123"), "8 digits or more, got '0123'"),
        (("create", "vision team"), "a project's name is 1 to 63"),
    ],
)
def test_mistakes(keys, arguments, words):
    keys("create", "vision")
    status, out, err = keys(*arguments)
    assert (status, out) == (2, "")
    assert words in err


def test_a_broken_file_is_left_alone(keys, tmp_path):
    file = tmp_path / "projects.toml"
    file.write_text("[projects.a]\nweight = 0\n")
    for arguments in (("create", "a"), ("list",), ("revoke", "0123abcd")):
        status, out, err = keys(*arguments)
        assert (status, out) == (2, "")
        assert "projects.toml, line 2: project 'a': weight must be from 0.001 to 1000" in err
    assert file.read_text() == "[projects.a]\nweight = 0\n"


def test_which_file(tmp_path, monkeypatch, capsys):
    assert cli.main(["keys", "create", "a"]) == 2
    assert "which projects file? --projects FILE, or TEACHERFARM_PROJECTS" in capsys.readouterr().err
    monkeypatch.setenv("TEACHERFARM_PROJECTS", str(tmp_path / "from-environment.toml"))
    assert cli.main(["keys", "create", "a"]) == 0
    assert read_projects(tmp_path / "from-environment.toml")[0].name == "a"
    assert cli.main(["keys", "create", "a", "--projects", str(tmp_path / "none" / "p.toml")]) == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["create", "list", "revoke"])
def test_help_teaches(action, capsys):
    with pytest.raises(SystemExit):
        cli.main(["keys", action, "--help"])
    assert f"example: teacherfarm keys {action}" in capsys.readouterr().out
