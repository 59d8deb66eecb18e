"""The builder on generated archives in every layout they circulate in, and on a real one."""

import io
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from cxrjax.core.errors import UserError
from cxrjax.data import load_images, open_source
from cxrjax.data.sources import tfds as source_module

NAME = "nlm_tb"
module = sys.modules[source_module._builder_class(NAME).__module__]
SHENZHEN = [f"CHNCXR_{i:04d}_{i % 2}" for i in range(1, 31)]
MONTGOMERY = [f"MCUCXR_{i:04d}_{i % 2}" for i in (1, 2, 3, 4, 6, 8, *range(11, 35))]


def png(name, mode="L"):
  number = int(name[7:11])
  pixels = np.random.default_rng(number).integers(0, 256, (24, 20 + number % 3), dtype=np.uint8)
  buffer = io.BytesIO()
  image = Image.fromarray(pixels)
  if mode == "P":  # gray levels through a palette in another order
    table = np.random.default_rng(0).permutation(256).astype(np.uint8)
    image = Image.fromarray(np.argsort(table).astype(np.uint8)[pixels])
    image.putpalette(np.repeat(table, 3).tobytes())
  (image.convert(mode) if mode == "RGB" else image).save(buffer, "PNG")
  return buffer.getvalue()


def gray(name):
  return np.asarray(Image.open(io.BytesIO(png(name))))


def mask(name, side, scale=1):
  shape = gray(name).shape
  pixels = np.zeros(shape, np.uint8)
  pixels[4:20, (slice(2, 7) if side == "right" else slice(12, 17))] = 255
  buffer = io.BytesIO()
  image = Image.fromarray(pixels)
  image.resize((shape[1] * scale, shape[0] * scale), 0).save(buffer, "PNG")
  return buffer.getvalue()


def lungs(name):
  return (
    np.array([np.asarray(Image.open(io.BytesIO(mask(name, s)))) for s in ("left", "right")]).max(0)
    > 0
  )


def shenzhen(root="ChinaSet_AllFiles/"):
  """Some palette, some RGB; readings as irregular as the published ones."""
  texts = [
    "male 45yrs\nnormal",
    "femal 32yrs\r\nright PTB\r\n",
    "male 16month\nnormal",
    "female 64days\nPTB in both\nupper lobes",
    "Female, 28yrs \nnormal",
    "",
    "normal",
    "\xff\xfemale 3yrs",
  ]
  found = {}
  for i, name in enumerate(SHENZHEN):
    found[f"{root}CXR_png/{name}.png"] = png(name, ("L", "P", "RGB")[i % 3])
    text = texts[i] if i < len(texts) else f"male {i}yrs\nnormal"
    found[f"{root}ClinicalReadings/{name}.txt"] = text.encode("latin-1")
  found[f"{root}CXR_png/Thumbs.db"] = found[f"{root}NLM-ChinaCXRSet-ReadMe.docx"] = b"?"
  found[f"{root}Annotations-2/masks/{SHENZHEN[0]}_Small_Infiltrate_(non-linear)_1.png"] = b"?"
  return found


def shenzhen_masks(root="mask/mask/"):
  """Of all but the first five, twice the image's size."""
  return {f"{root}{n}_mask.png": mask(n, "left", 2) for n in SHENZHEN[5:]}


def montgomery(root="MontgomerySet/"):
  found = {}
  for i, name in enumerate(MONTGOMERY):
    found[f"{root}CXR_png/{name}.png"] = png(name)
    found[f"{root}ClinicalReadings/{name}.txt"] = (
      f"Patient's Sex: {'FM'[i % 2]} \r\nPatient's Age: {i + 1:03d}Y\r\nnormal, 2 cm\r\n"
    ).encode()
    for side in ("left", "right"):
      found[f"{root}ManualMask/{side}Mask/{name}.png"] = mask(name, side)
  return found


