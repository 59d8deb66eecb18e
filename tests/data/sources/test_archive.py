import gzip
import io
import os
import tarfile
import zipfile

import pytest

from cxrjax.core import files as careful
from cxrjax.core.errors import UserError
from cxrjax.data.sources import archive

FILES = {"set/a/1.png": b"one" * 300, "set/b/2.png": b"two" * 300, "set/list.csv": b"x,y\n"}
JUNK = {
  "__MACOSX/set/a/._1.png": b"?",
  "set/.DS_Store": b"?",
  "set/a/Thumbs.db": b"?",
  "set/.ipynb_checkpoints/1.png": b"?",
  "set/a/._1.png": b"?",
  "set/desktop.ini": b"?",
}


def write_zip(path, files):
  with zipfile.ZipFile(path, "w") as opened:
    for name, data in files.items():
      opened.writestr(name, data)
  return path


def write_tar(path, files):
  kind = {"gz": "w:gz", "tgz": "w:gz", "xz": "w:xz", "bz2": "w:bz2"}.get(path.name.split(".")[-1])
  with tarfile.open(path, kind or "w") as opened:
    for name, data in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      opened.addfile(info, io.BytesIO(data))
  return path


def write(path, files):
  return write_zip(path, files) if path.suffix == ".zip" else write_tar(path, files)


@pytest.fixture
def packed(tmp_path):
  return write_zip(tmp_path / "set.zip", FILES | JUNK)


def test_all_kinds_read_alike(packed, tmp_path):
  folder = tmp_path / "unpacked"
  zipfile.ZipFile(packed).extractall(folder)
  tars = [
    write_tar(tmp_path / f"set.{end}", FILES | JUNK)
    for end in ("tar", "tar.gz", "tgz", "tar.xz", "tar.bz2")
  ]
  for path in (packed, folder, *tars):
    with archive.Archive(path) as opened:
      assert opened.names == tuple(sorted(FILES))
      assert {name: opened.read(name) for name in reversed(opened.names)} == FILES
      assert "set/a/1.png" in opened and "set/a" not in opened
      assert not opened.refused
    with archive.Archive(path) as opened:
      assert dict(opened.members()) == FILES
      assert dict(opened.members({"set/b/2.png"})) == {"set/b/2.png": FILES["set/b/2.png"]}
      assert opened.names == tuple(sorted(FILES))


def test_members_come_in_the_order_they_lie_in(tmp_path):
  files = {"z": b"1", "a": b"2", "m": b"3"}
  for name in ("x.zip", "x.tar", "x.tar.gz"):
    with archive.Archive(write(tmp_path / name, files)) as opened:
      assert [n for n, _ in opened.members()] == ["z", "a", "m"]


def test_a_pass_given_up_leaves_no_half_list(tmp_path):
  with archive.Archive(write_tar(tmp_path / "x.tar.gz", FILES)) as opened:
    next(opened.members())
    assert opened.names == tuple(sorted(FILES))
    assert dict(opened.members()) == FILES


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_names_that_lead_out_and_names_that_come_twice(tmp_path, kind):
  path = tmp_path / f"x.{kind}"
  names = [
    "a.png",
    "../../evil.png",
    "/etc/evil.png",
    "b/../../evil.png",
    "C:\\evil.png",
    "b/../c.png",
    "./d.png",
  ]
  if kind == "zip":
    with zipfile.ZipFile(path, "w") as opened:
      for name in [*names, "a.png"]:
        opened.writestr(name, b"second" if opened.namelist().count(name) else b"first")
  else:
    write_tar(path, dict.fromkeys(names, b"first") | {"./a.png": b"second"})
  with archive.Archive(path) as opened:
    assert opened.names == ("a.png", "c.png", "d.png") and opened.read("a.png") == b"first"
    assert [reason for _, reason in opened.refused].count(
      "its name points outside the archive"
    ) == 4
    assert sum("occurs twice" in reason for _, reason in opened.refused) == 1
    assert len(opened.refused) == 5
    for name in ("../../evil.png", "/etc/passwd", "nothing.png"):
      assert name not in opened
      with pytest.raises(UserError, match="has no"):
        opened.read(name)


def test_links_in_a_tar_are_not_followed(tmp_path):
  path = tmp_path / "x.tar"
  with tarfile.open(path, "w") as opened:
    info = tarfile.TarInfo("link.png")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    opened.addfile(info)
  with archive.Archive(path) as opened:
    assert opened.names == () and "link" in opened.refused[0][1]


