"""The builder on generated archives in the published layout, and on a real one with a manifest."""

import collections
import io
import re
import sys
import zipfile
from xml.sax.saxutils import escape

import numpy as np
import pytest
from PIL import Image

from cxrjax.core.errors import UserError
from cxrjax.data import open_source
from cxrjax.data.sources import tfds as source_module
from cxrjax.data.splits import patient_splits

NAME = "covid19_radiography"
module = sys.modules[source_module._builder_class(NAME).__module__]
ROOT = "COVID-19_Radiography_Dataset/"
NAMES = [f"{label}-{i}" for label in module.LABELS for i in range(1, 11)]
COPIES = {"COVID-2": "COVID-1", "COVID-3": "COVID-2", "Normal-4": "Viral Pneumonia-5"}
URLS = {
  "COVID": "https://bimcv.cipf.es/bimcv-projects/bimcv-covid19/#1590858128006",
  "Lung_Opacity": "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data",
  "Normal": "https://www.kaggle.com/paultimothymooney/chest-xray-pneumonia",
  "Viral Pneumonia": "https://example.org/a?b=1&c=2",
}


def label(name):
  return name.rpartition("-")[0]


def pixels(name):
  """Smooth pictures of their own, except for copies: one is a little brighter and noisier."""
  noise = np.random.default_rng(NAMES.index(name)).normal(0, 2, (60, 60))
  if name in COPIES:
    return np.clip(0.95 * pixels(COPIES[name]) + noise, 0, 255).astype(np.uint8)
  waves = np.random.default_rng(1000 + NAMES.index(name)).normal(0, 1, (6, 6))
  return np.asarray(Image.fromarray(100 + 40 * waves).resize((60, 60), 3)).clip(0, 255).astype("u1")


def mask(name):
  found = np.zeros((50, 50, 3), np.uint8)
  found[10:40, 5 : 5 + len(name)] = 255
  return found


def encode(values, kind="PNG", **options):
  buffer = io.BytesIO()
  Image.fromarray(values).save(buffer, kind, **options)
  return buffer.getvalue()


def excel(names, columns=("FILE NAME", "FORMAT", "SIZE", "URL"), shown=()):
  rows = [columns, *((dict(shown).get(n, n), "PNG", "256*256", URLS[label(n)]) for n in names)]
  sheet = "".join(
    "<row>"
    + "".join(f'<c t="inlineStr"><is><t>{escape(cell)}</t></is></c>' for cell in row)
    + "</row>"
    for row in rows
  )
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as made:
    made.writestr(
      "xl/worksheets/sheet1.xml", f"<worksheet><sheetData>{sheet}</sheetData></worksheet>"
    )
  return buffer.getvalue()


def files():
  found = {}
  for name in NAMES:
    found[f"{ROOT}{label(name)}/images/{name}.png"] = encode(pixels(name))
    found[f"{ROOT}{label(name)}/masks/{name}.png"] = encode(mask(name))
  for kind in module.LABELS:
    found[f"{ROOT}{kind}.metadata.xlsx"] = excel([n for n in NAMES if label(n) == kind])
  found[f"{ROOT}README.md.txt"] = b"?"
  return found