def write(path, found):
  with zipfile.ZipFile(path, "w") as opened:
    for member, data in found.items():
      opened.writestr(member, data)


def unpack(folder, found):
  for member, data in found.items():
    path = folder / member
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def prepare(tmp_path, config, split="all", to="data", **options):
  return open_source(
    f"tfds:{NAME}/{config}",
    split=split,
    data_dir=str(tmp_path / to),
    manual_dir=str(tmp_path / "manual"),
    **options,
  )


def check(tmp_path, config, names, to="data"):
  """Every image, label and patient; no patient in two splits."""
  whole = prepare(tmp_path, config, to=to)
  assert sorted(whole.table.ids) == sorted(names)
  assert whole.info.classes == ("normal", "tuberculosis")
  assert set(whole.table.views) == {"PA"} and set(whole.table.sites) == {config}
  for i, name in enumerate(whole.table.ids):
    record = whole[i]
    np.testing.assert_array_equal(record.image[..., 0], gray(name))
    assert record.labels.argmax() == int(name[-1]) and record.patient == name[:-2]
  parts = [prepare(tmp_path, config, s, to=to) for s in ("train", "val", "test")]
  assert sum(map(len, parts)) == len(names) and len(parts[0]) > len(parts[2]) > len(parts[1]) > 0
  assert len({p for part in parts for p in part.table.patients}) == len(names)
  assert all((part.table.labels.sum(0) > 0).all() for part in parts)
  return whole


def test_shenzhen(manual, tmp_path):
  write(manual / "ChinaSet_AllFiles.zip", shenzhen())
  write(manual / "shcxr-lung-mask.zip", shenzhen_masks())
  found = check(tmp_path, "shenzhen", SHENZHEN)
  assert "tensorflow" not in sys.modules
  for i, name in enumerate(found.table.ids):
    record = found[i]
    if name in SHENZHEN[:5]:
      assert record.mask is None
    else:
      expected = np.asarray(Image.open(io.BytesIO(mask(name, "left")))) > 0
      np.testing.assert_array_equal(record.mask[..., 0], expected)
  place = [found.table.ids.index(name) for name in SHENZHEN]
  sexes, ages = (np.array(getattr(found.table, what))[place] for what in ("sexes", "ages"))
  assert sexes[:7].tolist() == ["M", "F", "M", "F", "F", "", ""]
  np.testing.assert_allclose(ages[:7], [45, 32, 16 / 12, 64 / 365.25, 28, np.nan, np.nan], 1e-6)
  assert ages[8:].tolist() == list(range(8, 30))
  notes = found.info.notes
  assert "30 images, where 662 are published" in notes and not found.info.skipped
  assert "5 of 30 images have no lung mask" in notes


def test_shenzhen_without_its_masks_and_with_masks_inside(manual, tmp_path):
  write(manual / "ChinaSet_AllFiles.zip", shenzhen())
  found = prepare(tmp_path, "shenzhen")
  assert all(found[i].mask is None for i in range(len(found)))
  write(manual / "ChinaSet_AllFiles.zip", shenzhen() | shenzhen_masks("ChinaSet_AllFiles/mask/"))
  found = prepare(tmp_path, "shenzhen", to="other")
  assert sum(found[i].mask is not None for i in range(len(found))) == 25


def test_montgomery(manual, tmp_path):
  write(manual / "NLM-MontgomeryCXRSet.zip", montgomery())
  found = check(tmp_path, "montgomery", MONTGOMERY)
  for i, name in enumerate(found.table.ids):
    np.testing.assert_array_equal(found[i].mask[..., 0], lungs(name))
    at = MONTGOMERY.index(name)
    assert (found.table.sexes[i], found.table.ages[i]) == ("FM"[at % 2], at + 1)


