"""The builder on generated films, masks and tables in the published layout."""

import io
import sys
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cxrjax.core.errors import UserError
from cxrjax.data import base, open_source
from cxrjax.data.sources import tfds as source_module

NAME = "jsrt"
module = sys.modules[source_module._builder_class(NAME).__module__]
NODULES = [f"JPCLN{i:03d}" for i in range(1, 13)]
HEALTHY = [f"JPCNN{i:03d}" for i in range(1, 9)]
SIDE = 48


def levels(name):
  """12-bit values as in the file, bright where the film is black."""
  seed = int(name[5:]) + 1000 * (name[3] == "N")
  found = np.random.default_rng(seed).integers(0, 4096, (SIDE, SIDE))
  found[0, :2] = 0, 4095
  return found


def mask(name, structure):
  """At half the image's size, as SCR's are."""
  pixels = np.zeros((SIDE // 2, SIDE // 2), np.uint8)
  at = module.STRUCTURES.index(structure)
  pixels[2 + at : 20, 4 * at + 1 : 4 * at + 4] = 255
  pixels[0, 0] = 255 * (int(name[5:]) % 2)
  return pixels


def gif(pixels):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "GIF")
  return buffer.getvalue()


def grown(pixels):
  return np.kron(pixels, np.ones((2, 2), np.uint8))


def images():
  return {f"All247images/{n}.IMG": levels(n).astype(">u2").tobytes() for n in NODULES + HEALTHY}


def tables():
  """Lines end with CR alone; a diagnosis is broken into fields."""
  ill = [
    f"{n}.IMG\t{i % 5 + 1}\t15\t{50 + i}\t{('male', 'female')[i % 2]}\t1634\t692\t"
    f"{('malignant', 'benign')[i % 2]}\tl.upper\tlobe\tpulmonary he\tmatoma"
    for i, n in enumerate(NODULES)
  ]
  well = [
    f"{n}.IMG  {30 + i}   {('male', 'female')[i % 2]}  non-nodule" for i, n in enumerate(HEALTHY)
  ]
  return {
    "Clinical_Information/CLNDAT_EN.txt": ("\r".join(ill) + "\r").encode(),
    "Clinical_Information/CNNDAT_EN.TXT": ("\r".join(well) + "\r\x1a").encode(),
  }


def masks():
  return {
    f"scratch/fold{1 if int(n[5:]) % 2 else 2}/masks/{s}/{n}.gif": gif(mask(n, s))
    for n in NODULES + HEALTHY
    for s in module.STRUCTURES
  }


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


def rows(tmp_path, to="data"):
  """All that is stored, by id."""
  made = tfds.builder_from_directory(str(tmp_path / to / NAME / "1.0.0"))
  skip = {
    name: tfds.decode.SkipDecoding()
    for name, feature in made.info.features.items()
    if isinstance(feature, tfds.features.Image)
  }
  return {
    row["id"].decode(): row
    for fold in ("fold1", "fold2")
    for row in made.as_data_source(fold, decoders=skip)
  }


@pytest.fixture
def whole(manual):
  write(manual / "JSRT.zip", images() | tables())
  write(manual / "scratch.zip", masks())
  return manual


def test_images_and_folds(whole, tmp_path):
  folds = {f: prepare(tmp_path, f) for f in ("fold1", "fold2")}
  assert "tensorflow" not in sys.modules
  for fold, odd in (("fold1", 1), ("fold2", 0)):
    assert sorted(folds[fold].table.patients) == [
      n for n in NODULES + HEALTHY if int(n[5:]) % 2 == odd
    ]
  found = prepare(tmp_path)
  assert found.info.classes == ("non-nodule", "nodule") and set(found.table.views) == {"PA"}
  for i, name in enumerate(found.table.ids):
    record = found[i]
    assert record.image.dtype == np.uint16 and record.window == (0, 4095)
    np.testing.assert_array_equal(record.image[..., 0], 4095 - levels(name))
    lungs = mask(name, "left lung") | mask(name, "right lung")
    np.testing.assert_array_equal(record.mask[..., 0], grown(lungs) > 0)
    assert record.labels.argmax() == (name in NODULES)


def test_tables_and_masks(whole, tmp_path):
  found = prepare(tmp_path, label="malignancy")
  assert found.table.labels.sum(0).tolist() == [8, 6, 6, 0]
  table = rows(tmp_path)
  first, healthy = table["JPCLN001"], table["JPCNN002"]
  assert [float(first[k]) for k in module.NUMBERS] == [50, 1, 15, 1634, 692]
  assert first["diagnosis"].decode() == "l.upper lobe pulmonary he matoma"
  assert healthy["age"] == 31 and np.isnan([healthy[k] for k in module.NUMBERS[1:]]).all()
  assert found.table.sexes[found.table.ids.index("JPCNN002")] == "F"
  for name, row in table.items():
    for structure in module.STRUCTURES:
      data = row[structure.replace(" ", "_") + "_mask"]
      np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(data))), grown(mask(name, structure))
      )
  assert "20 images, where 247 are published" in found.info.notes


