"""The radiographs that come with the package."""

import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.data import mini, open_source
from cxrjax.data.splits.patient_splits import patient_keys


@pytest.fixture(scope="module")
def parts():
  return {split: open_source("mini", split=split) for split in ("train", "val", "test")}


def test_films_of_whole_patients_with_and_without_pneumonia(parts):
  assert {split: len(source) for split, source in parts.items()} == {
    "train": 1000,
    "val": 200,
    "test": 400,
  }
  seen = [set(patient_keys(source)) for source in parts.values()]
  assert "" not in set.union(*seen) and sum(map(len, seen)) == len(set.union(*seen))
  for split, normal in (("train", 0.257), ("val", 0.257), ("test", 0.375)):
    source = parts[split]
    assert source.info.classes == ("normal", "pneumonia") and source.info.exclusive
    np.testing.assert_allclose(source.table.labels.mean(0)[0], normal, atol=0.005)
    assert all(name.startswith(f"{split}/") for name in source.table.ids)
  assert all(p.startswith("test-") or "IM-" in p for p in parts["test"].table.patients)


def test_they_are_radiographs(parts):
  levels = np.stack([parts["test"][i].image for i in range(0, 400, 50)])
  assert levels.shape == (8, 64, 64, 1) and levels.dtype == np.uint8 and parts["test"].bits == 8
  middle, corners = levels[:, 24:40, 28:36].mean(), levels[:, ::60, ::60].mean()
  assert middle > corners + 40  # a spine, and dark corners


def test_where_the_package_lies_is_said_nowhere(parts, repository):
  assert str(repository) not in repr(parts["train"].info)
  with pytest.raises(UserError, match="no split 'dev2'"):
    open_source("mini", split="dev2")
  with pytest.raises(UserError, match="names no source"):
    open_source("mini:x")


def test_it_is_small_and_says_whose_it_is():
  assert mini.FILMS.stat().st_size < 6e6
  licence = (mini.FILMS.parent / "LICENSE").read_text()
  assert "CC BY 4.0" in licence and "10.17632/rscbjbr9sj" in licence and "Changes:" in licence
