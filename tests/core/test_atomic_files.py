"""Files that are replaced as a whole."""

import os
import stat

import pytest

from cxrjax.core.atomic_files import LEFTOVERS, atomic_open, atomic_path


@pytest.mark.parametrize("write", [atomic_open, atomic_path])
def test_a_file_appears_whole_or_not_at_all(tmp_path, write):
  path = tmp_path / "new" / "file"

  def put(data, error=None):
    with write(path) as target:
      target.write(data) if write is atomic_open else target.write_bytes(data)
      assert [p.name for p in path.parent.glob(LEFTOVERS)]
      if error:
        raise error

  with pytest.raises(KeyboardInterrupt):
    put(b"half", KeyboardInterrupt())
  assert list(path.parent.iterdir()) == []
  put(b"first")
  with pytest.raises(OSError, match="full"):
    put(b"sec", OSError("full"))
  assert path.read_bytes() == b"first"
  put(b"second")
  assert path.read_bytes() == b"second" and list(path.parent.iterdir()) == [path]


def test_two_writers_do_not_meet(tmp_path):
  path = tmp_path / "file"
  with atomic_open(path) as a, atomic_open(path) as b:
    a.write(b"a")
    b.write(b"b")
  assert path.read_bytes() == b"a"  # whose block ended last


@pytest.mark.parametrize(("private", "mode"), [(False, 0o644), (True, 0o600)])
def test_who_may_read(tmp_path, private, mode):
  before = os.umask(0o022)
  try:
    with atomic_open(tmp_path / "file", private=private):
      pass
  finally:
    os.umask(before)
  assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_path_that_nothing_was_written_to(tmp_path):
  with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file"):
    pass