def write(path, found):
  with zipfile.ZipFile(path, "w") as opened:
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
  found = files()
  upper = {n: n.upper() for n in NAMES if label(n) == "Normal"}  # as published
  found[f"{ROOT}Normal.metadata.xlsx"] = excel(upper, shown=upper)
  write(manual / "archive.zip", found)
  whole = prepare(tmp_path)
  assert "tensorflow" not in sys.modules
  assert whole.info.classes == module.LABELS and sorted(whole.table.ids) == sorted(NAMES)
  sites = {
    "COVID": "BIMCV",
    "Lung_Opacity": "RSNA",
    "Normal": "Kermany",
    "Viral Pneumonia": "example.org",
  }
  for i, name in enumerate(whole.table.ids):
    record = whole[i]
    np.testing.assert_array_equal(record.image[..., 0], pixels(name))
    assert module.LABELS[record.labels.argmax()] == label(name)
    assert record.site == sites[label(name)]
    expected = Image.fromarray(mask(name)[..., 0]).resize((60, 60), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(record.mask[..., 0], np.asarray(expected) > 0)
  assert not whole.info.skipped
  assert "40 images, where 21,165 are published" in whole.info.notes


def test_near_duplicates_are_never_parted(manual, tmp_path):
  write(manual / "archive.zip", files())
  parts = {s: prepare(tmp_path, s) for s in ("train", "val", "test")}
  assert sum(map(len, parts.values())) == 40 and len(parts["train"]) > len(parts["test"]) > 0
  patients = {
    i: p
    for part in parts.values()
    for i, p in zip(part.table.ids, part.table.patients, strict=True)
  }
  groups = collections.defaultdict(set)
  for name, patient in patients.items():
    groups[patient or name].add(name)
  assert groups["group-COVID-1"] == {"COVID-1", "COVID-2", "COVID-3"}
  assert groups["group-Normal-4"] == {"Normal-4", "Viral Pneumonia-5"}
  assert sorted(map(len, groups.values()))[-3:] == [1, 2, 3]
  assert patients["COVID-4"] == ""  # of an image alone nobody knows whose it is
  owners = [set(patient_splits.owners(part.table)) for part in parts.values()]
  assert sum(map(len, owners)) == len(groups) == 37
  assert any(note.startswith("5 images have near-duplicates") for note in parts["val"].info.notes)


def test_groups_are_the_same_in_blocks(monkeypatch):
  found = np.stack([module.signature(encode(pixels(name))) for name in NAMES])
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
  expected = module.alike(found)
  monkeypatch.setattr(module, "_BLOCK", 7)
  assert module.alike(found) == expected
  assert not module.signature(b"no image").any()
  assert not module.signature(encode(np.full((60, 60), 9, np.uint8))).any()
  assert len(set(module.alike(np.zeros((5, 4096), np.float32)))) == 5  # blank ones are no copies


@pytest.mark.parametrize("layout", ["folder", "top", "flat", "jpeg"])
def test_other_layouts(manual, tmp_path, layout):
  found = files()
  if layout == "flat":  # an intermediate release had the images right in the class folders
    found = {k.replace("/images/", "/"): v for k, v in found.items() if "/masks/" not in k}
  if layout == "jpeg":
    found = {
      k.replace(".png", ".jpg") if "/images/" in k else k: encode(
        pixels(k[:-4].rpartition("/")[2]), "JPEG"
      )
      if "/images/" in k
      else v
      for k, v in found.items()
      if "/masks/" not in k
    }
  for member, data in found.items():
    path = manual / (member.removeprefix(ROOT) if layout == "top" else member)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  source = prepare(tmp_path)
  assert sorted(source.table.ids) == sorted(NAMES) and set(source.table.sites) != {""}
  assert (source[0].mask is None) == (layout in ("flat", "jpeg"))


def manifest(found, groups=()):
  rows = [
    f"{k},{label(k[:-4].rpartition('/')[2])},{dict(groups).get(k, '')}\n"
    for k in found
    if "/images/" in k
  ]
  return ("path,label,duplicate_group\n" + "".join(rows)).encode()


def test_a_manifest_says_what_there_is(manual, tmp_path):
  found = {k: v for k, v in files().items() if "/COVID/images" in k or "/Normal/images" in k}
  pair = [f"{ROOT}COVID/images/COVID-5.png", f"{ROOT}Normal/images/Normal-6.png"]
  found[f"{ROOT}manifest.csv"] = manifest(found, [(k, "77") for k in pair])
  del found[f"{ROOT}COVID/images/COVID-9.png"]
  found[f"{ROOT}COVID/images/COVID-11.png"] = encode(pixels("COVID-1"))
  write(manual / "COVID-19_Radiography_subset.zip", found)
  source = prepare(tmp_path)
  assert source.table.labels.sum(0).tolist() == [9, 0, 10, 0]
  patients = dict(zip(source.table.ids, source.table.patients, strict=True))
  assert patients["COVID-5"] == patients["Normal-6"] == "group-77"
  assert patients["COVID-1"] == "" and len(set(patient_splits.owners(source.table))) == 18
  left = {k.rpartition("/")[2]: v for k, v in source.info.skipped}
  assert left == {
    "COVID-9.png": "manifest.csv lists it, but it is not there",
    "COVID-11.png": "manifest.csv does not list it",
  }
  assert any("19 of 19 images are in no metadata" in note for note in source.info.notes)


def test_what_is_left_out(manual, tmp_path):
  found = files()
  found[f"{ROOT}COVID/images/COVID-4.png"] = found[f"{ROOT}COVID/images/COVID-4.png"][:-60]
  del found[f"{ROOT}COVID/images/COVID-5.png"]
  found[f"{ROOT}COVID/images/Normal-99.png"] = encode(pixels("Normal-1"))
  found[f"{ROOT}COVID/images/COVID-6.jpg"] = encode(pixels("COVID-6"), "JPEG")
  found[f"{ROOT}Normal/masks/Normal-1.png"] = b"no image"
  found[f"{ROOT}Normal/masks/Normal-2.png"] = encode(mask("Normal-2") * 0)
  found["x/../../COVID/images/COVID-99.png"] = b"?"
  write(manual / "archive.zip", found)
  source = prepare(tmp_path)
  left = {k.rpartition("/")[2]: v for k, v in source.info.skipped}
  assert set(left) == {"COVID-4", "COVID-5", "Normal-99.png", "COVID-6.png", "COVID-99.png"}
  assert "cut short" in left["COVID-4"] and "is not there" in left["COVID-5"]
  assert "not one of COVID" in left["Normal-99.png"] and "already" in left["COVID-6.png"]
  at = source.table.ids.index
  assert source[at("Normal-1")].mask is None and source[at("Normal-2")].mask is None
  assert len(source) == 38
  assert any(n.startswith("Normal-1 counts as having no mask") for n in source.info.notes)


def without(word):
  return lambda found: {k: v for k, v in found.items() if word not in k}


def listed(old, new):
  return lambda found: (
    found | {f"{ROOT}manifest.csv": manifest(found).replace(old.encode(), new.encode(), 1)}
  )


@pytest.mark.parametrize(
  "spoil, word",
  [
    (without("Viral"), "has no images in Viral Pneumonia: not this data set's archive, or only a"),
    (
      lambda found: {
        re.sub(r"COVID/images/COVID-(\d+)", r"COVID-19/COVID-19 (\1)", k): v
        for k, v in found.items()
        if "/images/" in k
      },
      "is a release of 2020",
    ),
    (
      lambda found: found | {f"{ROOT}COVID.metadata.xlsx": excel([], ("FILE NAME", "FORMAT"))},
      r"COVID.metadata.xlsx has no column 'URL'; valid: FILE NAME, FORMAT",
    ),
    (lambda found: found | {f"{ROOT}COVID.metadata.xlsx": b"no"}, "xlsx is not a complete zip"),
    (listed("duplicate_group", "group"), r"manifest.csv has no column 'duplicate_group'"),
    (listed(",COVID,", ",Covid-19,"), r"manifest.csv line 2 has the label 'Covid-19'; "),
    (listed(",COVID,", ",Normal,"), r"manifest.csv line 2 calls .*COVID-1.png Normal"),
    (
      listed("COVID-2.png", "COVID-1.png"),
      r"manifest.csv line 3 lists .*COVID-1.png a second time",
    ),
    (lambda found: without("/Normal/")(listed("x", "x")(found)), "has no images in Normal"),
  ],
)
def test_archives_that_cannot_be(manual, tmp_path, spoil, word):
  write(manual / "archive.zip", spoil(files()))
  with pytest.raises(UserError, match=word) as error:
    prepare(tmp_path)
  assert "\n" not in str(error.value)


def test_no_archive_or_half_of_it(manual, tmp_path):
  (manual / "notes.txt").write_text("nothing")
  with pytest.raises(UserError, match=r"has no COVID-19_Radiography\*.zip .*get it from https"):
    prepare(tmp_path)
  write(manual / "archive.zip", files())
  data = (manual / "archive.zip").read_bytes()
  (manual / "archive.zip").write_bytes(data[:-30])
  with pytest.raises(UserError, match=r"archive.zip is not a complete zip"):
    prepare(tmp_path)


def test_real_archive(test_data, tmp_path):
  path = test_data / "COVID-19_Radiography_subset.zip"
  if not path.is_file():
    pytest.skip("CXRJAX_TEST_DATA has no COVID-19_Radiography_subset.zip")
  where = {"data_dir": str(tmp_path / "data"), "manual_dir": str(test_data)}
  source = open_source(f"tfds:{NAME}", split="all", **where)
  assert source.table.labels.sum(0).tolist() == [3076, 0, 8748, 0] and not source.info.skipped
  assert list(source.info.splits.values()) == [8277, 1182, 2365]
  assert len(set(patient_splits.owners(source.table))) == 11824
  assert sum(p.startswith("group-") for p in source.table.patients) == 119
