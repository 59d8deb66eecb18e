"""Files of strangers: whole ones as other libraries read them, bombs and lies at no cost."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import re
import struct
import zipfile

import hostile_files as hostile
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch_files
from small import full

from cxrjax.core import files
from cxrjax.core.errors import UserError
from cxrjax.data.sources import archive
from cxrjax.models import weights

BIG = 48_000_000  # bytes that a small file unpacks to


def test_json(tmp_path):
  path = tmp_path / "x.json"
  path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": [1, {"b": "\u00e4"}]}).encode())
  assert files.read_mapping(path) == {"a": [1, {"b": "\u00e4"}]}
  deep = "[" * files.MAX_DEPTH + "]" * files.MAX_DEPTH
  assert files.parse_json(deep)
  for data, why in (
    (b"[" * 10**6, "deep"),
    (f"[[{deep}]]".encode(), "deep"),
    (b"{", "cut short"),
    (b"\xff\xfe{}", "not text in UTF-8"),
    (b"", "cut short"),
    (b"1" * 5000, "not JSON"),
    (b'{"a":' * 10**5, "deep"),
    (b"\0" * 99, "not JSON"),
  ):
    path.write_bytes(data)
    with pytest.raises(files.Damaged, match=why) as error:
      files.read_json(path)
    assert "\n" not in str(error.value)
  path.write_text("[1]")
  with pytest.raises(files.Damaged, match="not hold a mapping"):
    files.read_mapping(path)
  with pytest.raises(files.Damaged, match="more than 2 bytes"):
    files.read(path, 2)


def test_only_regular_files(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "link").symlink_to(tmp_path / "pipe")
  for path in (tmp_path / "pipe", tmp_path / "link", "/dev/zero"):
    with pytest.raises(files.Damaged, match="not a regular file"):
      files.open_regular(path)
  with pytest.raises(IsADirectoryError):
    files.open_regular(tmp_path)
  with pytest.raises(FileNotFoundError):
    files.open_regular(tmp_path / "none")


KINDS = ["<f4", "<f8", "<f2", ">f4", "<i8", "|u1", "|b1", "<c8", "<U7", "|S3"]


def test_arrays_as_numpy_reads_them(tmp_path):
  rng = np.random.default_rng(0)
  arrays = {
    f"{kind}{len(shape)}": rng.integers(0, 2, shape).astype(kind)
    for kind in KINDS
    for shape in ((), (0, 3), (5,), (2, 3, 4))
  }
  arrays["turned"] = np.asfortranarray(rng.random((3, 4)))
  for save in (np.savez, np.savez_compressed):
    save(tmp_path / "x.npz", **arrays)
    found = files.read_npz(tmp_path / "x.npz")
    assert set(found) == set(arrays)
    for name, x in arrays.items():
      assert found[name].dtype == x.dtype and found[name].shape == x.shape
      np.testing.assert_array_equal(found[name], x)
  np.save(tmp_path / "x.npy", arrays["turned"])
  parsed = files.parse_npy((tmp_path / "x.npy").read_bytes())
  np.testing.assert_array_equal(parsed, arrays["turned"])
  for data in (
    hostile.npy("'<f4'", "(3,)", bytes(11)),
    hostile.npy("'|O'", "(1,)", bytes(8)),
    hostile.npy("'<f4'", "(" * 500),
    b"",
    hostile.npy("'<f4'", "(1 << 50,)"),
  ):
    with pytest.raises(files.Damaged):
      files.parse_npy(data)


def test_safetensors_as_their_own_library_reads_them(tmp_path):
  rng = np.random.default_rng(0)
  arrays = {
    f"{kind}{len(shape)}": rng.integers(0, 2, shape).astype(kind)
    for kind in ("f4", "f8", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?")
    for shape in ((), (0, 3), (5,), (2, 3, 4))
  }
  safetensors.numpy.save_file(arrays, tmp_path / "x", {"a": "b"})
  found, about = files.read_safetensors(tmp_path / "x")
  assert about == {"a": "b"} and set(found) == set(arrays)
  for name, x in safetensors.numpy.load_file(tmp_path / "x").items():
    assert found[name].dtype == x.dtype
    np.testing.assert_array_equal(found[name], x)


def test_eight_bit_floats(tmp_path):
  """Values of the formats' own tables (Micikevicius et al. 2022, arXiv 2209.05433, table 1)."""
  values = {
    "F8_E4M3": ([0x00, 0x38, 0x7E, 0x01, 0xB8], [0, 1, 448, 2**-9, -1]),
    "F8_E5M2": ([0x00, 0x3C, 0x7B, 0x01, 0xBC], [0, 1, 57344, 2**-16, -1]),
    "BF16": ([0x80, 0x3F, 0x20, 0xC0, 0, 0], [1, -2.5, 0]),
  }
  header, data = {}, b""
  for kind, (raw, numbers) in values.items():
    header[kind] = {
      "dtype": kind,
      "shape": [len(numbers)],
      "data_offsets": [len(data), len(data) + len(raw)],
    }
    data += bytes(raw)
  path = tmp_path / "x.safetensors"
  path.write_bytes(hostile.safetensors(header, data))
  found = weights.files.read(path, "k").arrays
  assert found["F8_E4M3"].dtype == ml_dtypes.float8_e4m3fn
  for kind, (_, numbers) in values.items():
    np.testing.assert_array_equal(np.asarray(found[kind], np.float32), numbers)
  scaled = {
    "F8_E4M3": header["F8_E4M3"] | {"shape": [1], "data_offsets": [0, 1]},
    "F8_E4M3.weight_scale": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]},
  }
  path.write_bytes(hostile.safetensors(scaled, b"12"))
  with pytest.raises(UserError, match="8-bit floats have scales"):
    weights.files.read(path, "k")
  path.write_bytes(
    hostile.safetensors({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"1")
  )
  with pytest.raises(UserError, match="'a' in it is of type 'F4', which is not read"):
    weights.files.read(path, "k")


def tensors(**changes):
  """A .safetensors of one array, with something in its header that is not so."""
  entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
  return hostile.safetensors({"a": entry}, bytes(8))


def checkpoint(code, kind="zip"):
  """A checkpoint of torch's whose pickle is `code`."""
  if kind == "legacy":
    return b"".join(map(torch_files.pickled, (0x1950A86A20F9469CFC6C, 1001, {}))) + code
  return hostile.zipped({"archive/data.pkl": code, "archive/data/0": bytes(64)})


def rebuilt(shape, strides, offset=0, count=16):
  """A checkpoint of a tensor of sixteen numbers, as its description says."""
  storage = (
    b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
    + pickle.dumps(count, 2)[2:-1]
    + b"tQ"
  )
  values = b"".join(pickle.dumps(v, 2)[2:-1] for v in (offset, shape, strides))
  return checkpoint(
    b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n" + storage + values + b"\x89}tRs."
  )


