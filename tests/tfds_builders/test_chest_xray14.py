"""NIH ChestX-ray14 in every layout it is found in, with Beam and without."""

import gzip
import importlib.util
import re
import sys

import made_sets
import numpy as np
import pytest
import tensorflow_datasets as tfds

from cxrjax.core.errors import UserError
from cxrjax.data.sources import tfds_prepare

NAME = "chest_xray14"
builder = tfds_prepare.builder_class(NAME)
module = sys.modules[builder.__module__]

HEAD = (
  "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient {},View Position,"
  "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
HEADERS = {
  "2020": (HEAD.format("Gender"), "{}", "Data_Entry_2017_v2020.csv", "58"),
  "2017": (HEAD.format("Gender") + ",", "{},", "Data_Entry_2017.csv", "058Y"),
  "box": (HEAD.format("Sex") + ",", "{}", "Data_Entry_2017.csv", "58"),
}
PATIENTS, EACH = 24, 2
LABELS = ["No Finding", "Cardiomegaly|Emphysema", "Hernia", "Infiltration|Effusion|Pneumonia"]


def names():
  return [f"{p:08d}_{i:03d}.png" for p in range(1, PATIENTS + 1) for i in range(EACH)]


def in_test(name):
  return int(name[:8]) > 18


def image(i):
  return made_sets.encoded(i, "RGBA" if i % 10 == 3 else "L")


def entry(i, name, age="58"):
  return (
    f"{name},{LABELS[i % 4]},{i % EACH + 1},{int(name[:8])},{age},{'MF'[i // EACH % 2]},"
    f"{('PA', 'AP')[i % 2]},2894,2729,0.143,0.143"
  )


def tables(header="2020"):
  head, row, file, age = HEADERS[header]
  found = [name for name in names() if in_test(name)]
  return {
    file: made_sets.table(head, *[row.format(entry(i, n, age)) for i, n in enumerate(names())]),
    "train_val_list.txt": "\n".join(n for n in names() if not in_test(n)).encode(),
    "test_list.txt": "\n".join(found).encode(),
    "BBox_List_2017.csv": made_sets.table(
      "Image Index,Finding Label,Bbox [x,y,w,h],,,",
      f"{found[0]},Infiltrate,256.0,128.0,512.0,64.0",
      f"{found[0]},Mass,0,0,1024,1024.4",
    ),
  }


def archives():
  """The images of each of the twelve archives."""
  found = {k: {} for k in range(1, 13)}
  for i, name in enumerate(names()):
    found[i // 4 + 1][f"images/{name}"] = image(i)
  return found


def write(manual, header="2020", pad=3):
  made_sets.folder(manual, tables(header))
  for k, files in archives().items():
    made_sets.packed(manual / f"images_{k:0{pad}d}.tar.gz", files)


def check(manual, data="data"):
  """Every image is there once, with its own pixels and what the tables say of it."""
  parts = {s: made_sets.prepare(NAME, manual, s, data) for s in ("train", "val", "test")}
  owners = {s: set(part.table.patients) for s, part in parts.items()}
  assert len(set.union(*owners.values())) == sum(map(len, owners.values())) == PATIENTS
  assert owners["test"] == {str(p) for p in range(19, 25)} and 1 <= len(owners["val"]) <= 6
  order = {name: i for i, name in enumerate(names())}
  seen = []
  for part in parts.values():
    assert part.info.classes == tuple(sorted(module.LABELS)) and not part.info.exclusive
    seen += part.table.ids
    for k, key in enumerate(part.table.ids):
      i = order[key]
      np.testing.assert_array_equal(part[k].image[..., 0], made_sets.pixels(i))
      present = {c for c, v in zip(part.info.classes, part.table.labels[k], strict=True) if v}
      assert present == set(LABELS[i % 4].split("|"))
      assert part.table.patients[k] == str(int(key[:8])) and part.table.ages[k] == 58
      assert part.table.views[k] == ("PA", "AP")[i % 2]
      assert part.table.sexes[k] == "MF"[i // EACH % 2]
  assert sorted(seen) == names()
  return parts


@pytest.mark.parametrize("header, pad", [("2020", 3), ("2017", 2), ("box", 3)])
def test_archives_and_headers(manual, header, pad):
  write(manual, header, pad)
  check(manual)
  assert "tensorflow" not in sys.modules


def test_unpacked_in_each_way_gives_the_same(manual, tmp_path):
  write(manual)
  one = check(manual)
  kaggle, flat, whole = (tmp_path / n / "manual" for n in ("kaggle", "flat", "whole"))
  numbered = {f"images_{k:03d}/{n}": d for k, files in archives().items() for n, d in files.items()}
  made_sets.folder(kaggle, tables() | numbered)
  made_sets.folder(
    flat / "CXR8", tables() | {n: d for a in archives().values() for n, d in a.items()}
  )
  made_sets.packed(whole / "archive.zip", tables() | numbered)
  for other in (kaggle, flat, whole):
    for split, part in check(other).items():
      assert part.info.fingerprint == one[split].info.fingerprint
      assert part.table.ids == one[split].table.ids


def test_validation_depends_on_nothing_but_the_patient(manual, tmp_path):
  write(manual)
  before = set(made_sets.prepare(NAME, manual, "val").table.patients)
  other = tmp_path / "other" / "manual"
  made_sets.folder(other, tables())
  listed = (other / "train_val_list.txt").read_text().split()
  (other / "train_val_list.txt").write_text("\n".join(listed[::-1]))
  for k, files in archives().items():
    made_sets.packed(other / f"images_{k:03d}.tar.gz", files)
  assert set(made_sets.prepare(NAME, other, "val").table.patients) == before


def test_boxes(manual):
  write(manual)
  made_sets.prepare(NAME, manual, "test")
  made = tfds.builder_from_directory(str(manual.parent / "data" / NAME / "1.0.0"))
  rows = {
    r["id"].decode(): r
    for r in made.as_data_source("test", decoders={"image": tfds.decode.SkipDecoding()})
  }
  found = rows[min(rows)]["boxes"]
  assert [module.FINDINGS[k] for k in found["label"]] == ["Infiltration", "Mass"]
  np.testing.assert_allclose(found["box"], [[1 / 8, 1 / 4, 3 / 16, 3 / 4], [0, 0, 1, 1]])
  assert len(rows[max(rows)]["boxes"]["label"]) == 0 and rows[max(rows)]["follow_up"] == 2
  assert "Wang" in made.info.citation and "112,120" in made.info.description


def test_absent_unlisted_and_broken_images_are_listed(manual):
  write(manual)
  files = archives()[2]
  gone, cut, flipped, *_ = files
  del files[gone]
  files[cut] = files[cut][:60]
  files[flipped] = files[flipped][:45] + b"?" + files[flipped][46:]
  files |= {
    "images/00000099_000.png": image(0),
    "../images/00000001_000.png": image(9),
    "images/readme.txt": b"?",
    "images/._00000001_000.png": b"?",
  }
  made_sets.packed(manual / "images_002.tar.gz", files)
  part = made_sets.prepare(NAME, manual, "all")
  assert len(part) == len(names()) - 3
  assert dict(part.info.skipped) == {
    gone[7:]: "it is listed, but not there",
    cut[7:]: "it is cut short",
    flipped[7:]: "it is damaged (checksum of its IDAT chunk)",
    "00000099_000.png": "it is there, but in no list",
  }


def edit(manual, file, change):
  path = manual / file
  path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
  "spoil, word",
  [
    (lambda m: [f.unlink() for f in m.glob("*.csv")], "has no ChestXray-NIHCC.*get it from https"),
    (lambda m: (m / "test_list.txt").unlink(), "has no test_list.txt; get it from https"),
    (lambda m: [f.unlink() for f in m.glob("*.gz")], "has no images: neither images_001.tar.gz"),
    (lambda m: (m / "images_007.tar.gz").unlink(), "has no images_007.tar.gz"),
    (
      lambda m: [made_sets.packed(m / f"images_{k:03d}.tar.gz", {}) for k in range(1, 9)],
      "images listed for .* are there, .*only a part",
    ),
    (
      lambda m: edit(m, "images_003.tar.gz", lambda d: d[:-200]),
      "images_003.tar.gz.*(not a complete tar|damaged).*download it again",
    ),
    (
      lambda m: edit(
        m, "Data_Entry_2017_v2020.csv", lambda d: d.replace(b"Finding Labels", b"Find")
      ),
      "Data_Entry_2017_v2020.csv has no column 'Finding Labels'",
    ),
    (
      lambda m: edit(m, "Data_Entry_2017_v2020.csv", lambda d: d.replace(b"Gender", b"G")),
      "no column 'Patient Gender'",
    ),
    (
      lambda m: edit(m, "Data_Entry_2017_v2020.csv", lambda d: d.replace(b"Hernia", b"Hernias", 1)),
      "v2020.csv line 4: 'Hernias' is not a finding of this set.*Hernia",
    ),
    (
      lambda m: edit(m, "Data_Entry_2017_v2020.csv", lambda d: d.replace(b",PA,", b",LL,", 1)),
      "line 2: View Position is 'LL'",
    ),
    (
      lambda m: edit(m, "Data_Entry_2017_v2020.csv", lambda d: d.replace(b",58,", b",old,", 1)),
      "line 2: Patient Age is 'old'",
    ),
    (
      lambda m: edit(m, "Data_Entry_2017_v2020.csv", lambda d: d + entry(0, names()[0]).encode()),
      "line 50 lists 00000001_000.png a second time",
    ),
    (
      lambda m: edit(m, "Data_Entry_2017_v2020.csv", lambda d: d.replace(b",2,24,", b",2,23,")),
      "line 49: Image Index .* is not of Patient ID '23'",
    ),
    (
      lambda m: edit(m, "test_list.txt", lambda d: d.split(b"\n", 1)[1]),
      "00000019_000.png is neither in train_val_list.txt nor",
    ),
    (
      lambda m: edit(m, "test_list.txt", lambda d: d + b"\n00000001_000.png"),
      "is in train_val_list",
    ),
    (lambda m: edit(m, "test_list.txt", lambda d: d + b"\n00000050_000.png"), "v2020.csv does not"),
    (
      lambda m: edit(m, "BBox_List_2017.csv", lambda d: d.replace(b"Infiltrate", b"Infil")),
      "line 2: 'Infil' is not a finding",
    ),
  ],
)
def test_one_line_for_each_mistake(manual, spoil, word):
  write(manual)
  spoil(manual)
  assert re.search(word, made_sets.refused(NAME, manual))


@pytest.mark.parametrize(
  "text, years", [("58", 58), ("058Y", 58), ("006M", 0.5), ("000D", 0), ("414", np.nan)]
)
def test_ages(text, years):
  np.testing.assert_equal(module.age(text, "file line 1"), years)


def test_a_gzip_that_is_no_tar(manual):
  write(manual)
  (manual / "images_001.tar.gz").write_bytes(gzip.compress(b"not a tar"))
  assert "images_001.tar.gz is not a complete tar" in made_sets.refused(NAME, manual)


needs_beam = pytest.mark.skipif(
  importlib.util.find_spec("apache_beam") is None, reason="no apache_beam"
)


def with_beam(manual, data):
  import apache_beam as beam

  made = builder(data_dir=str(manual.parent / data), file_format="array_record")
  made.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir=str(manual), beam_runner=beam.runners.DirectRunner()
    )
  )