def test_reuploads_give_the_same(manual, tmp_path):
  write(manual / "ChinaSet_AllFiles.zip", shenzhen())
  write(manual / "NLM-MontgomeryCXRSet.zip", montgomery())
  expected = {c: prepare(tmp_path, c).info.fingerprint for c in ("shenzhen", "montgomery")}
  for file in list(manual.iterdir()):
    file.unlink()
  # Kaggle's copy of both: a folder more around each, and one of them twice.
  write(
    manual / "archive.zip",
    shenzhen("ChinaSet_AllFiles/ChinaSet_AllFiles/")
    | montgomery("Montgomery/MontgomerySet/")
    | shenzhen("copy/ChinaSet_AllFiles/ChinaSet_AllFiles/"),
  )
  for config in expected:
    assert prepare(tmp_path, config, to="kaggle").info.fingerprint == expected[config]
  (manual / "archive.zip").unlink()
  unpack(manual, shenzhen("") | montgomery(""))  # both right in the manual folder
  for config in expected:
    assert prepare(tmp_path, config, to="folder").info.fingerprint == expected[config]


def test_the_merged_set(manual, tmp_path):
  root = "Lung Segmentation/"
  found = {k: v for k, v in (shenzhen(root) | montgomery(root)).items() if "ManualMask" not in k}
  found |= {f"{root}masks/{n}.png": mask(n, "right") for n in MONTGOMERY}
  found |= shenzhen_masks(f"{root}masks/")
  found[f"{root}masks/.ipynb_checkpoints/{MONTGOMERY[0]}.png"] = b"?"
  found |= {f"{root}test/{n}.png": b"a copy" for n in SHENZHEN[:5]}
  write(manual / "chest-xray-masks-and-labels.zip", found)
  source = check(tmp_path, "montgomery", MONTGOMERY)
  for i, name in enumerate(source.table.ids):
    expected = np.asarray(Image.open(io.BytesIO(mask(name, "right")))) > 0
    np.testing.assert_array_equal(source[i].mask[..., 0], expected)
  source = check(tmp_path, "shenzhen", SHENZHEN)
  assert sum(source[i].mask is not None for i in range(30)) == 25


def test_what_is_left_out(manual, tmp_path):
  found = montgomery()
  root = "MontgomerySet/"
  found[f"{root}CXR_png/{MONTGOMERY[0]}.png"] = png(MONTGOMERY[0])[:-60]
  del found[f"{root}CXR_png/{MONTGOMERY[1]}.png"]
  found[f"{root}CXR_png/photo.png"] = png(MONTGOMERY[0])
  found["../../evil.png"] = b"?"
  del found[f"{root}ManualMask/leftMask/{MONTGOMERY[2]}.png"]
  found[f"{root}ManualMask/leftMask/{MONTGOMERY[3]}.png"] = b"no image"
  del found[f"{root}ClinicalReadings/{MONTGOMERY[4]}.txt"]
  write(manual / "NLM-MontgomeryCXRSet.zip", found)
  source = prepare(tmp_path, "montgomery")
  assert sorted(source.table.ids) == MONTGOMERY[2:]
  left = {k.split("/")[-1]: v for k, v in source.info.skipped}
  assert set(left) == {MONTGOMERY[0], MONTGOMERY[1], "photo.png", "evil.png"}
  assert "cut short" in left[MONTGOMERY[0]] and "no image" in left[MONTGOMERY[1]]
  at = {name: i for i, name in enumerate(source.table.ids)}
  assert source[at[MONTGOMERY[2]]].mask is None and source[at[MONTGOMERY[3]]].mask is None
  assert source[at[MONTGOMERY[4]]].mask is not None
  assert np.isnan(source.table.ages[at[MONTGOMERY[4]]])
  notes = " ".join(source.info.notes)
  assert f"{MONTGOMERY[2]} counts as having no mask: it has one of one lung only" in notes
  assert f"{MONTGOMERY[3]} counts as having no mask: its mask is damaged" in notes
  assert "1 of 29 images have no age" in notes


