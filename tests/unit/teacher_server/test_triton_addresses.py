"""Which endpoints there are, from lists and names, and how long a failed one is left alone."""

import pytest

from teacherfarm.teacher_server.backends.triton_addresses import (
    LONGEST_BACK_OFF_S,
    AddressBook,
    DnsName,
    back_off_s,
    parse_addresses,
)

NAME = DnsName("triton", 8001)


def test_lists_and_names_mix_and_each_counts_once():
    found = parse_addresses("gpu1:8001, gpu2:9001,dns://triton:8001,gpu1:8001,[::1]:8001")
    assert found == ("gpu1:8001", "gpu2:9001", NAME, "[::1]:8001")


@pytest.mark.parametrize(
    "text", ["", "gpu1", "gpu1:", ":8001", "gpu1:0", "gpu1:65536", "gpu1:x", "a:1,,b:2", "http://a:1", "dns://triton"]
)
def test_what_is_no_endpoint_is_named(text):
    with pytest.raises(ValueError, match=r"HOST:PORT .* or dns://NAME:PORT, got"):
        parse_addresses(text)


def test_a_names_addresses_come_at_once_and_go_when_missed_twice():
    book = AddressBook([NAME, "fixed:1"])
    assert book.names == (NAME,)
    assert book.wanted == {"fixed:1"}
    book.answered(NAME, ["10.0.0.1", "10.0.0.2"])
    assert book.wanted == {"fixed:1", "10.0.0.1:8001", "10.0.0.2:8001"}
    book.answered(NAME, ["10.0.0.2", "10.0.0.3"])
    assert book.wanted == {"fixed:1", "10.0.0.1:8001", "10.0.0.2:8001", "10.0.0.3:8001"}
    book.answered(NAME, ["10.0.0.2", "10.0.0.3"])
    assert book.wanted == {"fixed:1", "10.0.0.2:8001", "10.0.0.3:8001"}
    book.answered(NAME, ())
    book.answered(NAME, ())
    assert book.wanted == {"fixed:1"}


def test_who_is_missed_now_and_then_stays():
    book = AddressBook([NAME])
    for answer in (["a", "b"], ["a"], ["b"], ["a"], ["b"]):
        book.answered(NAME, answer)
    assert book.wanted == {"a:8001", "b:8001"}


def test_addresses_of_ipv6_get_brackets():
    book = AddressBook([NAME])
    book.answered(NAME, ["fd00::1"])
    assert book.wanted == {"[fd00::1]:8001"}


def test_back_off_grows_and_is_bounded():
    waits = [back_off_s(failures) for failures in range(1, 200)]
    assert waits[:3] == [0.1, 0.2, 0.4]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_BACK_OFF_S
