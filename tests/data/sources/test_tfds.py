import io
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cxrjax.builders import tfds_features
from cxrjax.core.errors import UserError
from cxrjax.data import load_images, open_source
from cxrjax.data.sources import tfds as module
from cxrjax.data.sources import tfds_prepare


def build(root, name="made_up", labels=None, file_format="array_record", **features):
  """Prepares a data set of twelve images with any features, as TFDS would."""
  rng = np.random.default_rng(0)
  shape = {"image": tfds.features.Image(shape=(None, None, 1), encoding_format="png"), **features}

  def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()

  def examples(split, n):
    for i in range(n):
      example = {"image": encoded(rng.integers(0, 255, (20, 24), dtype=np.uint8))}
      example |= {} if labels is None else labels(i)
      if "mask" in features:
        example["mask"] = encoded(np.full((20, 24), 255 * (i % 2), np.uint8))
      yield f"{split}{i}", example

  class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(shape))

    def _split_generators(self, dl_manager):
      return {"train": examples("train", 12), "validation": examples("val", 4)}

    def _generate_examples(self):
      raise NotImplementedError

  Made.name = name
  made = Made(data_dir=str(root), file_format=file_format)
  made.download_and_prepare()
  return made


@pytest.fixture
def quiet(capfd):
  tfds.disable_progress_bar()


def test_class_labels_patients_sites_and_masks(tmp_path, quiet):
  text = tfds.features.Text
  build(
    tmp_path,
    label=tfds.features.ClassLabel(names=["well", "sick"]),
    patient=text(),
    image_id=text(),
    site=tfds.features.ClassLabel(names=["north", "south"]),
    mask=tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
    labels=lambda i: {
      "label": i % 3 - 1,
      "patient": f"p{i // 2}",
      "image_id": f"im{i}",
      "site": i % 2,
    },
  )
  source = open_source("tfds:made_up", data_dir=str(tmp_path))
  assert source.info.classes == ("well", "sick") and source.info.exclusive
  assert source.info.splits == {"train": 12, "val": 4}
  t = source.table
  for i in range(12):
    k = int(t.ids[i][2:])
    assert t.patients[i] == f"p{k // 2}" and t.sites[i] == ("north", "south")[k % 2]
    expected = [[np.nan, np.nan], [1, 0], [0, 1]][k % 3]  # -1 is unknown
    np.testing.assert_array_equal(t.labels[i], expected)
    record = source[i]
    assert record.id == t.ids[i] and (record.mask == k % 2).all()
  assert load_images(source, 16, progress=False).masks.max() == 1
  with pytest.raises(IndexError):
    source[12]


def test_sequences_of_classes_are_findings(tmp_path, quiet):
  names = tfds.features.ClassLabel(names=["effusion", "edema", "nodule"])
  build(
    tmp_path,
    findings=tfds.features.Sequence(names),
    labels=lambda i: {"findings": [[], ["edema"], ["edema", "effusion"]][i % 3]},
  )
  source = open_source("tfds:made_up", data_dir=str(tmp_path), label="findings")
  assert source.info.classes == ("effusion", "edema", "nodule") and not source.info.exclusive
  assert source.table.labels.sum(0).tolist() == [4, 8, 0]


def test_several_features_are_findings(tmp_path, quiet):
  number = tfds.features.Scalar(np.float32)
  build(
    tmp_path,
    edema=number,
    effusion=tfds.features.Scalar(np.int64),
    labels=lambda i: {"edema": [0.0, 1.0, np.nan, -1.0][i % 4], "effusion": i % 2},
  )
  source = open_source("tfds:made_up", data_dir=str(tmp_path), label=("edema", "effusion"))
  assert source.info.classes == ("edema", "effusion")
  assert np.isnan(source.table.labels[:, 0]).sum() == 6
  assert source.table.labels[:, 1].sum() == 6
  assert open_source("tfds:made_up", data_dir=str(tmp_path)).info.classes == ()  # none asked for


