"""A labelled source whose images, labels and patients a test writes down itself."""

import dataclasses
import hashlib
import sys
import types

import numpy as np
import pytest

from cxrjax.data import base as data_base
from cxrjax.data.base import Record, SourceInfo, Table


@dataclasses.dataclass
class Split:
  """One split of the fake source: image `i` is a gray level plus noise."""

  labels: np.ndarray
  patients: list[str]
  levels: np.ndarray


class FakeSource(data_base.Source):
  """Takes its splits from `FakeSource.splits`; set by the `fake` fixture."""

  splits: dict[str, Split] = {}  # noqa: RUF012
  classes: tuple[str, ...] = ("normal", "opacity")
  exclusive = True

  def __init__(self, split="train"):
    self.split = split
    self.part = self.splits[split]
    n = len(self.part.labels)
    content = hashlib.sha256(
      self.part.levels.tobytes() + self.part.labels.tobytes() + split.encode()
    ).hexdigest()
    self.info = SourceInfo(
      name="fake",
      split=split,
      classes=self.classes,
      exclusive=self.exclusive,
      splits={k: len(v.labels) for k, v in self.splits.items()},
      fingerprint=content,
    )
    self.table = Table(
      ids=tuple(f"{split}/{i}" for i in range(n)),
      patients=tuple(self.part.patients),
      sites=("",) * n,
      labels=self.part.labels.astype(np.float32),
    )

  def __len__(self):
    return len(self.part.labels)

  def __getitem__(self, i):
    rng = np.random.default_rng([i, len(self.split)])
    noise = rng.integers(-20, 21, (16, 16, 1))
    image = np.clip(self.part.levels[i] + noise, 0, 255).astype(np.uint8)
    return Record(image, self.table.labels[i], None, self.table.ids[i], self.table.patients[i])


def split(name, n, *, per_patient=2, effect=40.0, classes=2, seed=0):
  """`n` images, brighter for higher classes, `per_patient` of each patient (of one class)."""
  rng = np.random.default_rng([seed, len(name)])
  owner = np.arange(n) // per_patient
  truth = rng.integers(0, classes, owner.max() + 1)[owner]
  levels = 90 + effect * truth + rng.normal(0, 15, n)
  return Split(np.eye(classes, dtype=np.float32)[truth], [f"{name}-{o}" for o in owner], levels)


@pytest.fixture
def fake(monkeypatch):
  """`fake(train=..., test=..., classes=..., exclusive=...)` makes the source "fake_sets.Source"."""

  def make(classes=("normal", "opacity"), exclusive=True, **splits):
    kind = type(
      "Source", (FakeSource,), {"splits": splits, "classes": tuple(classes), "exclusive": exclusive}
    )
    module = types.ModuleType("fake_sets")
    module.Source = kind
    monkeypatch.setitem(sys.modules, "fake_sets", module)
    monkeypatch.setenv("CXRJAX_TRUST", "fake_sets")
    return {"name": "fake_sets.Source"}

  make.split = split
  make.source = FakeSource
  return make
