import gzip
import hashlib
import os
import shutil
import zipfile

import dicoms
import numpy as np
import pytest
from dicoms import dicom as encode_dicom

from cxrjax.core.errors import UserError
from cxrjax.data import load_images, open_source
from cxrjax.data.decoding import decode
from cxrjax.data.sources import file_hashes, folder_index
from cxrjax.data.sources.folder_index import Index


@pytest.fixture
def root(tmp_path):
  folder = tmp_path / "set"
  folder.mkdir()
  return folder


@pytest.fixture
def reads(monkeypatch):
  """Paths of the files that are opened; none is fresh."""
  monkeypatch.setattr(file_hashes, "FRESH", 0)
  seen = []
  real = Index.open
  monkeypatch.setattr(
    Index, "open", lambda self, row: seen.append(self.paths[row]) or real(self, row)
  )
  return seen


def write(root, files):
  for name, data in files.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)


def pack(file, files):
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
    for name, data in files.items():
      packed.writestr(name, data)


def images(index):
  return [index.paths[row] for row in index.images.tolist()]


def test_files_by_extension_in_any_case_and_dicom_by_its_first_bytes(root, encode, texture):
  picture, medical = encode(texture(20, 20)), encode_dicom(texture(20, 20))
  write(
    root,
    {
      "a/1.PNG": picture,
      "a/2.bmp": picture,
      "3.Dicom": medical,
      "IM0001": medical,
      "1.2.840.55": medical,
      "README": b"read me",
      "DICOMDIR": medical,
      ".hidden": medical,
      "notes.txt": b"",
      "__MACOSX/4.png": picture,
      ".git/5.png": picture,
      "6": b"DICM",
    },
  )
  index = Index(root)
  assert images(index) == ["1.2.840.55", "3.Dicom", "IM0001", "a/1.PNG", "a/2.bmp"]
  assert [int(index.kinds[row]) for row in index.images] == [1, 1, 1, 0, 0]
  assert [(o.kind, len(o.paths), o.paths[0]) for o in index.others] == [
    ("hidden", 2, ".git/"),
    ("without extension", 2, "6"),
    (".txt", 1, "notes.txt"),
    ("DICOMDIR", 1, "DICOMDIR"),
  ]


def test_every_name_of_an_image_is_known(root, encode, texture):
  picture, medical = encode(texture(20, 20)), encode_dicom(texture(20, 20))
  kinds = (
    "jfif",
    "jpe",
    "jpg",
    "jpeg",
    "png",
    "tif",
    "tiff",
    "bmp",
    "webp",
    "gif",
    "jp2",
    "j2k",
    "pgm",
    "ppm",
  )
  bare = medical[132:]  # neither preamble nor the letters that follow it
  write(
    root,
    {f"{i:02d}.{kind}": picture for i, kind in enumerate(kinds)}
    | {
      "20.ima": medical,
      "21.dic": medical,
      "22.dcm.gz": gzip.compress(medical),
      "23": bare,
      "1.2.840.113.5": bare,
    },
  )
  index = Index(root)
  assert len(images(index)) == len(kinds) + 5 and not index.others
  assert int((index.kinds[index.images] == 1).sum()) == 5
  for row in index.images.tolist()[-5:]:
    np.testing.assert_array_equal(decode.decode(index.read(row))[..., 0], texture(20, 20))


def test_what_is_left_out_of_a_zip_is_counted_too(root, encode, texture):
  files = {"a/1.png": encode(texture(20, 20)), ".2.png": b"", ".git/3.png": b"", "Thumbs.db": b""}
  pack(root / "x.zip", files)
  for _ in range(2):  # the second time from memory
    index = Index(root)
    assert images(index) == ["x/a/1.png"]
    assert [(o.kind, o.paths) for o in index.others] == [("hidden", ("x/.2.png", "x/.git/3.png"))]


def test_what_changed_is_noticed_and_only_that_is_read_again(root, reads):
  write(root, {f"{i % 3}/{i}.png": bytes([i]) * 10 for i in range(9)} | {"x": b"no image"})

  def look(check="files"):
    reads.clear()
    index = Index(root, check=check)
    index.learn(index.images)
    return index, sorted(reads)

  first, seen = look()
  assert len(seen) == 10 and len(first.images) == 9 and first.facts.known[first.images].all()
  again, seen = look()
  assert seen == [] and again.paths == first.paths
  np.testing.assert_array_equal(again.facts.digests, first.facts.digests)

  (root / "0" / "0.png").write_bytes(b"longer than it was")
  os.utime(root / "1" / "1.png", ns=(0, 1))
  (root / "2" / "2.png").rename(root / "2" / "new.png")
  (root / "0" / "3.png").unlink()
  write(root, {"4/added.png": b"added"})
  index, seen = look()
  assert seen == ["0/0.png", "1/1.png", "2/new.png", "4/added.png"]
  assert images(index) == [
    "0/0.png",
    "0/6.png",
    "1/1.png",
    "1/4.png",
    "1/7.png",
    "2/5.png",
    "2/8.png",
    "2/new.png",
    "4/added.png",
  ]
  assert not (index.facts.digests[0] == first.facts.digests[0]).all()

  (root / "0" / "0.png").write_bytes(b"changed in place")
  write(root, {"4/more.png": b"more"})
  index, seen = look(check="names")  # looks at names alone
  assert seen == ["4/more.png"]
  assert look()[1] == ["0/0.png"]