def test_splits(tmp_path, quiet):
  build(tmp_path)
  sizes = {
    "train": 12,
    "val": 4,
    "validation": 4,
    "all": 16,
    "train+val": 16,
    "train[:25%]": 3,
    "train[:6]+val[2:]": 8,
  }
  prints = set()
  for split, n in sizes.items():
    source = open_source("tfds:made_up", split=split, data_dir=str(tmp_path))
    assert len(source) == len(source.table.ids) == n, split
    prints.add((source.info.split, source.info.fingerprint))
  assert len(prints) == 5  # val and validation are one, and so are all and train+val
  with pytest.raises(UserError, match="no split 'tset'; valid: all, train, val"):
    open_source("tfds:made_up", split="tset", data_dir=str(tmp_path))


def test_table_from_the_cache_is_the_same(tmp_path, quiet, cache, monkeypatch):
  build(tmp_path, label=tfds.features.ClassLabel(num_classes=3), labels=lambda i: {"label": i % 3})
  first = open_source("tfds:made_up", data_dir=str(tmp_path))
  (memory,) = (cache / "tables").iterdir()
  whole, rng = memory.read_bytes(), np.random.default_rng(0)
  for _ in range(40):
    flipped = bytearray(whole)
    flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
    memory.write_bytes(flipped)
    again = open_source("tfds:made_up", data_dir=str(tmp_path))
    assert again.info == first.info and again.table.ids == first.table.ids
    np.testing.assert_array_equal(again.table.labels, first.table.labels)
  memory.write_bytes(whole)
  monkeypatch.setattr(module.Source, "_text", None)
  monkeypatch.setattr(module.Source, "_label_row", None)  # the records are not looked at again
  again = open_source("tfds:made_up", data_dir=str(tmp_path))
  assert again.info == first.info and again.table.ids == first.table.ids
  np.testing.assert_array_equal(again.table.labels, first.table.labels)


def test_newest_version_and_the_environment(tmp_path, quiet, monkeypatch):
  build(tmp_path)
  folder = tmp_path / "made_up"
  (folder / "1.10.0").mkdir()
  (folder / "1.10.0" / "unfinished").write_text("no dataset_info.json here")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  assert len(open_source("tfds:made_up")) == 12
  assert tfds_prepare._newest(folder).name == "1.2.0"
  (folder / "1.10.0" / "dataset_info.json").write_text(json.dumps({}))
  assert tfds_prepare._newest(folder).name == "1.10.0"


def test_mistakes(tmp_path, quiet):
  build(tmp_path, note=tfds.features.Text(), labels=lambda i: {"note": "x"})
  with pytest.raises(UserError, match="label='lable' is not a feature"):
    open_source("tfds:made_up", data_dir=str(tmp_path), label="lable")
  with pytest.raises(UserError, match="label='note' is Text"):
    open_source("tfds:made_up", data_dir=str(tmp_path), label="note")
  with pytest.raises(UserError, match=r"not prepared in .*did you mean 'chest_xray_pneumonia'"):
    open_source("tfds:chest_xray_pneumoniae", data_dir=str(tmp_path))
  info = tmp_path / "made_up" / "1.2.0" / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(UserError, match=r"tfrecord files.*--file_format=array_record"):
    open_source("tfds:made_up", data_dir=str(tmp_path))


FINDINGS = ("Edema", "Pleural Effusion")


