import hashlib
import os

from cxrjax.data import hashes


def test_hashes_are_of_the_bytes_and_remembered(tmp_path, cache, monkeypatch):
  files = [tmp_path / f"{i}.bin" for i in range(5)]
  for i, file in enumerate(files[:4]):
    file.write_bytes(bytes([i]) * 1000)
  expected = [hashlib.sha256(bytes([i]) * 1000).hexdigest() for i in range(4)] + [""]
  assert hashes.content_hashes(files) == expected

  reads = []
  real = hashlib.file_digest
  monkeypatch.setattr(hashlib, "file_digest", lambda f, name: reads.append(f.name) or real(f, name))
  assert hashes.content_hashes(files) == expected and reads == []
  files[2].write_bytes(b"changed")
  assert hashes.content_hashes(files)[2] == hashlib.sha256(b"changed").hexdigest()
  assert reads == [str(files[2])]
  files[1].write_bytes(b"x" * 1000)  # the same size, another time
  os.utime(files[1], ns=(0, 1))
  assert hashes.content_hashes(files)[1] == hashlib.sha256(b"x" * 1000).hexdigest()


def test_without_a_memory_files_are_read(tmp_path, cache):
  file = tmp_path / "a"
  file.write_bytes(b"a")
  expected = [hashlib.sha256(b"a").hexdigest()]
  cache.write_text("a file where the folder should be")
  assert hashes.content_hashes([file]) == expected
  cache.unlink()
  hashes.content_hashes([file])
  (memory,) = (cache / "hashes").iterdir()
  memory.write_text("{ damaged")
  assert hashes.content_hashes([file]) == expected
  assert hashes.content_hashes([]) == []
