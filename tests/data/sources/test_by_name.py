import sys
import types

import pytest
from ml_collections import ConfigDict

from cxrjax.core.errors import UserError
from cxrjax.data import base, open_source
from cxrjax.data.sources import mixture, phantom


def test_phantom():
  source = open_source("phantom", split="val", n=4, size=40)
  assert isinstance(source, phantom.Source) and source.info.split == "val"


def test_a_source_of_the_users_own(monkeypatch):
  class Source(phantom.Source):
    def __init__(self, split, shade=3):
      super().__init__(split, n=4, size=40)
      self.split, self.shade = split, shade

  module = types.ModuleType("their_package.radiographs")
  module.Source = module.Other = Source
  module.Nothing = lambda split: object()
  module.Half = type("Half", (list, base.Source), {"__init__": lambda self, split: None})
  package = types.ModuleType("their_package")
  package.__path__ = []
  monkeypatch.setitem(sys.modules, "their_package", package)
  monkeypatch.setitem(sys.modules, "their_package.radiographs", module)
  monkeypatch.setenv("CXRJAX_TRUST", "their_package")
  for name in (
    "their_package.radiographs",
    "their_package.radiographs:Other",
    "their_package.radiographs.Other",
  ):
    source = open_source(name, split="test", shade=5)
    assert (source.split, source.shade) == ("test", 5)
  with pytest.raises(UserError, match=r"options.shape .*did you mean 'shade'"):
    open_source("their_package.radiographs", shape=5)
  with pytest.raises(UserError, match=r"which is a subclass of cxrjax\.data\.base\.Source"):
    open_source("their_package.radiographs:Nothing")
  with pytest.raises(UserError, match="is not a source: it lacks info, table"):
    open_source("their_package.radiographs:Half")


SMALL = {"n": 12, "size": 40}


def test_a_list_is_a_pool():
  both = open_source(
    [
      "phantom",
      {
        "source": "phantom",
        "split": "val",
        "weight": 3,
        "options": {"n": 6},
        "rename": {"opacity": "pneumonia"},
      },
    ],
    split="test",
    **SMALL,
  )
  assert isinstance(both, mixture.Pool)
  assert [s.info.split for s in both.sources] == ["test", "val"]
  assert [(p.rows, p.weight) for p in both.info.parts] == [(12, 1.0), (6, 3.0)]
  assert both.info.classes == ("normal", "opacity", "pneumonia")
  plain = open_source(["phantom"], **SMALL)
  assert plain.info.parts == () and plain.table.labels.shape == (12, 2)
  assert len(open_source(("phantom",), **SMALL)) == 12


def test_a_list_in_a_config():
  item = {"source": "phantom", "weight": 2, "options": {"seed": 1}}
  for items in (["phantom", item], ("phantom", ConfigDict(item))):
    config = ConfigDict({"source": items, "options": SMALL}).to_dict()
    both = open_source(config["source"], **config["options"])
    assert [p.weight for p in both.info.parts] == [1.0, 2.0]


def test_parts_of_a_source():
  whole = open_source("phantom", **SMALL)
  half = open_source("phantom", subset="50 %", **SMALL)
  assert 4 <= len(half) <= 8 and set(half.table.ids) < set(whole.table.ids)
  assert open_source("phantom", subset="50 %", split_seed=1, **SMALL).table.ids != half.table.ids
  for nothing in (None, ""):
    assert open_source("phantom", subset=nothing, fold=nothing, **SMALL).table.ids == (
      whole.table.ids
    )
  folds = {
    role: open_source("phantom", split=role, fold="2 of 3", **SMALL) for role in ("train", "test")
  }
  assert sum(len(f) for f in folds.values()) == 36  # of all splits
  assert (
    sum(len(open_source("phantom", split=role, fold="2 of 3 in val", **SMALL)) for role in folds)
    == 12
  )
  both = open_source("phantom", split="train", fold="2 of 3", subset="2 per class", **SMALL)
  assert both.table.labels.sum(axis=0).tolist() == [2, 2]
  assert set(both.table.ids) < set(folds["train"].table.ids)
  assert both.info.split == "train, fold 2 of 3, 2 per class"


def test_parts_of_pools():
  items = [
    {"source": "phantom", "subset": "25 %"},
    {"source": "phantom", "options": {"seed": 1}, "fold": "1 of 3"},
  ]
  both = open_source(items, split="train", **SMALL)
  assert [s.info.split for s in both.sources] == ["train, 25 %", "train, fold 1 of 3"]
  part = open_source(items, split="train", subset="50 %", **SMALL)
  assert part.source.info.fingerprint == both.info.fingerprint
  assert abs(len(part) - len(both) / 2) <= 2
  folds = [
    open_source(
      ["phantom", {"source": "phantom", "options": {"seed": 1}}], split=role, fold="1 of 2", **SMALL
    )
    for role in ("train", "test")
  ]
  assert sum(map(len, folds)) == 72
  assert not set(folds[0].table.patients) & set(folds[1].table.patients)


@pytest.mark.parametrize(
  "items, word",
  [
    ([], r"source=\[\]"),
    (["phantom", "phantm"], r"config.data.source\[1\]='phantm' names no"),
    ([{"source": "phantm"}], r"config.data.source\[0\].source='phantm'"),
    (["phantom", {"weight": 2}], r"source\[1\].source='' names no source"),
    (
      ["phantom", {"source": "phantom", "wieght": 2}],
      r"source\[1\].wieght .*did you mean 'weight'",
    ),
    (
      ["phantom", {"source": "phantom", "options": {"sizes": 2}}],
      r"config.data.source\[1\].options.sizes is not an option; did you mean 'size'",
    ),
    (
      ["phantom", {"source": "phantom", "options": {"seed": -1}}],
      r"config.data.source\[1\].options.seed=-1 is out of range",
    ),
    (["phantom", {"source": "phantom", "options": 3}], r"source\[1\].options=3 is not a mapping"),
    (
      [{"source": "phantom", "split": "tset"}],
      r"config.data.source\[0\]: phantom has no split 'tset'",
    ),
    ([{"source": "phantom", "subset": "many"}], r"config.data.source\[0\].subset='many'"),
    ([{"source": "phantom", "subset": 0.1}], r"config.data.source\[0\].subset=0.1"),
    ([{"source": "phantom", "fold": "1"}], r"config.data.source\[0\].fold='1'"),
    ([{"source": "phantom", "weight": 0}], r"config.data.source\[0\].weight=0"),
    ([{"source": ["phantom"]}], r"config.data.source\[0\]=\['phantom'\] names no source"),
    ([3], r"config.data.source\[0\]=3 names no source"),
    (
      ["phantom", "phantom"],
      r"config.data.source\[1\] has images that config.data.source\[0\] has",
    ),
  ],
)
def test_mistakes_in_a_list_name_the_place(items, word):
  with pytest.raises(UserError, match=word) as error:
    open_source(items, n=4, size=40)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "name, options, word",
  [
    ("phantm", {}, "names no source"),
    ("", {}, "names no source"),
    ("folder", {}, "is incomplete"),
    ("tfds:", {}, "is incomplete"),
    ("phantom:x", {}, "names no source"),
    ("no_such_package.radiographs", {}, "--trust=no_such_package"),
    ("phantom", {"sizes": 3}, "did you mean 'size'"),
    ("phantom", {"split": "tset"}, "valid: train"),
  ],
)
def test_mistakes(name, options, word):
  with pytest.raises(UserError, match=word) as error:
    open_source(name, **options)
  assert "\n" not in str(error.value)