def lying(kind):
  """A zip whose member says that it has 100 bytes."""
  data = bytearray(hostile.zipped({"x/a.npy": bytes(BIG)}, kind))
  size = BIG.to_bytes(4, "little")
  while size in data:
    at = data.index(size)
    data[at : at + 4] = (100).to_bytes(4, "little")
  return bytes(data)


def odd(at, value):
  """A zip with another number at a place of its directory."""
  data = bytearray(hostile.zipped({"a.npy": hostile.npy("'<f4'", "(2,)", bytes(8))}))
  for mark, shift in ((b"PK\1\2", 0), (b"PK\3\4", -2)):
    place = data.index(mark) + at + shift
    data[place : place + len(value)] = value
  return bytes(data)


DOUBLED = b"\x80\x02K\x01" + b"2\x86" * 60  # a tuple of itself twice, sixty times
NESTED = b"\x80\x02" + b"}X\x01\0\0\0a" * 5000 + b"K\x01" + b"s" * 5000 + b"."
SHARED = (
  b"\x80\x02}q\0"
  + b"".join(
    b"0}(X\x01\0\0\0ah"
    + bytes([i % 2])
    + b"X\x01\0\0\0bh"
    + bytes([i % 2])
    + b"uq"
    + bytes([(i + 1) % 2])
    for i in range(40)
  )
  + b"."
)
COPIES = (
  b"\x80\x02]("
  + b"K\x01K\x02\x86" * 1000
  + b"eq\0("
  + (b"ccollections\nOrderedDict\nh\0\x85R" * 1000)
  + b"l."
)
FILES = {
  "deep json.safetensors": struct.pack("<Q", 200_001) + b"{" + b'["' * 100_000,
  "long header.safetensors": hostile.safetensors({}, length=1 << 62),
  "huge.safetensors": tensors(shape=[1 << 40, 1 << 40]),
  "float.safetensors": tensors(shape=[2.0]),
  "negative.safetensors": tensors(shape=[-2]),
  "true.safetensors": tensors(data_offsets=[False, 8]),
  "beyond.safetensors": tensors(data_offsets=[0, 1 << 60], shape=[1 << 58]),
  "before.safetensors": tensors(data_offsets=[-8, 0]),
  "gap.safetensors": tensors(data_offsets=[4, 8], shape=[1]),
  "back.safetensors": tensors(data_offsets=[8, 0]),
  "no type.safetensors": tensors(dtype=["F32"]),
  "words.safetensors": tensors(shape="22"),
  "list.safetensors": struct.pack("<Q", 11) + b'{"a": "b"} ',
  "huge.npz": hostile.zipped({"a.npy": hostile.npy("'<f4'", "(1 << 40,)")}),
  "many.npz": hostile.zipped({"a.npy": hostile.npy("'<f4'", "(1000000000000,)")}),
  "empty texts.npz": hostile.zipped({"a.npy": hostile.npy("'<U0'", "(100000000000000,)")}),
  "objects.npz": hostile.zipped({"a.npy": hostile.npy("'|O'", "(1,)", pickle.dumps([1]))}),
  "nested.npz": hostile.zipped({"a.npy": hostile.npy("'<f4'", "(" * 5000)}),
  "code.npz": hostile.zipped({"a.npy": hostile.npy("'<f4'", "(__import__('os').getpid(),)")}),
  "fields.npz": hostile.zipped({"a.npy": hostile.npy("[('a', '<f4')]", "(1,)", bytes(4))}),
  "cut.npz": hostile.zipped({"a.npy": hostile.npy("'<f4'", "(3,)", bytes(11))}),
  "twice.npz": hostile.zipped(
    dict.fromkeys(("a.npy", "b.npy"), hostile.npy("'<f4'", "(1,)", bytes(4)))
  ).replace(b"b.npy", b"a.npy"),
  "lies.npz": lying(zipfile.ZIP_DEFLATED),
  "lies too.npz": lying(zipfile.ZIP_BZIP2),
  "lies again.npz": lying(zipfile.ZIP_LZMA),
  "unpacks.npz": hostile.zipped({"a.npy": bytes(BIG)}),
  "version.npz": odd(6, b"\xff\0"),
  "method.npz": odd(10, b"\x63"),
  "secret.npz": odd(8, b"\x01"),
  "memo.pth": checkpoint(b"\x80\x02]r\xff\xff\xff\x7f."),
  "bytes.pth": checkpoint(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"."),
  "array.pth": checkpoint(b"\x80\x05\x96" + struct.pack("<Q", 1 << 36) + b"."),
  "frame.pth": checkpoint(b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"."),
  "long.pth": checkpoint(b"\x80\x02\x8b\xff\xff\xff\x7f."),
  "old bytes.pth": checkpoint(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".", "legacy"),
  "doubled.pth": checkpoint(b"\x80\x02}" + DOUBLED[2:] + b"K\x01s."),
  "doubled set.pth": checkpoint(DOUBLED + b"\x91."),
  "nested.pth": checkpoint(NESTED),
  "shared.pth": checkpoint(SHARED),
  "copies.pth": checkpoint(COPIES),
  "itself.pth": checkpoint(b"\x80\x02}q\0X\x01\0\0\0ah\0s."),
  "changes.pth": checkpoint(b"\x80\x02ctorch\nFloatStorage\n}X\x05\0\0\0dtypeX\x03\0\0\0<i4sb."),
  "changes more.pth": checkpoint(
    b"\x80\x02ctorch._utils\n_rebuild_tensor\nN}X\x01\0\0\0aK\x01s\x86b."
  ),
  "repeated.pth": rebuilt((1 << 30, 1 << 30), (0, 0)),
  "beyond.pth": rebuilt((4, 5), (5, 1)),
  "before.pth": rebuilt((4,), (1,), -1),
  "backwards.pth": rebuilt((4,), (-1,), 8),
  "uneven.pth": rebuilt((4, 4), (1,)),
  "texts.pth": rebuilt(("4",), (1,)),
  "much.pth": rebuilt((4,), (1,), 0, 1 << 38),
  "negative.pth": rebuilt((-4, -4), (1, 1)),
}