def test_folders_with_links_to_folders(tmp_path):
  (tmp_path / "far").mkdir()
  (tmp_path / "far" / "1.png").write_bytes(b"1")
  near = tmp_path / "near"
  near.mkdir()
  os.symlink(tmp_path / "far", near / "images")
  os.symlink(near, near / "again")  # a circle
  with archive.Archive(near) as opened:
    assert opened.names == ("images/1.png",) and opened.read("images/1.png") == b"1"
    (tmp_path / "secret").write_bytes(b"?")
    with pytest.raises(UserError, match="has no"):
      opened.read("../secret")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_cut_short(tmp_path, kind):
  path = write(tmp_path / f"set.{kind}", FILES)
  whole = path.read_bytes()
  for n in (4096 if kind == "tar" else len(whole) - 7, 2900, 600, 90, 3, 0):
    if n >= len(whole):
      continue
    path.write_bytes(whole[:n])
    with (
      pytest.raises(UserError, match=f"set.{kind}.*(damaged|not a complete .*).*download") as e,
      archive.Archive(path) as opened,
    ):
      _ = opened.names
      dict(opened.members())
    assert "\n" not in str(e.value)


def test_a_zip_cut_after_a_zip_in_it(tmp_path):
  inner = write_zip(tmp_path / "inner.zip", FILES).read_bytes()
  path = write_zip(tmp_path / "set.zip", {"1.png": b"1", "table.xlsx": inner})
  path.write_bytes(path.read_bytes()[:-30])  # Python takes the inner zip's end for the whole's
  with pytest.raises(UserError, match=r"set.zip is not a complete zip file \(its end is missing\)"):
    archive.Archive(path)


def test_a_tar_cut_between_two_files(tmp_path):
  path = write_tar(tmp_path / "set.tar", {"1": bytes(range(256)) * 2, "2": b"x" * 512})
  whole = path.read_bytes()
  path.write_bytes(whole[:1024])
  with archive.Archive(path) as opened, pytest.raises(UserError, match="end is missing"):
    list(opened.members())
  packed = tmp_path / "set.tar.gz"
  packed.write_bytes(gzip.compress(whole[:1024]))
  with archive.Archive(packed) as opened, pytest.raises(UserError, match="end is missing"):
    _ = opened.names


def test_damaged_member(packed):
  data = bytearray(packed.read_bytes())
  at = data.index(b"oneone")
  data[at : at + 6] = b"xxxxxx"
  packed.write_bytes(data)
  with archive.Archive(packed) as opened, pytest.raises(UserError, match=r"1.png in it is damaged"):
    opened.read("set/a/1.png")


def test_zip_bombs(tmp_path, monkeypatch):
  monkeypatch.setattr(careful, "SMALL_MEMBER_BYTES", 1000)
  path = tmp_path / "x.zip"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
    opened.writestr("a.png", bytes(1_000_000))
    opened.writestr("text.csv", b"1,2,3\n" * 10 + bytes(range(256)) * 8)
  with archive.Archive(path) as opened:
    assert opened.read("text.csv")
    with pytest.raises(UserError, match=r"a.png in it would unpack to 1,000,000 bytes from"):
      opened.read("a.png")
  for name in ("x.zip", "x.tar.gz", "x"):
    if name == "x":
      (tmp_path / "x").mkdir()
      (tmp_path / "x" / "a.png").write_bytes(b"1" * 5001)
    else:
      write(tmp_path / name, {"a.png": b"1" * 5001})
    with (
      archive.Archive(tmp_path / name, max_bytes=5000) as opened,
      pytest.raises(UserError, match=r"a.png in it has 5,001 bytes; at most 5,000 are read"),
    ):
      dict(opened.members())


def test_a_zip_that_lies_about_sizes(tmp_path):
  """The header says 10 bytes; a million are packed."""
  path = tmp_path / "x.zip"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
    opened.writestr("a.png", bytes(1_000_000))
  data = bytearray(path.read_bytes())
  size = (1_000_000).to_bytes(4, "little")
  while size in data:
    at = data.index(size)
    data[at : at + 4] = (10).to_bytes(4, "little")
  path.write_bytes(data)
  with archive.Archive(path) as opened, pytest.raises(UserError, match="damaged"):
    opened.read("a.png")


def test_encrypted_and_oddly_packed(tmp_path):
  for offset, value, word in ((8, 1, "encrypted.*unpack it"), (10, 9, "give the folder")):
    path = write_zip(tmp_path / "x.zip", {"a.png": b"1"})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2")
    data[at + offset] |= value
    data[offset - 2] |= value
    path.write_bytes(data)
    with archive.Archive(path) as opened, pytest.raises(UserError, match=word):
      opened.read("a.png")