@pytest.mark.parametrize(
  "config, found, word",
  [
    ("shenzhen", {}, r"has no ChinaSet_AllFiles.zip .*get it from https"),
    (
      "shenzhen",
      montgomery(),
      r"no image CXR_png/CHNCXR_\*_0.png \(normal\): not the shenzhen set",
    ),
    (
      "montgomery",
      {k: v for k, v in montgomery().items() if not k.endswith("1.png")},
      r"no image CXR_png/MCUCXR_\*_1.png \(tuberculosis\)",
    ),
    (
      "shenzhen",
      shenzhen() | {"ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0.png": png(SHENZHEN[0])},
      "calls one patient normal and ill: CHNCXR_0001_0, CHNCXR_0001_1",
    ),
  ],
)
def test_archives_that_cannot_be(manual, tmp_path, config, found, word):
  if found:
    write(manual / "archive.zip", found)
  else:
    (manual / "notes.txt").write_text("nothing")
  with pytest.raises(UserError, match=word) as error:
    prepare(tmp_path, config)
  assert "\n" not in str(error.value)


def test_cut_short_and_unknown_config(manual, tmp_path):
  write(manual / "ChinaSet_AllFiles.zip", shenzhen())
  with pytest.raises(UserError, match="no config 'shenzen'; did you mean 'shenzhen'"):
    prepare(tmp_path, "shenzen")
  path = manual / "ChinaSet_AllFiles.zip"
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(UserError, match=r"ChinaSet_AllFiles.zip is not a complete zip"):
    prepare(tmp_path, "shenzhen")


@pytest.mark.parametrize(
  "text, expected",
  [
    ("male 45yrs\nnormal\n", (45, "M", "normal")),
    ("Female, 28yrs\n\n1. PTB\n2. pleuritis", (28, "F", "1. PTB 2. pleuritis")),
    ("femal 32yrs", (32, "F", "")),
    ("male 16month", (16 / 12, "M", "")),
    ("female 64days", (64 / 365.25, "F", "")),
    ("45 male", (45, "M", "")),
    ("m 6 w", (0.115, "M", "")),
    ("Patient's Sex: F \nPatient's Age: 027Y\nnormal", (27, "F", "normal")),
    ("Patient's Sex: \nPatient's Age: 414Y\nnormal", (None, "", "normal")),
    ("male\nPTB", (None, "M", "PTB")),
    ("2 nodules", (None, "", "2 nodules")),
    ("", (None, "", "")),
    ("normal", (None, "", "normal")),
    ("male yrs", (None, "M", "")),
  ],
)
def test_readings(text, expected):
  age, sex, findings = module.parse(text)
  assert (sex, findings) == expected[1:]
  assert age == (None if expected[0] is None else pytest.approx(expected[0], abs=1e-3))


def test_real_archive(test_data, tmp_path):
  if not (test_data / "ChinaSet_AllFiles.zip").is_file():
    pytest.skip("CXRJAX_TEST_DATA has no ChinaSet_AllFiles.zip")
  where = {"data_dir": str(tmp_path / "data"), "manual_dir": str(test_data)}
  found = {
    split: open_source("tfds:nlm_tb/shenzhen", split=split, **where)
    for split in ("train", "val", "test")
  }
  assert [len(f) for f in found.values()] == [463, 67, 132]
  labels = np.concatenate([f.table.labels for f in found.values()])
  assert labels.sum(0).tolist() == [326, 336] and not found["train"].info.skipped
  assert len({p for f in found.values() for p in f.table.patients}) == 662
  images = load_images(found["test"], 32, progress=False)
  assert images.pixels.shape == (132, 32, 32, 1)
  # Lungs are darker than what is around them: masks and pixels belong together.
  masked = [r for r in (found["val"][i] for i in range(67)) if r.mask is not None]
  inside = [r.image[r.mask > 0].mean() < r.image[r.mask == 0].mean() for r in masked]
  assert len(masked) > 40 and np.mean(inside) > 0.8