@pytest.mark.parametrize("name", FILES)
def test_hostile_weights(name, tmp_path):
  (tmp_path / name).write_bytes(FILES[name])
  seconds, memory = hostile.cost(tmp_path / name)
  with pytest.raises((UserError, files.Damaged)) as error:
    hostile.read(tmp_path / name)
  assert "none of the known layouts" not in str(error.value) and "\n" not in str(error.value)
  assert memory < hostile.BYTES and seconds < 60, (seconds, memory)


def test_nothing_that_a_pickle_names_is_changed(tmp_path):
  before = {
    name: dict(vars(f)) for name, f in vars(weights.files.pickles).items() if hasattr(f, "__dict__")
  }
  for name in ("changes.pth", "changes more.pth"):
    (tmp_path / name).write_bytes(FILES[name])
    with pytest.raises(UserError, match="it changes what is no object of its own"):
      weights.files.read(tmp_path / name, "k")
  found = torch_files.save({"a": np.ones(3, np.float32)}, tmp_path / "x.pth")
  assert np.asarray(weights.files.read(found, "k").arrays["a"]).tolist() == [1, 1, 1]
  assert all(dict(vars(vars(weights.files.pickles)[name])) == old for name, old in before.items())


@pytest.mark.parametrize(
  "name, pack",
  [("x.tar.gz", gzip.compress), full("x.tar.bz2", bz2.compress), full("x.tar.xz", lzma.compress)],
)
def test_tars_that_unpack_without_end(name, pack, tmp_path):
  """Passed over or read, as a member's content or as what describes the next one."""
  header = bytearray(hostile.tarred({"a.png": b""}, "")[:512])
  for kind, size in ((b"0", BIG), (b"x", BIG), (b"L", BIG)):
    header[124:136], header[156:157] = b"%011o\0" % size, kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / name).write_bytes(pack(bytes(header) + bytes(BIG)))
    _, memory = hostile.cost(tmp_path / name)
    with (
      pytest.raises(UserError, match=r"unpack to more than|48,000,000 bytes"),
      archive.Archive(tmp_path / name, max_bytes=1 << 20) as opened,
    ):
      dict(opened.members())
    assert memory < hostile.BYTES