def test_a_file_in_the_place_of_another_of_the_same_size_and_time(root, tmp_path, reads):
  write(root, {"1.png": b"one", "2.png": b"two"})
  times = root.joinpath("1.png").stat()
  first = Index(root)
  first.learn(first.images)
  write(tmp_path, {"other.png": b"new"})
  os.utime(tmp_path / "other.png", ns=(times.st_atime_ns, times.st_mtime_ns))
  (tmp_path / "other.png").replace(root / "1.png")
  assert file_hashes.file_state((root / "1.png").stat())[:2] == file_hashes.file_state(times)[:2]
  reads.clear()
  again = Index(root)
  again.learn(again.images)
  assert reads == ["1.png"]
  assert bytes(again.facts.digests[0]) == hashlib.sha256(b"new").digest()[:16]


def test_a_file_that_was_listed_just_after_it_was_written_is_read_once_more(
  root, reads, monkeypatch
):
  monkeypatch.setattr(file_hashes, "FRESH", 10**18)
  write(root, {"1.png": b"1", "name": b"no image"})
  pack(root / "x.zip", {"2.png": b"2"})
  for seen in (["1.png", "name", "x/2.png"],) * 2:
    reads.clear()
    index = Index(root)
    index.learn(index.images)
    assert sorted(reads) == seen
  monkeypatch.setattr(file_hashes, "FRESH", 0)
  reads.clear()
  Index(root).learn(index.images)
  assert reads == []


def test_an_interrupted_reading_goes_on_where_it_was(root, monkeypatch):
  write(root, {f"{i}.png": b"%d" % i for i in range(300)})
  monkeypatch.setattr(file_hashes, "FRESH", 0)
  monkeypatch.setattr(file_hashes, "_SAVE_EVERY", 100)
  real, calls = file_hashes.Facts._read, []

  def failing(self, row, file, key):
    calls.append(row)
    if len(calls) > 250:
      raise KeyboardInterrupt
    real(self, row, file, key)

  monkeypatch.setattr(file_hashes.Facts, "_read", failing)
  index = Index(root)
  with pytest.raises(KeyboardInterrupt):
    index.learn(index.images)
  monkeypatch.setattr(file_hashes.Facts, "_read", real)
  assert Index(root).facts.known.sum() == 200


def test_a_damaged_or_unwritable_memory_does_not_matter(root, cache):
  write(root, {"1.png": b"1", "2.png": b"2"})
  first = Index(root)
  first.learn(first.images)
  (memory,) = (cache / "folders").iterdir()
  whole = memory.read_bytes()
  rng = np.random.default_rng(0)
  flips = [bytearray(whole) for _ in range(100)]
  for flipped in flips:
    flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
  for damage in (b"", b"PK", whole[:-50], whole.replace(b"1.png", b"x"), *flips):
    memory.write_bytes(damage)
    index = Index(root)
    index.learn(index.images)
    np.testing.assert_array_equal(index.facts.digests, first.facts.digests)
  shutil.rmtree(cache)
  cache.write_text("a file where the folder should be")
  index = Index(root)
  index.learn(index.images)
  np.testing.assert_array_equal(index.facts.digests, first.facts.digests)


def test_links_are_followed_and_loops_are_not(root, tmp_path):
  elsewhere = tmp_path / "elsewhere"
  write(elsewhere, {"far.png": b"1"})
  write(root, {"own/1.png": b"1"})
  (root / "a_link").symlink_to(root / "own")
  (root / "linked").symlink_to(elsewhere)
  (root / "own" / "up").symlink_to(root)
  (root / "gone.png").symlink_to(root / "nothing")
  (root / "file.png").symlink_to(root / "own" / "1.png")
  assert images(Index(root)) == ["file.png", "linked/far.png", "own/1.png"]


def test_names_of_any_bytes(root):
  name = b"\xff\xe9 \n'.png"
  (root / "ü.png").write_bytes(b"1")
  with open(os.fsencode(root) + b"/" + name, "wb") as opened:
    opened.write(b"2")
  for _ in range(2):
    index = Index(root)
    index.learn(index.images)
    assert sorted(images(index)) == sorted(["ü.png", os.fsdecode(name)])
    assert index.facts.known.all() and index.read(int(index.images[0])) in (b"1", b"2")


def test_a_folder_that_may_not_be_listed(root, monkeypatch):
  write(root, {"1.png": b"1", "closed/2.png": b"2"})
  real = os.scandir

  def scandir(path):
    if "closed" in str(path):
      raise PermissionError(13, "Permission denied")
    return real(path)

  monkeypatch.setattr(os, "scandir", scandir)
  with pytest.raises(UserError, match=r"closed cannot be listed .Permission denied"):
    Index(root)


# Zips.


