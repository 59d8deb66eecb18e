"""The builder on generated archives in the published layout."""

import hashlib
import io
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from cxrjax.core.errors import UserError
from cxrjax.data import open_source
from cxrjax.data.sources import tfds as source_module

NAME = "covidgr"
module = sys.modules[source_module._builder_class(NAME).__module__]
GRADES = ["NORMAL-PCR+", "MILD", "MODERATE", "SEVERE"]


def name(i):
  return hashlib.md5(str(i).encode()).hexdigest()


def jpeg(i):
  pixels = np.random.default_rng(i).integers(0, 256, (20 + i % 3, 26), dtype=np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
  return buffer.getvalue()


def files():
  """25 negative and 25 positive images; the last positive one has no severity."""
  found = {f"COVIDGR_1.0/N/{name(i)}.jpg": jpeg(i) for i in range(25)}
  found |= {f"COVIDGR_1.0/P/{name(i)}.jpg": jpeg(i) for i in range(25, 50)}
  rows = [f"{name(i)},{GRADES[i % 4]}\n" for i in range(25, 49)]
  return found | {"COVIDGR_1.0/severity.csv": ("Name,Severity\n" + "".join(rows)).encode()}


def write(folder, found, path="COVIDGR_1.0.zip"):
  with zipfile.ZipFile(folder / path, "w") as opened:
    for member, data in found.items():
      opened.writestr(member, data)


def prepare(tmp_path, split="all", to="data", **options):
  return open_source(
    f"tfds:{NAME}",
    split=split,
    data_dir=str(tmp_path / to),
    manual_dir=str(tmp_path / "manual"),
    **options,
  )


def test_zip(manual, tmp_path):
  write(manual, files())
  folds = {f: prepare(tmp_path, f) for f in module.FOLDS}
  assert all(9 <= len(f) <= 11 for f in folds.values())
  assert "tensorflow" not in sys.modules
  ids = [i for f in folds.values() for i in f.table.ids]
  assert len(set(ids)) == len(ids) == 50  # no image is in two folds
  assert not any(any(f.table.patients) for f in folds.values())  # nobody knows them
  assert all(4 <= f.table.labels[:, 1].sum() <= 6 for f in folds.values())
  whole = prepare(tmp_path)
  assert whole.info.classes == ("negative", "positive") and set(whole.table.views) == {"PA"}
  for i, key in enumerate(whole.table.ids):
    n = next(n for n in range(50) if name(n) == key)
    expected = np.asarray(Image.open(io.BytesIO(jpeg(n))))
    np.testing.assert_array_equal(whole[i].image[..., 0], expected)
    assert whole.table.labels[i].tolist() == ([1, 0] if n < 25 else [0, 1])
  assert whole.info.skipped == () and "50 images, where 852 are published" in whole.info.notes


def test_severities(manual, tmp_path):
  write(manual, files())
  found = prepare(tmp_path, label="severity")
  assert found.info.classes == ("negative", "Normal-PCR+", "Mild", "Moderate", "Severe", "unknown")
  assert found.table.labels.sum(0).tolist() == [25, 6, 6, 6, 6, 1]
  row = found.table.labels[found.table.ids.index(name(26))]
  assert found.info.classes[row.argmax()] == "Moderate"
  for fold in module.FOLDS:
    part = prepare(tmp_path, fold, label="severity").table.labels.sum(0)
    assert ((part[1:5] >= 1) & (part[1:5] <= 2)).all()


@pytest.mark.parametrize("layout", ["folder", "top", "list beside", "another name"])
def test_other_layouts_give_the_same(manual, tmp_path, layout):
  write(manual, files())
  expected = prepare(tmp_path, to="first").info.fingerprint
  (manual / "COVIDGR_1.0.zip").unlink()
  found = files()
  if layout == "list beside":
    (manual / "severity.csv").write_bytes(found.pop("COVIDGR_1.0/severity.csv"))
  if layout == "another name":
    write(manual, found, "covidgr-release.zip")
  else:
    for member, data in found.items():
      path = manual / (member if layout != "top" else member.removeprefix("COVIDGR_1.0/"))
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(data)
  assert prepare(tmp_path).info.fingerprint == expected
  assert prepare(tmp_path, label="severity").table.labels.sum(0).tolist() == [25, 6, 6, 6, 6, 1]


def test_what_is_left_out(manual, tmp_path):
  found = files()
  member = f"COVIDGR_1.0/P/{name(30)}.jpg"
  found[member] = found[member][:-200]
  found["COVIDGR_1.0/N/photo.jpg"] = jpeg(0)
  found["COVIDGR_1.0/N/._photo.jpg"] = b"?"
  found[f"COVIDGR_1.0/../../P/{name(60)}.jpg"] = jpeg(0)
  table = "COVIDGR_1.0/severity.csv"
  found[table] += f"{name(99)},MILD\n{name(26)},MODERATE\n".encode()  # one absent, one repeated
  write(manual, found)
  source = prepare(tmp_path)
  assert len(source) == 49
  left = dict(source.info.skipped)
  assert len(left) == 4 and "cut short" in left[name(30)] and "no image" in left[name(99)]
  assert "32 hexadecimal" in next(v for k, v in left.items() if k.endswith("N/photo.jpg"))
  assert "points outside" in next(v for k, v in left.items() if ".." in k)


def test_without_severities(manual, tmp_path):
  found = files()
  del found["COVIDGR_1.0/severity.csv"]
  write(manual, found)
  source = prepare(tmp_path, label="severity")
  assert source.table.labels.sum(0).tolist() == [25, 0, 0, 0, 0, 25]
  assert any("no severity.csv" in note for note in source.info.notes)


def drop(start):
  return lambda found: {k: v for k, v in found.items() if not k.startswith(start)}


def table(old, new):
  def change(found):
    key = "COVIDGR_1.0/severity.csv"
    return found | {key: found[key].replace(old.encode(), new.encode(), 1)}

  return change


@pytest.mark.parametrize(
  "spoil, word",
  [
    (drop("COVIDGR_1.0/P"), r"no images in a folder P \(positive\).*get it from https"),
    (drop("COVIDGR"), r"has no COVIDGR\*.zip .*get it from https"),
    (lambda found: {f"CXR/{k.split('/')[-1]}": v for k, v in found.items()}, "in a folder N"),
    (table("Severity", "Grade"), r"severity.csv has no column 'Severity'; valid: Grade, Name"),
    (
      table("MILD", "MILDE"),
      r"severity.csv line \d+ has the severity 'MILDE'; did you mean 'MILD'",
    ),
    (table("\n", f"\n{name(3)},MILD\n"), r"line 2 gives a severity to .* lies in N"),
    (table("\n", f"\n{name(26)},MILD\n"), r"line \d calls .* Moderate, and .* line 2 Mild"),
    (lambda found: found | {f"COVIDGR_1.0/P/{name(1)}.jpg": jpeg(1)}, "is there twice, as "),
    (table("\n", "\nx\n"), "line 2 does not have the header's .* fields"),
  ],
)
def test_archives_that_cannot_be(manual, tmp_path, spoil, word):
  write(manual, spoil(files()))
  with pytest.raises(UserError, match=word) as error:
    prepare(tmp_path)
  assert "\n" not in str(error.value)
  write(manual, files())  # and once it is mended, it works
  assert len(prepare(tmp_path)) == 50


def test_cut_short(manual, tmp_path):
  write(manual, files())
  path = manual / "COVIDGR_1.0.zip"
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(UserError, match=r"COVIDGR_1.0.zip is not a complete zip.*download it again"):
    prepare(tmp_path)