def test_zips_that_lie(tmp_path):
  for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
    (tmp_path / "x.zip").write_bytes(lying(kind))
    _, memory = hostile.cost(tmp_path / "x.zip")
    with (
      pytest.raises(UserError, match=r"npy in it (is damaged|uses an unsupported)"),
      archive.Archive(tmp_path / "x.zip") as opened,
    ):
      opened.read("x/a.npy")
    assert memory < hostile.BYTES


def test_tables_in_gzip_that_unpack_without_end(tmp_path):
  (tmp_path / "x").mkdir()
  (tmp_path / "x" / "a.csv.gz").write_bytes(gzip.compress(bytes(BIG)))
  with (
    archive.Archive(tmp_path / "x") as opened,
    pytest.raises(UserError, match=r"unpacks to more than [0-9,]+ bytes"),
  ):
    list(archive.rows(opened, "a.csv.gz"))


def test_damaged_files_are_one_line_each():
  refused = hostile.run(60, seed=0)
  assert len(refused) == len(hostile.good()) and sum(refused.values()) > 600


def test_what_is_good_is_read(tmp_path):
  for name, data in hostile.good().items():
    (tmp_path / name).write_bytes(data)
    why = hostile.check(tmp_path / name)
    assert why is None or re.search(hostile.OTHER, why)
  for name in ("x.npz", "x.safetensors", "x.pth", "old.pth"):
    found = weights.files.read(tmp_path / name, "k").arrays
    for key, x in hostile.ARRAYS.items():
      same = [value for other, value in found.items() if other.endswith(key)]
      assert len(same) == 1
      np.testing.assert_array_equal(np.asarray(same[0]), x)
