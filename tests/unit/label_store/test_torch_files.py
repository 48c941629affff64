"""Files that torch.save wrote are read as torch reads them, and nothing in them ever runs."""

import builtins
import contextlib
import io
import os
import pickle
import pickletools
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teacherfarm.label_store.torch_files import arrays_in, dump_arrays, read_arrays
from teacherfarm.protos.faults import BadLabelFile, UnsafeLabelFile

NUMPY_TYPES = ["<f2", "<f4", "<f8", ">f4", "|i1", "<i2", ">i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "|b1"]
TORCH_TYPES = [
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
]
FORMATS = [
    pytest.param({"pickle_protocol": 2}, id="zip"),
    pytest.param({"pickle_protocol": 4}, id="zip-4"),
    pytest.param({"pickle_protocol": 5}, id="zip-5"),
    pytest.param({"_use_new_zipfile_serialization": False}, id="legacy"),
]


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def zipped(pickled, compression=zipfile.ZIP_STORED, **others):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in others.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def legacy(pickled):
    magic, protocol = 0x1950A86A20F9469CFC6C, 1001
    machine = {"protocol_version": protocol, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    return b"".join(pickle.dumps(part, 2) for part in (magic, protocol, machine)) + pickled + pickle.dumps([], 2)


def as_numpy_1(data):
    """What the same save beside numpy 1 would have written."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    return zipped(archive.read("archive/data.pkl").replace(b"cnumpy._core.", b"cnumpy.core."))


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        other = np.asarray(other)
        assert mine.dtype.newbyteorder("=") == other.dtype.newbyteorder("=")
        assert mine.shape == other.shape
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("options", FORMATS)
def test_arrays_of_every_type_and_shape_are_read_as_torch_reads_them(options):
    generator = np.random.default_rng(0)
    for number_type in NUMPY_TYPES:
        for shape in [(), (0,), (0, 4), (3,), (2, 3), (2, 3, 4)]:
            array = generator.integers(0, 2, shape).astype(number_type)
            data = saved([array, np.asfortranarray(array)], **options)
            assert_equal(arrays_in(data, "x"), torch.load(io.BytesIO(data), weights_only=False))


def test_numpy_1_and_numpy_2_name_the_same_arrays():
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([True, False])]
    data = saved(arrays)
    assert b"numpy._core" in data
    old = as_numpy_1(data)
    assert b"numpy._core" not in old
    assert_equal(arrays_in(data, "x"), arrays)
    assert_equal(arrays_in(old, "x"), arrays)


@pytest.mark.parametrize("options", [FORMATS[0], FORMATS[3]])
def test_tensors_of_every_type_are_read_as_torch_reads_them(options):
    for number_type in TORCH_TYPES:
        whole = torch.arange(24).remainder(2).to(number_type).reshape(2, 3, 4)
        for tensor in (whole, whole[1], whole.transpose(0, 2), whole[:, 1:, ::2], whole[:0]):
            data = saved([tensor, whole.reshape(-1)], **options)
            assert_equal(arrays_in(data, "x"), torch.load(io.BytesIO(data)))
    assert_equal(arrays_in(saved(whole, **options), "x"), [whole])


@pytest.mark.parametrize("options", [FORMATS[0], FORMATS[3]])
def test_several_storages_of_different_types_are_told_apart(options):
    tensors = [torch.arange(5).to(number_type) for number_type in (torch.int64, torch.float16, torch.uint8)]
    tensors.append(torch.randn(3).to(torch.float64))
    assert_equal(arrays_in(saved(tensors, **options), "x"), tensors)


@pytest.mark.parametrize("number_type", [torch.uint16, torch.uint32, torch.uint64])
def test_torchs_newer_number_types(number_type):
    tensor = torch.tensor([0, 1, 65535]).to(number_type)
    assert_equal(arrays_in(saved([tensor]), "x"), [tensor])


@pytest.mark.parametrize("options", [FORMATS[0], FORMATS[3]])
def test_bfloat16_becomes_float32(options):
    tensor = torch.randn(5, 3).to(torch.bfloat16)
    assert_equal(arrays_in(saved([tensor], **options), "x"), [tensor.float()])


@pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated")
@pytest.mark.parametrize("array", [np.zeros((2, 0), "f4"), np.arange(5.0), np.arange(256, dtype=np.uint8)])
def test_torch_of_any_age_reads_what_we_write(tmp_path, array):
    arrays = [array, np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)), np.array([True, False])]
    path = tmp_path / "n01440764_1.tar"
    path.write_bytes(dump_arrays(arrays))
    assert_equal(torch.load(path, map_location=torch.device("cpu"), weights_only=False), arrays)
    assert_equal(read_arrays(path), arrays)
    assert b"numpy._core" not in path.read_bytes()
    # torch's own restricted reader, told that numpy's arrays are meant.
    types = [np.ndarray, np.dtype, *{type(array.dtype) for array in arrays}]
    with torch.serialization.safe_globals([(np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct")]):
        with torch.serialization.safe_globals(types):
            assert_equal(torch.load(path), arrays)


def test_the_same_arrays_make_the_same_bytes():
    assert dump_arrays([np.arange(3)]) == dump_arrays([np.arange(3)])


class Attack:
    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def attacks(target):
    command = f"touch {target}"
    inner = pickle.dumps(Attack(os.system, command))
    return {
        "os.system": (Attack(os.system, command), "system"),
        "builtins.eval": (Attack(builtins.eval, f"open({str(target)!r}, 'w')"), "eval"),
        "builtins.exec": (Attack(builtins.exec, f"open({str(target)!r}, 'w')"), "exec"),
        "getattr chain": (Attack(getattr, Attack(__import__, "os"), "system"), "getattr"),
        "nested pickle": (Attack(pickle.loads, inner), "loads"),
        "torch.load": (Attack(torch.load, str(target)), "load"),
        "numpy's loader": (Attack(np.load, str(target)), "numpy"),
        "state setter": (Attack(dict, state={"a": Attack(os.system, command)}), "dict"),
        "partial": (Attack(__import__("functools").partial, os.system, command), "partial"),
        "subprocess": (Attack(__import__("subprocess").call, ["touch", str(target)]), "call"),
    }


@pytest.mark.parametrize("wrap", [zipped, legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_file_that_tries_to_run_code_is_refused_by_name_and_runs_nothing(tmp_path, protocol, wrap):
    target = tmp_path / "was-here"
    for attack, asked in attacks(target).values():
        for value in ([np.zeros(2), attack], attack, {"a": attack}, [np.array([attack], object)]):
            path = tmp_path / "n01440764_1.tar"
            path.write_bytes(wrap(pickle.dumps(value, protocol)))
            with pytest.raises(UnsafeLabelFile) as refused:
                read_arrays(path)
            assert str(path) in str(refused.value)
            if not isinstance(value, list) and protocol >= 2:
                assert asked in str(refused.value)
    assert not target.exists()


def test_the_attack_used_here_is_a_real_one(tmp_path):
    target = tmp_path / "was-here"
    torch.load(io.BytesIO(zipped_as_torch(tmp_path, Attack(os.system, f"touch {target}"))), weights_only=False)
    assert target.exists()


def zipped_as_torch(tmp_path, value):
    torch.save([value], tmp_path / "attack")
    return (tmp_path / "attack").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        b"cposix\nsystem\n(X\x02\x00\x00\x00lstR.",  # GLOBAL
        b"(X\x02\x00\x00\x00lsiposix\nsystem\n.",  # INST
        b"(cposix\nsystem\nX\x02\x00\x00\x00lso.",  # OBJ
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.",  # STACK_GLOBAL
        b"\x80\x02cposix\nsystem\n)\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1: a registered class
        b"Pposix\n.",  # PERSID
        b"\x80\x02]Q.",  # a persistent id that is no storage
        b"\x80\x02]]\x93.",  # a global whose name is no string
        b"\x80\x02X\x01\x00\x00\x00a]b.",  # BUILD of a string
        b"\x80\x02ccollections\nOrderedDict\n]\x85R.",
        b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x89\x88\x87R.",
        b"\x80\x02}]K\x01s.",  # a list as a key
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00idna!!\x86R.",
    ],
)
def test_every_way_of_a_pickle_to_name_or_build_something_is_refused(text):
    for data in (zipped(text), legacy(text)):
        with pytest.raises(UnsafeLabelFile, match=r"evil\.tar"):
            arrays_in(data, "evil.tar")


def array_pickle(shape, content):
    good = pickletools.optimize(pickle.dumps(np.frombuffer(b"\1" * 8, np.uint8), 2))
    sized = good.replace(b"K\x08\x85", b"(" + b"".join(pickle.dumps(size, 2)[2:-1] for size in shape) + b"t")
    assert sized != good
    return zipped(sized.replace(b"X\x08\x00\x00\x00" + b"\1" * 8, b"X" + struct.pack("<I", len(content)) + content))


@pytest.mark.parametrize("shape", [(2**62, 2**62), (2**31, 2**31, 4), (-1, -8), (9,), (8, 0), (1,) * 40])
def test_shapes_that_the_content_does_not_fill_are_refused(shape):
    with pytest.raises(BadLabelFile):
        arrays_in(array_pickle(shape, b"\1" * 8), "x")
    assert_equal(arrays_in(array_pickle((2, 4), b"\1" * 8), "x"), [np.ones((2, 4), np.uint8)])


def test_a_tensor_larger_than_its_storage_is_refused():
    data = saved(torch.zeros(64))
    old = b"K\x40\x85"
    for new in (b"M\x00\x40\x85", b"K\x41\x85"):
        pickled = zipfile.ZipFile(io.BytesIO(data)).read("archive/data.pkl")
        assert pickled.count(old) == 1
        with pytest.raises(BadLabelFile):
            arrays_in(zipped(pickled.replace(old, new), **{"data/0": bytes(256)}), "x")
    # A stride of 0: 64 elements shown as 2**40.
    huge = pickled.replace(old, b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85").replace(
        b"K\x01\x85", b"K\x00\x85"
    )
    with pytest.raises(BadLabelFile):
        arrays_in(zipped(huge, **{"data/0": bytes(256)}), "x")


def bombs():
    text = b"\x80\x02]"
    repeated = b"\x80\x02X" + struct.pack("<I", 10**5) + b"a" * 10**5 + b"q\x000("
    nested = b"(" * 15_000 + b"t" * 15_000
    laughs = b"\x80\x02)" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(200))
    return {
        "deflated": zipped(b"\x80\x02B" + struct.pack("<I", 10**8) + bytes(10**8) + b".", zipfile.ZIP_DEFLATED),
        "memo": zipped(text + b"r\xff\xff\xff\xff" + b"K\x01r\xfe\xff\xff\xff" * 10**5 + b"."),
        "announced bytes": zipped(b"\x80\x04\x8e" + b"\xff" * 8 + b"."),
        "announced text": zipped(b"\x80\x04X\xff\xff\xff\x7f."),
        "encoded again": zipped(repeated + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 2000 + b"t."),
        "deep": zipped(nested + b"."),
        "many": zipped(b"\x80\x02](" + b"K\x01" * 10**6 + b"e."),
        "key of doubling tuples": zipped(laughs + b"}q\xfa0h\xfah\xc7K\x01s."),
        "name of doubling tuples": zipped(laughs + b"h\xc7h\xc7\x93."),
        "shape of doubling tuples": zipped(
            laughs + b"0cnumpy._core.numeric\n_frombuffer\n(C\x01acnumpy\ndtype\nX\x02\x00\x00\x00u1\x89\x88\x87R"
            b"h\xc7X\x01\x00\x00\x00CtR."
        ),
        "entries": zipped(pickle.dumps([1]), **{f"data/{number}": b"" for number in range(11_000)}),
        "a hundred numbers": zipped(pickle.dumps([1] * 100)),
        "endless instructions": zipped(b"N0" * 10**6 + b"."),
    }


@pytest.mark.parametrize("kind", bombs())
def test_a_bomb_is_refused_at_once(kind):
    import tracemalloc

    data = bombs()[kind]
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(BadLabelFile):
        arrays_in(data, "x")
    assert time.process_time() - start < 3
    assert tracemalloc.get_traced_memory()[1] < 5 * len(data) + 16 * 2**20
    tracemalloc.stop()


def test_what_is_no_label_file_says_so(tmp_path):
    for content, word in ((b"", "empty"), (b"ustar" * 200, "not written by torch.save"), (zipped(b"N."), "NoneType")):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(BadLabelFile, match=word):
            read_arrays(tmp_path / "a.tar")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("image.jpg", b"x")
    with pytest.raises(BadLabelFile, match=r"no data\.pkl"):
        arrays_in(file.getvalue(), "x")


def test_a_flipped_bit_in_the_labels_is_found():
    data = bytearray(dump_arrays([np.arange(1000, dtype=np.uint8) % 128]))
    place = data.index(bytes(range(60, 70)))
    data[place] ^= 1
    with pytest.raises(BadLabelFile, match="damaged"):
        arrays_in(bytes(data), "x")


SEEDS = [
    saved([np.arange(8, dtype=np.float32).reshape(2, 4), np.array([True, False]), np.zeros((2, 2, 5), "f2")]),
    saved([np.arange(8), torch.ones(3, 2)], _use_new_zipfile_serialization=False),
    saved([np.arange(8.0)], pickle_protocol=5),
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.sampled_from(SEEDS), edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4))
def test_no_damage_raises_anything_but_a_fault(seed, edits):
    if seed[:2] == b"PK":
        # Past the archive's checksum, into the pickle itself.
        pickled = bytearray(zipfile.ZipFile(io.BytesIO(seed)).read("archive/data.pkl"))
    else:
        pickled = bytearray(seed)
    for place, value in edits:
        pickled[int(place * (len(pickled) - 1))] = value
    with contextlib.suppress(BadLabelFile):
        arrays_in(zipped(bytes(pickled)) if seed[:2] == b"PK" else bytes(pickled), "x")
