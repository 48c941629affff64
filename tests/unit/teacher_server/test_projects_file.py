"""The projects file: what it may hold, and that every mistake is named with its file and line."""

import dataclasses
import os
import re
import stat
import threading
import tomllib
from pathlib import Path

import pytest

from teacherfarm.teacher_server.projects.api_keys import digest_of
from teacherfarm.teacher_server.projects.project import Allowance
from teacherfarm.teacher_server.projects.projects_edit import add_key, comment_of, remove_key, rewrite
from teacherfarm.teacher_server.projects.projects_file import (
    BadProjectsFile,
    ProjectEntry,
    parse_projects,
    read_projects,
)

A, B = digest_of("a"), digest_of("b")

WHOLE = f"""\
# our farm
[projects.vision]   # three teams
weight = 3
crops_per_second = 0.5
crops_in_flight = 64
streams = 4
teachers = ["vit-*", "resnet50"]
datasets = ["imagenet*"]
share_labels = true
keys = [
    "{A}", # 2026-01-01 alice
    "{B}",
]

[projects."my.speech"]
"""


def test_everything_that_a_project_may_have():
    vision, speech = parse_projects(WHOLE, "p.toml")
    assert vision == ProjectEntry(
        name="vision",
        allowance=Allowance(
            weight=3,
            crops_per_second=0.5,
            crops_in_flight=64,
            streams=4,
            teachers=("vit-*", "resnet50"),
            datasets=("imagenet*",),
            share_labels=True,
        ),
        keys=(A, B),
    )
    assert speech == ProjectEntry(name="my.speech", allowance=Allowance())


def test_the_example_and_the_table_in_the_users_pages_are_right():
    using = (Path(__file__).resolve().parents[3] / "docs" / "USING.md").read_text()
    section = using.partition("\n## Projects\n")[2].partition("\n## ")[0]
    example = re.search(r"```toml\n(.*?)```", section, flags=re.DOTALL)
    assert example is not None
    assert [entry.name for entry in parse_projects(example[1], "USING.md")] == ["vision", "course"]
    defaults = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", section, flags=re.MULTILINE))
    assert {name: tomllib.loads(f"value = {text}")["value"] for name, text in defaults.items()} == {
        field.name: list(field.default) if isinstance(field.default, tuple) else field.default
        for field in dataclasses.fields(Allowance)
    } | {"keys": []}


def test_an_empty_file_has_no_projects():
    assert parse_projects("", "p.toml") == ()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[projects.a]\nweight = \n", 2, "is not TOML.*line 2"),
        (
            "[projects.a]\nweight = 1\nwieght = 2\n",
            3,
            "project 'a' has an unknown key 'wieght'; known are weight, crops",
        ),
        ("[projects.a]\n\nweight = -1\n", 3, "project 'a': weight must be from 0.001 to 1000, got -1"),
        ("[projects.a]\nweight = nan\n", 2, "got nan"),
        ("[projects.a]\nweight = true\n", 2, "weight of project 'a' must be a number, got True"),
        ("[projects.a]\nweight = '3'\n", 2, "must be a number, got '3'"),
        ("[projects.a]\n[projects.b]\nstreams = 1.5\n", 3, "streams of project 'b' must be a whole number, got 1.5"),
        ("[projects.a]\nstreams = 1\n[projects.b]\nstreams = -1\n", 4, "streams must be 0"),
        ("[projects.a]\nteachers = 'vit'\n", 2, "teachers of project 'a' must be a list of texts, got 'vit'"),
        ("[projects.a]\nteachers = [1]\n", 2, "must be a list of texts"),
        ("[projects.a]\nshare_labels = 1\n", 2, "share_labels of project 'a' must be true or false, got 1"),
        ("[projects.a]\nkeys = ['0123']\n", 2, "digests of 64 hexadecimal digits, got '0123'"),
        (
            f"[projects.a]\nkeys = ['{A}']\n[projects.b]\nkeys = ['{A}']\n",
            4,
            f"{A[:12]} is given twice, to 'a' and to 'b'",
        ),
        (f"[projects.a]\nkeys = ['{A}', '{A}']\n", 2, "given twice, to 'a' and to 'a'"),
        ("weight = 1\n", 1, r"unknown key 'weight'; expected tables \[projects.NAME\]"),
        ("[project.a]\n", 1, "unknown key 'project'"),
        ("[projects]\na = 3\n", 2, r"project 'a' must be a table \[projects.a\], got 3"),
        ("projects = 3\n", 1, "projects must be tables"),
        ("[projects.a]\n[projects.'b c']\n", 2, "'b c': a project's name is 1 to 63"),
        ("[projects.'-']\n", 1, "'-': a project's name"),
        (f"[projects.{'x' * 64}]\n", 1, "1 to 63"),
    ],
)
def test_a_mistake_is_named_with_its_line(text, line, words):
    with pytest.raises(BadProjectsFile, match=words) as caught:
        parse_projects(text, "farm/p.toml")
    assert str(caught.value).startswith("farm/p.toml")
    assert f"line {line}" in str(caught.value)