def test_archives_in_a_folder_read_as_folders(tmp_path):
  folder = tmp_path / "set"
  folder.mkdir()
  write_zip(folder / "0.zip", {"a.png": b"0a"})
  write_tar(folder / "1.tar.gz", {"images/b.png": b"1b"})
  (folder / "2").mkdir()
  (folder / "2" / "c.png").write_bytes(b"2c")
  expected = {"0/a.png": b"0a", "1/images/b.png": b"1b", "2/c.png": b"2c"}
  for path in (
    folder,
    write_zip(
      tmp_path / "set.zip",
      {"2/c.png": b"2c", "0.zip": (folder / "0.zip").read_bytes(), "1/images/b.png": b"1b"},
    ),
  ):
    with archive.Archive(path, nested=True) as opened:
      assert opened.names == tuple(expected)
      assert {name: opened.read(name) for name in opened.names} == expected
      assert dict(opened.members()) == expected and "0/a.png" in opened
      assert list(opened.members({"0/a.png"})) == [("0/a.png", b"0a")]
  (folder / "0.zip").write_bytes(b"PK half")
  with pytest.raises(UserError, match=r"0.zip is not a complete zip"):
    archive.Archive(folder, nested=True)


def test_rows(tmp_path):
  text = b'\xef\xbb\xbfid,age,\r\nx,3,\r\n"y,\r\nz",4\r\n'
  path = write_zip(tmp_path / "x.zip", {"a.csv": text, "b.csv.gz": gzip.compress(text)})
  with archive.Archive(path) as opened:
    for name in ("a.csv", "b.csv.gz"):
      found = list(archive.rows(opened, name, ("id", "age")))
      assert [row["id"] for _, row in found] == ["x", "y,\r\nz"]
      assert found[0][0].endswith(f"{name} line 2") and found[1][0].endswith("line 4")
    with pytest.raises(UserError, match=r"a.csv has no column 'ages'; did you mean 'age'"):
      list(archive.rows(opened, "a.csv", ("ages",)))


@pytest.mark.parametrize(
  "data, word",
  [
    (b"id,age\nx\n", "line 2 does not have the header's"),
    (b"id,age\nx,1,2\n", "line 2 does not have the header's"),
    (b"id,age\n\xff,1\n", "not text in UTF-8"),
    (b"", "no column 'id'"),
    (b"id,age\n" + b"x" * 200_000 + b",1\n", "is not valid CSV"),
  ],
)
def test_rows_of_a_damaged_csv(tmp_path, data, word):
  with (
    archive.Archive(write_zip(tmp_path / "x.zip", {"a.csv": data})) as opened,
    pytest.raises(UserError, match=word),
  ):
    list(archive.rows(opened, "a.csv", ("id", "age")))


def test_missing(tmp_path):
  with pytest.raises(UserError, match="does not exist"):
    archive.Archive(tmp_path / "no.zip")


def test_find(packed, tmp_path):
  assert archive.find(tmp_path, ("other.zip", "set.zip", "set"), "somewhere") == packed
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=r"has no set.zip \(nor set\).*get it from somewhere"):
    archive.find(tmp_path / "empty", ("set.zip", "set"), "somewhere")
  (tmp_path / "empty" / "set.zip.crdownload").write_bytes(b"half")
  with pytest.raises(UserError, match=r"set.zip.crdownload is an unfinished download"):
    archive.find(tmp_path / "empty", ("set.zip", "set"), "somewhere")
  (tmp_path / "empty" / "images").mkdir()
  assert archive.find(tmp_path / "empty", ("set.zip",), "somewhere", ("images",)).name == "empty"


def test_gather(tmp_path):
  write_zip(tmp_path / "Set_1.zip", {"a/1.png": b"1", "../2.png": b"2"})
  (tmp_path / "Set_1" / "a").mkdir(parents=True)
  (tmp_path / "Set_1" / "a" / "1.png").write_bytes(b"half")  # the archive is what counts
  (tmp_path / "list.csv").write_bytes(b"x")
  (tmp_path / "other.zip").write_bytes(b"PK another set's, damaged")
  with archive.gather(tmp_path, ("set*", "list.csv"), "somewhere") as opened:
    assert dict(opened.members()) == {"Set_1/a/1.png": b"1", "list.csv": b"x"}
    assert opened.read("Set_1/a/1.png") == b"1"
    assert opened.refused == (("Set_1/../2.png", "its name points outside the archive"),)
  with pytest.raises(UserError, match=r"has no third\*.zip \(nor third\); get it from somewhere"):
    archive.gather(tmp_path, ("third*.zip", "third"), "somewhere")
  (tmp_path / "Set_1.zip").write_bytes(b"PK half")
  with pytest.raises(UserError, match=r"Set_1.zip is not a complete zip"):
    archive.gather(tmp_path, ("set*",), "somewhere")


def test_stem():
  assert archive.stem("x/images_001.tar.gz") == "images_001" and archive.stem("0.ZIP") == "0"
  assert archive.is_archive("a.TGZ") and not archive.is_archive("a.csv.gz")