def test_a_zip_is_a_folder(root, tmp_path, encode, texture, reads):
  files = {
    f"{s}/{c}/{i}.png": encode(texture(20, 20, seed=i))
    for s in ("train", "test")
    for c in "ab"
    for i in range(2)
  }
  write(root, files)
  packed = tmp_path / "set.zip"
  pack(packed, files)
  folder, zipped = (open_source(f"folder:{p}", split="train") for p in (root, packed))
  assert zipped.table.ids == folder.table.ids == tuple(sorted(n for n in files if "train" in n))
  assert zipped.info.classes == ("a", "b") and zipped.info.splits == {"train": 4, "test": 4}
  assert zipped.info.fingerprint == folder.info.fingerprint
  np.testing.assert_array_equal(zipped[3].image, folder[3].image)
  reads.clear()
  open_source(f"folder:{packed}", split="train")
  assert reads == []
  pack(packed, files | {"train/b/2.png": encode(texture(21, 20))})
  assert len(open_source(f"folder:{packed}", split="train")) == 5


def test_zips_below_a_folder(root, encode, texture):
  picture = encode(texture(20, 20))
  write(root, {"val/a/1.png": picture, "unpacked/a/1.png": picture})
  pack(root / "train.zip", {"a/1.png": picture, "b/2.png": picture, "__MACOSX/b/._2.png": b"x"})
  pack(
    root / "val" / "b.ZIP",
    {
      "deep/3.png": picture,
      "notes.txt": b"x",
      "IM1": encode_dicom(texture(20, 20)),
      "README": b"x",
    },
  )
  pack(root / "unpacked.zip", {"a/1.png": picture})
  for _ in range(2):  # afresh, and from memory
    index = Index(root)
    assert images(index) == [
      "train/a/1.png",
      "train/b/2.png",
      "unpacked/a/1.png",
      "val/a/1.png",
      "val/b/IM1",
      "val/b/deep/3.png",
    ]
    assert index.notes == [
      ("unpacked.zip", " was not opened: a folder beside it has the same name")
    ]
    assert [index.read(row) == picture for row in index.images.tolist()] == [True] * 4 + [
      False,
      True,
    ]
  (root / "train.zip").unlink()
  assert images(Index(root))[:2] == ["unpacked/a/1.png", "val/a/1.png"]


def test_what_a_zip_must_not_do(root, tmp_path, encode, texture):
  picture = encode(texture(20, 20))
  pack(
    tmp_path / "x.zip",
    {
      "../../out.png": picture,
      "/etc/abs.png": picture,
      "in.png": picture,
      "bomb.bmp": bytes(40 << 20),
    },
  )
  for _ in range(2):
    index = Index(tmp_path / "x.zip")
    assert images(index) == ["bomb.bmp", "in.png"]
    assert sorted(name for name, why in index.notes if "points outside the archive" in why) == [
      "../../out.png",
      "/etc/abs.png",
    ]
  with pytest.raises(decode.BadImage, match="would unpack to 41,943,040 bytes"):
    index.read(0)
  found = load_images(
    open_source(f"folder:{tmp_path / 'x.zip'}", split="all"),
    16,
    progress=False,
    on_bad_image="skip",
  )
  assert len(found) == 1 and not (tmp_path / "out.png").exists()


def test_damaged_zips_are_named(root, tmp_path, encode, texture):
  pack(tmp_path / "x.zip", {"1.png": encode(texture(40, 40)), "2.png": encode(texture(40, 40))})
  data = (tmp_path / "x.zip").read_bytes()
  (root / "cut.zip").write_bytes(data[:-30])
  for path in (root, root / "cut.zip"):
    with pytest.raises(UserError, match=r"cut.zip is not a complete zip"):
      Index(path)
  broken = bytearray(data)
  broken[100:140] = bytes(40)
  (root / "cut.zip").unlink()
  (root / "bits.zip").write_bytes(broken)
  index = Index(root)
  index.learn(index.images)
  assert index.facts.known.tolist() == [False, True]
  with pytest.raises(decode.BadImage, match=r"1.png in it is damaged"):
    index.read(0)


def test_a_file_larger_than_any_radiograph_is_not_read(root, monkeypatch):
  write(root, {"1.png": bytes(2000)})
  monkeypatch.setattr(folder_index.archive, "MAX_BYTES", 1000)
  with pytest.raises(decode.BadImage, match="more than 1,000 bytes"):
    Index(root).read(0)


# Patients.


def test_nothing_that_names_a_patient_is_kept(root, cache, texture, caplog, capfd):
  write(root, {f"{i}.dcm": encode_dicom(texture(20, 20, seed=i)) for i in range(3)})
  source = open_source(f"folder:{root}", split="all")
  images = load_images(source, 16, progress=False)
  said = repr((source.table, source.info, images.info, source[0])) + caplog.text
  kept = b"".join(f.read_bytes() for f in cache.rglob("*") if f.is_file()) + said.encode()
  kept += "".join(capfd.readouterr()).encode()
  assert not [s for s in dicoms.SECRETS.values() if s.encode() in kept]
  assert len(list(cache.rglob("*.npz"))) >= 1