@needs_beam
@pytest.mark.filterwarnings("ignore")
def test_a_runner_that_loses_images_is_found_out(manual, monkeypatch):
  from cxrjax.builders import beam_pipeline

  told = beam_pipeline.read_account
  monkeypatch.setattr(
    beam_pipeline,
    "read_account",
    lambda folder: ([], {split: n + 2 * (split == "test") for split, n in told(folder)[1].items()}),
  )
  write(manual)
  with pytest.raises(UserError, match="Beam wrote 12 of the 14 images that it read for test"):
    with_beam(manual, "beam")
  assert not list((manual.parent / "beam").rglob("dataset_info.json"))


@needs_beam
@pytest.mark.filterwarnings("ignore")
def test_beam_gives_the_same(manual):
  write(manual)
  files = archives()[2]
  gone, cut, *_ = files
  del files[gone]
  files[cut] = files[cut][:60]
  files["images/00000099_000.png"] = image(0)
  made_sets.packed(manual / "images_002.tar.gz", files)
  one = made_sets.prepare(NAME, manual, "all")
  with_beam(manual, "beam")
  other = made_sets.prepare(NAME, manual, "all", "beam")
  assert other.table.ids == one.table.ids and other.info.fingerprint == one.info.fingerprint
  assert sorted(other.info.skipped) == sorted(one.info.skipped) and len(one.info.skipped) == 3
  np.testing.assert_array_equal(other.table.labels, one.table.labels)
  assert not list((manual.parent / "beam").rglob("account.json"))


@pytest.mark.full
@pytest.mark.parametrize("flags", [(), ("--beam_pipeline_options=runner=DirectRunner",)])
def test_tfds_build(manual, flags):
  write(manual)
  made_sets.command(NAME, manual, manual.parent / "built", *flags)
  built = made_sets.prepare(NAME, manual, "all", "built")
  ours = made_sets.prepare(NAME, manual, "all")
  assert built.info.fingerprint == ours.info.fingerprint and built.table.ids == ours.table.ids