def test_a_key_in_the_place_of_its_digest_is_not_repeated():
    with pytest.raises(BadProjectsFile, match=r"line 2.*what looks like the key itself") as caught:
        parse_projects("[projects.a]\nkeys = ['tf_secret']\n", "p.toml")
    assert "secret" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(BadProjectsFile, match=r"cannot read the projects file .*none\.toml.*No such file"):
        read_projects(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadProjectsFile, match=r"bytes\.toml"):
        read_projects(tmp_path / "bytes.toml")


def test_keys_come_and_go_and_everything_else_stays():
    new = digest_of("new")
    longer = add_key(WHOLE, "vision", new, "2026-02-02 carol")
    assert comment_of(longer, new) == "2026-02-02 carol"
    assert [entry.keys for entry in parse_projects(longer, "p")] == [(A, B, new), ()]
    before, after = WHOLE.splitlines(), longer.splitlines()
    assert [line for line in after if line not in before] == [f'    "{new}", # 2026-02-02 carol']
    assert [line for line in before if line not in after] == []
    shorter = remove_key(longer, A)
    assert [entry.keys for entry in parse_projects(shorter, "p")] == [(B, new), ()]
    assert [line for line in after if line not in shorter.splitlines()] == [f'    "{A}", # 2026-01-01 alice']


@pytest.mark.parametrize("keys", ["", "keys = []\n", f'keys = ["{A}"]\n', f'keys = ["{A}"]  # only alice\n'])
def test_a_key_fits_into_every_list(keys):
    text = add_key(f"[projects.a]\n{keys}weight = 2\n", "a", B, "bob")
    [entry] = parse_projects(text, "p")
    assert entry.keys == ((A, B) if A in keys else (B,))
    assert entry.allowance.weight == 2
    assert "only alice" in text or "only alice" not in keys


def test_a_new_project_is_added_at_the_end():
    text = add_key(WHOLE, "new", digest_of("c"), "")
    assert text.startswith(WHOLE.rstrip())
    assert [entry.name for entry in parse_projects(text, "p")] == ["vision", "my.speech", "new"]
    with pytest.raises(BadProjectsFile, match="a project's name"):
        add_key(WHOLE, "new project", digest_of("c"), "")


def mode(file) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_a_new_file_is_its_owners_alone_and_says_what_may_be_in_it(tmp_path):
    file = tmp_path / "projects.toml"
    rewrite(file, lambda text: add_key(text, "a", A, "alice"))
    assert mode(file) == 0o600
    assert file.read_text().startswith("# Who may use this farm")
    assert [entry.name for entry in read_projects(file)] == ["a"]
    assert os.listdir(tmp_path) == ["projects.toml"]


def test_a_file_keeps_its_mode_but_for_others(tmp_path):
    file = tmp_path / "projects.toml"
    file.write_text(WHOLE)
    file.chmod(0o644)
    rewrite(file, lambda text: remove_key(text, A))
    assert mode(file) == 0o640


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    file = tmp_path / "real" / "projects.toml"
    file.write_text(WHOLE)
    (tmp_path / "projects.toml").symlink_to(file)
    rewrite(tmp_path / "projects.toml", lambda text: remove_key(text, A))
    assert (tmp_path / "projects.toml").is_symlink()
    assert A not in file.read_text()


@pytest.mark.parametrize("broken", ["before", "by the change", "while writing"])
def test_nothing_is_written_that_cannot_be_used(tmp_path, monkeypatch, broken):
    file = tmp_path / "projects.toml"
    text = "[projects.a]\nweight = -1\n" if broken == "before" else WHOLE
    file.write_text(text)
    if broken == "while writing":
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    change = (
        (lambda _: "[projects.a]\nweight = -1") if broken == "by the change" else (lambda text: text + "\n# more\n")
    )
    with pytest.raises((BadProjectsFile, OSError)):
        rewrite(file, change)
    assert file.read_text() == text
    assert os.listdir(tmp_path) == ["projects.toml"]


def test_two_who_make_keys_at_once_both_get_theirs(tmp_path):
    file = tmp_path / "projects.toml"
    digests = [digest_of(str(number)) for number in range(12)]
    threads = [
        threading.Thread(target=rewrite, args=(file, lambda text, digest=digest: add_key(text, "a", digest, "")))
        for digest in digests
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [entry] = read_projects(file)
    assert sorted(entry.keys) == sorted(digests)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(BadProjectsFile, match="there is no folder"):
        rewrite(tmp_path / "none" / "projects.toml", lambda text: text)


@pytest.mark.parametrize("text", [f"[projects.a]\nweight = {'9' * 5000}\n", f"x = {'[' * 5000}\n"])
def test_what_toml_readers_stumble_over_is_a_bad_file(text):
    with pytest.raises(BadProjectsFile, match="cannot be read"):
        parse_projects(text, "projects.toml")