class Standard(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Six images with all columns the builders share."""

  name = "standard"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    self.left_out = tfds_features.LeftOut()
    return tfds.core.DatasetInfo(
      builder=self,
      metadata=self.left_out.metadata,
      features=tfds_features.features(
        labels=FINDINGS, bits=16, encoding="png", mask=True, window=True
      ),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 4096, (6, 18, 20, 1)).astype(np.uint16)
    for i in range(6):
      yield (
        f"{i}",
        tfds_features.example(
          self.info.features,
          image=tfds_features.png(pixels[i]),
          id=f"im{i}",
          patient=f"p{i // 2}",
          age=None if i == 1 else 10.5 * i,
          sex="FM?"[i % 3],
          view=["PA", "AP", "L", ""][i % 4],
          site="a",
          mask=tfds_features.png(pixels[i] > 2000) if i % 2 else None,
          window=(100.0, 3000.0) if i < 3 else None,
          labels=dict(
            zip(FINDINGS, [(1, 0), (0, -1), (np.nan, 1), (-1, -1), (0, 0), (1, 1)][i], strict=True)
          ),
        ),
      )
    self.left_out.add("im9", "it is broken")
    self.left_out.note("what was assumed")


@pytest.fixture
def standard(tmp_path, quiet):
  builder = Standard(data_dir=str(tmp_path), file_format="array_record")
  builder.download_and_prepare()
  return lambda **options: open_source("tfds:standard", data_dir=str(tmp_path), **options)


def test_what_builders_store_comes_back(standard):
  source = standard()
  rows = sorted(range(6), key=lambda i: source.table.ids[i])
  table = source.table.take(rows)
  assert table.ids == tuple(f"im{i}" for i in range(6))
  assert table.patients == ("p0", "p0", "p1", "p1", "p2", "p2")
  assert table.sexes == ("F", "M", "", "F", "M", "")
  assert table.views == ("PA", "AP", "L", "", "PA", "AP")
  np.testing.assert_array_equal(table.ages, np.float32([0, np.nan, 21, 31.5, 42, 52.5]))
  assert source.info.classes == FINDINGS and not source.info.exclusive
  nan = np.nan
  np.testing.assert_array_equal(
    table.labels, np.float32([(1, 0), (0, nan), (nan, 1), (nan, nan), (0, 0), (1, 1)])
  )
  assert source.info.skipped == (("im9", "it is broken"),)
  assert "what was assumed" in source.info.notes and source.info.dataset == "tfds:standard"
  rng = np.random.default_rng(3)
  pixels = rng.integers(0, 4096, (6, 18, 20, 1))
  for i, row in enumerate(rows):
    record = source[row]
    assert record.image.dtype == np.uint16 and source.bits == 16
    np.testing.assert_array_equal(record.image, pixels[i])
    assert record.window == ((100.0, 3000.0) if i < 3 else None)
    if i % 2:
      np.testing.assert_array_equal(record.mask, pixels[i] > 2000)
    else:
      assert record.mask is None
  again = standard()  # from the remembered table
  assert again.info == source.info and again.table.sexes == source.table.sexes
  np.testing.assert_array_equal(again.table.ages, source.table.ages)


@pytest.mark.parametrize(("policy", "value"), [("zeros", 0), ("ones", 1)])
def test_policies_for_uncertain_findings(standard, policy, value):
  source = standard(uncertain=policy)
  found = {i: row.tolist() for i, row in zip(source.table.ids, source.table.labels, strict=True)}
  assert found["im1"] == [0, value] and found["im3"] == [value, value]
  assert np.isnan(found["im2"][0])  # unknown is not uncertain
  assert source.info.fingerprint != standard().info.fingerprint
  assert any("uncertain" in note for note in source.info.notes)


def test_views_and_a_choice_of_findings(standard):
  frontal = standard(views=("PA", "AP"), label="Edema")
  assert sorted(frontal.table.ids) == ["im0", "im1", "im4", "im5"]
  assert frontal.info.classes == ("Edema",) and frontal.table.labels.shape == (4, 1)
  assert {frontal[i].id for i in range(4)} == set(frontal.table.ids)
  assert any("2 images" in note for note in frontal.info.notes)
  assert standard(views="unknown").table.ids == ("im3",)
  with pytest.raises(UserError, match="views='AB' is not a view"):
    standard(views="AB")
  with pytest.raises(UserError, match="uncertain='one' is not a policy"):
    standard(uncertain="one")
  with pytest.raises(UserError, match=r"label='Oedema'.*Edema"):
    standard(label="Oedema")
