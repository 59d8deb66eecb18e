import io
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cxrjax.core.errors import UserError
from cxrjax.data import load_images, open_source
from cxrjax.data import tfds as module


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
  build(tmp_path, label=tfds.features.ClassLabel(names=["well", "sick"]), patient=text(),
        image_id=text(), site=tfds.features.ClassLabel(names=["north", "south"]),
        mask=tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
        labels=lambda i: {"label": i % 3 - 1, "patient": f"p{i // 2}", "image_id": f"im{i}",
                          "site": i % 2})
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
  build(tmp_path, findings=tfds.features.Sequence(names),
        labels=lambda i: {"findings": [[], ["edema"], ["edema", "effusion"]][i % 3]})
  source = open_source("tfds:made_up", data_dir=str(tmp_path), label="findings")
  assert source.info.classes == ("effusion", "edema", "nodule") and not source.info.exclusive
  assert source.table.labels.sum(0).tolist() == [4, 8, 0]


def test_several_features_are_findings(tmp_path, quiet):
  number = tfds.features.Scalar(np.float32)
  build(tmp_path, edema=number, effusion=tfds.features.Scalar(np.int64),
        labels=lambda i: {"edema": [0.0, 1.0, np.nan, -1.0][i % 4], "effusion": i % 2})
  source = open_source("tfds:made_up", data_dir=str(tmp_path), label=("edema", "effusion"))
  assert source.info.classes == ("edema", "effusion")
  assert np.isnan(source.table.labels[:, 0]).sum() == 6
  assert source.table.labels[:, 1].sum() == 6
  assert open_source("tfds:made_up", data_dir=str(tmp_path)).info.classes == ()  # none asked for


def test_splits(tmp_path, quiet):
  build(tmp_path)
  sizes = {"train": 12, "val": 4, "validation": 4, "all": 16, "train+val": 16, "train[:25%]": 3,
           "train[:6]+val[2:]": 8}
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
  assert module._newest(folder).name == "1.2.0"
  (folder / "1.10.0" / "dataset_info.json").write_text(json.dumps({}))
  assert module._newest(folder).name == "1.10.0"


def test_mistakes(tmp_path, quiet):
  build(tmp_path, note=tfds.features.Text(), labels=lambda i: {"note": "x"})
  with pytest.raises(UserError, match="label='lable' is no feature"):
    open_source("tfds:made_up", data_dir=str(tmp_path), label="lable")
  with pytest.raises(UserError, match="label='note' is Text"):
    open_source("tfds:made_up", data_dir=str(tmp_path), label="note")
  with pytest.raises(UserError, match=r"not prepared in .*did you mean 'chest_xray_pneumonia'"):
    open_source("tfds:chest_xray_pneumoniae", data_dir=str(tmp_path))
  info = tmp_path / "made_up" / "1.2.0" / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(UserError, match=r"tfrecord files.*--file_format=array_record"):
    open_source("tfds:made_up", data_dir=str(tmp_path))