def test_images_alone(manual, tmp_path):
  for member, data in images().items():
    (manual / member).parent.mkdir(exist_ok=True)
    (manual / member).write_bytes(data)
  found = prepare(tmp_path)
  assert len(found) == 20 and found[0].mask is None
  assert np.isnan(found.table.ages).all() and set(found.table.sexes) == {""}
  notes = " ".join(found.info.notes)
  assert "20 images are in no clinical table" in notes and "20 images lack masks" in notes
  table = rows(tmp_path)
  assert not base.is_mask(table["JPCLN001"]["heart_mask"])
  found = prepare(tmp_path, label="malignancy")
  assert found.table.labels.sum(0).tolist() == [8, 0, 0, 12]  # whether benign is not known


def test_all_in_the_manual_folder(whole, tmp_path):
  expected = prepare(tmp_path).info.fingerprint
  for file in list(whole.iterdir()):
    zipfile.ZipFile(file).extractall(whole)
    file.unlink()
  for path in list((whole / "All247images").iterdir()):
    path.rename(whole / path.name)
  assert prepare(tmp_path, to="other").info.fingerprint == expected


def test_what_is_left_out(manual, tmp_path):
  found = images() | tables()
  found["All247images/JPCLN001.IMG"] = found["All247images/JPCLN001.IMG"][:-100]
  found["All247images/JPCLN002.IMG"] = levels("JPCLN002").astype("<u2").tobytes()
  del found["All247images/JPCLN003.IMG"]
  found["All247images/other.IMG"] = b"?"
  write(manual / "JSRT.zip", found)
  spoilt = masks()
  spoilt["scratch/fold1/masks/heart/JPCLN005.gif"] = b"no image"
  spoilt["scratch/fold1/masks/left lung/JPCLN005.gif"] = gif(mask("JPCLN005", "heart") * 0)
  write(manual / "scratch.zip", spoilt)
  source = prepare(tmp_path)
  left = {k.split("/")[-1]: v for k, v in source.info.skipped}
  assert set(left) == {"JPCLN001", "JPCLN002", "JPCLN003", "other.IMG"}
  assert "cut short" in left["JPCLN001"] and "big-endian" in left["JPCLN002"]
  assert "no image" in left["JPCLN003"] and len(source) == 17
  notes = " ".join(source.info.notes)
  assert "JPCLN005 counts as having no mask of the heart: its mask is damaged" in notes
  assert "no mask of the left lung: its mask is empty" in notes
  assert source[source.table.ids.index("JPCLN005")].mask is None


def test_dicom(manual, tmp_path):
  pydicom = pytest.importorskip("pydicom")
  found = tables()
  for name in NODULES + HEALTHY:
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.UID("1.2.840.10008.5.1.4.1.1.1"), "1.2.3"
    data.Modality, data.PhotometricInterpretation = "CR", "MONOCHROME1"
    data.Rows = data.Columns = SIDE
    data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit = 1, 16, 12, 11
    data.PixelRepresentation = 0
    data.PixelData = levels(name).astype("<u2").tobytes()
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    folder = "Nodule154images" if name in NODULES else "NonNodule93images"
    found[f"{folder}/{name}.dcm"] = buffer.getvalue()
  write(manual / "JSRT-dicom.zip", found)
  source = prepare(tmp_path)
  for i, name in enumerate(source.table.ids):
    np.testing.assert_array_equal(source[i].image[..., 0], 4095 - levels(name))
  assert len(source) == 20 and source[0].window == (0, 4095)


def clinical(old, new):
  def change(found):
    return {k: v.replace(old, new, 1) if "DAT_EN" in k else v for k, v in found.items()}

  return change


@pytest.mark.parametrize(
  "spoil, word",
  [
    (lambda found: {}, r"has no All247images\* .*get it from http"),
    (
      lambda found: {k: v for k, v in found.items() if "JPCNN" not in k},
      r"has no JPCNN\*.IMG \(non-nodule\): not this data set, or only a part",
    ),
    (clinical(b"malignant", b"malign"), r"CLNDAT_EN.txt line 1 has 'malign'; did you mean"),
    (clinical(b"\t692", b""), r"CLNDAT_EN.txt line 1 has '.*'; valid"),
    (clinical(b"JPCLN001.IMG\t1", b"JPCLN001.IMG\t7"), "line 1 has the subtlety '7'"),
    (clinical(b"JPCLN002", b"JPCLN001"), "line 2 lists JPCLN001 again, after .*line 1"),
    (clinical(b"JPCNN002.IMG", b"x"), "CNNDAT_EN.TXT line 2 names 'x', which is not an image"),
    (clinical(b"non-nodule", b"nodule"), "CNNDAT_EN.TXT line 1 is not name, age"),
    (clinical(b"\t15\t", b"\tfifteen\t"), "line 1 has 'fifteen' where a number"),
    (
      lambda found: {k: v[:-2] if "IMG" in k else v for k, v in found.items()},
      "no image of fold1 can be used, such as JPC.*cut short",
    ),
  ],
)
def test_archives_that_cannot_be(manual, tmp_path, spoil, word):
  write(manual / "JSRT.zip", spoil(images() | tables()))
  with pytest.raises(UserError, match=word) as error:
    prepare(tmp_path)
  assert "\n" not in str(error.value)


def test_cut_short(whole, tmp_path):
  path = whole / "scratch.zip"
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(UserError, match=r"scratch.zip is not a complete zip"):
    prepare(tmp_path)
