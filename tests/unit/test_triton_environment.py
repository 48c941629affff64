"""Finding a Python that can run Triton's backend, and saying why there is none."""

import json
import sys

import pytest

from tests.real_parts import absent
from tools.triton_environment import (
    INSTALLED,
    WHY_NOT,
    Python,
    TritonAbsent,
    check_platform,
    choose_python,
    find_triton,
    pythons,
)

SHARED = Python(executable="/a/python3.11", version="3.11", library="libpython3.11.so.1.0", library_folder="/a/lib")
NO_LIBRARY = Python(executable="/b/python3.11", version="3.11", library="libpython3.11.so.1.0", library_folder="")
STATIC = Python(executable="/c/python3.12", version="3.12", library="libpython3.12.a", library_folder="")
TOO_NEW = Python(executable="/d/python3.14", version="3.14", library="libpython3.14.so.1.0", library_folder="/d/lib")


def test_the_first_python_with_a_shared_library_is_taken():
    assert choose_python([TOO_NEW, STATIC, NO_LIBRARY, SHARED]) is SHARED


def test_without_one_each_is_named_with_what_it_lacks():
    with pytest.raises(TritonAbsent) as found:
        choose_python([TOO_NEW, STATIC, NO_LIBRARY])
    said = str(found.value)
    assert "/b/python3.11 has no libpython3.11.so.1.0 (apt-get install libpython3.11)" in said
    assert "/c/python3.12 was built without a shared library" in said
    assert "/d/python3.14 is 3.14" in said
    with pytest.raises(TritonAbsent, match="no Python was found"):
        choose_python([])


def test_this_machines_pythons_are_asked_and_none_is_a_virtual_environments():
    found = list(pythons())
    assert any(python.version == f"{sys.version_info[0]}.{sys.version_info[1]}" for python in found)
    assert sys.prefix == sys.base_prefix or sys.executable not in [python.executable for python in found]


@pytest.mark.parametrize(
    ("machine", "libc"), [("aarch64", ("glibc", "2.36")), ("x86_64", ("glibc", "2.31")), ("x86_64", ("", ""))]
)
def test_a_machine_without_a_binary_gets_a_sentence(machine, libc):
    with pytest.raises(TritonAbsent, match="Triton's package"):
        check_platform(machine, libc)


def test_what_is_not_installed_says_what_to_do(tmp_path):
    with pytest.raises(TritonAbsent, match="run `make triton`"):
        find_triton(tmp_path)
    (tmp_path / WHY_NOT).write_text("no network\n")
    with pytest.raises(TritonAbsent, match=r"^no network$"):
        find_triton(tmp_path)
    parts = {"server": tmp_path / "gone", "backends": tmp_path, "programs": tmp_path, "library_folder": tmp_path}
    (tmp_path / INSTALLED).write_text(json.dumps({name: str(path) for name, path in parts.items()}))
    with pytest.raises(TritonAbsent, match="incomplete"):
        find_triton(tmp_path)


def test_absent_parts_skip_a_test_but_never_in_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("TEACHERFARM_NO_SKIPS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Triton"):
        absent("no Triton")
    for name in ("CI", "TEACHERFARM_NO_SKIPS"):
        with monkeypatch.context() as environment:
            environment.setenv(name, "1")
            with pytest.raises(pytest.fail.Exception, match="no Triton"):
                absent("no Triton")
