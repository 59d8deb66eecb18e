"""Splits larger than what TFDS keeps in memory, without TensorFlow."""

import importlib.util
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from cxrjax.builders import base_builder


class Numbers(base_builder.SetBuilder, skip_registration=True):
  VERSION = tfds.core.Version("1.0.0")
  pkg_dir_path = None

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict({"x": np.int64, "text": tfds.features.Text()}),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(300), "test": self._generate_examples(7)}

  def _generate_examples(self, n):
    for i in range(n):
      yield f"key{i}", {"x": i, "text": "abc" * i}


def prepared(folder):
  builder = Numbers(data_dir=str(folder), file_format="array_record")
  builder.download_and_prepare()
  return builder


def test_a_large_split_is_written_as_a_small_one(tmp_path, monkeypatch):
  small = prepared(tmp_path / "small")
  monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 5000)
  before = shuffle.tf
  large = prepared(tmp_path / "large")
  assert shuffle.tf is before
  for split, n in (("train", 300), ("test", 7)):
    rows = [
      [(int(r["x"]), r["text"]) for r in made.as_data_source(split)] for made in (small, large)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == n
    assert sorted(rows[0]) == [(i, b"abc" * i) for i in range(n)] != rows[0]
  assert not list((tmp_path / "large").rglob("*bucket*"))


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="has TensorFlow")
def test_tfds_alone_cannot(tmp_path, monkeypatch):
  """When this fails, TFDS can do it itself, and `without_tensorflow` can go."""
  monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 5000)
  found = shuffle.Shuffler(tmp_path, "salt")
  with pytest.raises(ImportError):
    for i in range(300):
      found.add(f"key{i}", bytes(100))
  assert "tensorflow" not in sys.modules
