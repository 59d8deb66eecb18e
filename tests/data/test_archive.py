import zipfile

import pytest

from cxrjax.core.errors import UserError
from cxrjax.data import archive

FILES = {"set/a/1.png": b"one" * 300, "set/b/2.png": b"two" * 300, "set/list.csv": b"x,y\n"}
JUNK = {"__MACOSX/set/a/._1.png": b"?", "set/.DS_Store": b"?", "set/a/Thumbs.db": b"?",
        "set/.ipynb_checkpoints/1.png": b"?", "set/a/._1.png": b"?", "set/desktop.ini": b"?"}


@pytest.fixture
def packed(tmp_path):
  path = tmp_path / "set.zip"
  with zipfile.ZipFile(path, "w") as opened:
    for name, data in (FILES | JUNK).items():
      opened.writestr(name, data)
  return path


def test_zip_and_folder_read_alike(packed, tmp_path):
  folder = tmp_path / "unpacked"
  zipfile.ZipFile(packed).extractall(folder)
  for path in (packed, folder):
    with archive.Archive(path) as opened:
      assert opened.names == tuple(sorted(FILES))
      assert {name: opened.read(name) for name in opened.names} == FILES


def test_half_downloaded(packed):
  packed.write_bytes(packed.read_bytes()[:-40])
  with pytest.raises(UserError, match=r"set.zip is not a whole zip file.*download it again"):
    archive.Archive(packed)


def test_damaged_member(packed):
  data = bytearray(packed.read_bytes())
  at = data.index(b"oneone")
  data[at:at + 6] = b"xxxxxx"
  packed.write_bytes(data)
  with archive.Archive(packed) as opened, pytest.raises(UserError, match=r"1.png in it is damaged"):
    opened.read("set/a/1.png")


def test_missing(tmp_path):
  with pytest.raises(UserError, match="does not exist"):
    archive.Archive(tmp_path / "no.zip")


def test_find(packed, tmp_path):
  assert archive.find(tmp_path, ("other.zip", "set.zip", "set"), "somewhere") == packed
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=r"has no set.zip \(nor set\).*get it from somewhere"):
    archive.find(tmp_path / "empty", ("set.zip", "set"), "somewhere")
  (tmp_path / "empty" / "set.zip.crdownload").write_bytes(b"half")
  with pytest.raises(UserError, match=r"set.zip.crdownload is a download that has not finished"):
    archive.find(tmp_path / "empty", ("set.zip", "set"), "somewhere")
