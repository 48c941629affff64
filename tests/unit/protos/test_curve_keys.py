"""CURVE keys as text: what is written can be read again, what is no key is refused in words, secrets show nowhere."""

import stat

import pytest
import zmq.auth
import zmq.utils.z85
from hypothesis import given
from hypothesis import strategies as st

from teacherfarm.protos.curve_keys import (
    PLAIN,
    Z85,
    CurvePair,
    check_key,
    is_readable_by_others,
    read_allow_list,
    read_pair,
    write_pair,
)

PUBLIC, SECRET = (key.decode() for key in zmq.curve_keypair())
OTHER, _ = (key.decode() for key in zmq.curve_keypair())
PAIR = CurvePair(public=PUBLIC, secret=SECRET)


def test_a_pair_is_read_as_it_was_written_and_only_its_owner_can(tmp_path):
    public_file, secret_file = write_pair(tmp_path / "new" / "keys", "farm", PAIR)
    assert read_pair(secret_file, "x") == PAIR
    assert stat.S_IMODE(secret_file.stat().st_mode) == 0o600
    assert not is_readable_by_others(secret_file)
    assert is_readable_by_others(public_file)
    assert SECRET not in public_file.read_text()
    assert zmq.auth.load_certificate(secret_file) == (PUBLIC.encode(), SECRET.encode())
    assert zmq.auth.load_certificate(public_file) == (PUBLIC.encode(), None)


def test_nothing_is_overwritten(tmp_path):
    _, secret_file = write_pair(tmp_path, "farm", PAIR)
    before = secret_file.read_text()
    with pytest.raises(ValueError, match=r"farm\.public is there already.*--name"):
        write_pair(tmp_path, "farm", CurvePair(public=OTHER, secret=SECRET))
    assert secret_file.read_text() == before


def test_the_secret_shows_nowhere():
    assert SECRET not in repr(PAIR)
    assert SECRET not in str(PAIR)
    with pytest.raises(ValueError, match=r"client_key must be the path of a \.secret file, not a key") as caught:
        read_pair(SECRET, "client_key")
    assert SECRET not in str(caught.value)


@given(st.binary(min_size=32, max_size=32))
def test_what_stands_for_32_bytes_is_a_key(raw):
    key = zmq.utils.z85.encode(raw).decode()
    assert check_key(key, "x") == key


@given(st.text(alphabet=Z85, min_size=40, max_size=40))
def test_what_stands_for_no_bytes_is_none(text):
    sound = all(
        sum(Z85.index(letter) * 85 ** (4 - at) for at, letter in enumerate(text[start : start + 5])) < 1 << 32
        for start in range(0, 40, 5)
    )
    if sound:
        assert check_key(text, "x") == text
    else:
        with pytest.raises(ValueError, match="stand for no bytes"):
            check_key(text, "x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "server_key must be a CURVE key, 40 characters of Z85, got 0 characters"),
        (PUBLIC[:-1], "got 39 characters.*after public-key in a .public file.*teacherfarm keys curve"),
        (PUBLIC[:-1] + "~", "which has no '~'"),
        (PUBLIC[:-1] + "\n", r"which has no '\\n'"),
    ],
    ids=("empty", "short", "foreign character", "line end"),
)
def test_what_is_no_key_is_named_and_not_shown(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        check_key(text, "server_key")
    assert PUBLIC[:10] not in str(caught.value)


def test_characters_of_our_own_keys_need_no_quotes():
    assert set("+#%&?*!$ \"'<>()[]{}|\\;,`^") & PLAIN == set()
    assert len(PLAIN) == 68


def test_an_allow_list_is_a_folder_of_public_files(tmp_path):
    write_pair(tmp_path, "bob", PAIR)
    write_pair(tmp_path, "alice", CurvePair(public=OTHER, secret=SECRET))
    (tmp_path / "README").write_text("nothing of ours")
    assert read_allow_list(tmp_path, "x") == {OTHER: "alice", PUBLIC: "bob"}


def test_an_allow_list_is_a_file_with_a_key_a_line(tmp_path):
    listed = tmp_path / "clients"
    listed.write_text(
        f'# students of 2026\n\n{PUBLIC}  bob, third floor\n#{PUBLIC}\ncurve\n    public-key = "{OTHER}"\n#\n'
    )
    allowed = read_allow_list(listed, "x")
    assert allowed == {PUBLIC: "bob, third floor", OTHER: "line 6"}


def test_an_empty_list_lets_nobody_in(tmp_path):
    assert read_allow_list(tmp_path, "x") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("too short", r"curve_clients: .*clients, line 2 must be a CURVE key.*got 3 characters"),
        (f'secret-key = "{SECRET}"', r"clients, line 2 is a secret key; an allow-list holds public keys"),
        ('public-key = "123"', "line 2 must be a CURVE key"),
    ],
    ids=("short", "secret", "short public"),
)
def test_a_bad_line_of_an_allow_list_is_named(tmp_path, text, words):
    listed = tmp_path / "clients"
    listed.write_text(f"{PUBLIC}\n{text}\n")
    with pytest.raises(ValueError, match=words) as caught:
        read_allow_list(listed, "curve_clients")
    assert SECRET not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    public_file, _ = write_pair(tmp_path, "farm", PAIR)
    with pytest.raises(ValueError, match=r"client_key: cannot read .*nobody\.secret: No such file.*keys curve"):
        read_pair(tmp_path / "nobody.secret", "client_key")
    with pytest.raises(ValueError, match=r"no line secret-key: that is a public file; the secret one ends in \.secret"):
        read_pair(public_file, "client_key")
    with pytest.raises(ValueError, match=r"curve_clients: cannot read .*nobody"):
        read_allow_list(tmp_path / "nobody", "curve_clients")
    (tmp_path / "image.public").write_bytes(b"\xff\xd8")
    with pytest.raises(ValueError, match="it is not text"):
        read_allow_list(tmp_path, "curve_clients")
    (tmp_path / "image.public").write_text("nothing")
    with pytest.raises(ValueError, match=r"image\.public has no line public-key"):
        read_allow_list(tmp_path, "curve_clients")
