"""Members of tar files are where tarfile finds them, in every format that it writes."""

import io
import tarfile

import pytest

from teacherfarm.crops import tar_headers
from teacherfarm.crops.tar_headers import tar_members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NAMES = ("a.jpg", "folder/b.cls", "d" * 90 + "/" + "e" * 60 + ".jpg", "猫/x.png", "empty.cls")


def write(path, tar_format, **options):
    with tarfile.open(path, "w", format=tar_format, **options) as archive:
        for number, name in enumerate(NAMES):
            data = b"" if name == "empty.cls" else bytes([65 + number]) * (number * 511 + 1)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mtime = 1.5 if tar_format == tarfile.PAX_FORMAT else 1
            archive.addfile(entry, io.BytesIO(data))
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            other = tarfile.TarInfo(f"other{kind!r}")
            other.type, other.linkname = kind, "a.jpg"
            archive.addfile(other)
        last = tarfile.TarInfo("last.jpg")
        last.size = 3
        archive.addfile(last, io.BytesIO(b"end"))
    return path


def by_tarfile(path):
    with tarfile.open(path) as archive:
        return [(entry.name, entry.offset_data, entry.size) for entry in archive if entry.isreg()]


@pytest.mark.parametrize("name", FORMATS)
def test_members_are_where_tarfile_finds_them(tmp_path, monkeypatch, name):
    path = write(tmp_path / "x.tar", FORMATS[name])
    expected = by_tarfile(path)
    assert [member[0] for member in expected] == [*NAMES, "last.jpg"]
    monkeypatch.setattr(tar_headers.tarfile, "open", None)  # it must do without
    assert tar_members(str(path)) == expected


def test_what_is_unusual_is_left_to_tarfile(tmp_path):
    path = write(tmp_path / "x.tar", tarfile.PAX_FORMAT, pax_headers={"comment": "global"})
    assert tar_members(str(path)) == by_tarfile(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:512].replace(b"ustar", b"\0\0\0\0\0") + whole[512:])
    with pytest.raises(tarfile.TarError):
        tar_members(str(path))


def test_no_damage_raises_anything_else(tmp_path):
    path = write(tmp_path / "x.tar", tarfile.PAX_FORMAT)
    whole = path.read_bytes()
    for cut in (0, 100, 512, 700, 1500, len(whole) // 2):
        path.write_bytes(whole[:cut])
        try:
            tar_members(str(path))
        except tarfile.TarError:
            continue
    for place in range(0, 3000, 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            tar_members(str(path))
        except tarfile.TarError:
            continue
