"""The evaluator of masks: what it counts, leaves out and keeps, and its floor."""

import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.data import base as data_base
from cxrjax.data.base import Record, SourceInfo, Table
from cxrjax.evals.segment import Evaluator

SIZE = 24


def square(top, left, side=8):
  mask = np.zeros((SIZE, SIZE, 1), np.uint8)
  mask[top : top + side, left : left + side] = 1
  return mask


MASKS = {
  "train": [square(2, 2), square(2, 4), square(2, 6)],
  "test": [square(4, 4), None, square(8, 10), square(4, 12), None],
}


class Source(data_base.Source):
  """Images whose lungs are the bright pixels."""

  masks = MASKS

  def __init__(self, split="train"):
    self.split, n = split, len(self.masks[split])
    self.info = SourceInfo(
      name="squares",
      split=split,
      classes=(),
      exclusive=False,
      splits={split: n},
      fingerprint=f"{split} {[None if m is None else m.sum() for m in self.masks[split]]}",
    )
    self.table = Table(
      ids=tuple(f"{split}/{i}" for i in range(n)),
      patients=tuple(f"p{i // 2}" for i in range(n)),
      sites=("",) * n,
      labels=np.zeros((n, 0), np.float32),
    )

  def __len__(self):
    return len(self.table)

  def __getitem__(self, i):
    mask = self.masks[self.split][i]
    shown = square(0, 0, 3) if mask is None else mask
    image = np.where(shown, 200, 50).astype(np.uint8)
    image[0, i] = 60  # no two are alike
    return Record(image, self.table.labels[i], mask, self.table.ids[i], self.table.patients[i])


@pytest.fixture(autouse=True)
def _sources(monkeypatch):
  module = types.ModuleType("squares")
  module.Source = Source
  module.Bare = type("Bare", (Source,), {"masks": {"test": [None] * 3, "train": [None] * 3}})
  monkeypatch.setitem(sys.modules, "squares", module)
  monkeypatch.setenv("CXRJAX_TRUST", "squares")


def make(**options):
  return Evaluator(
    **{
      "data": {"name": "squares.Source", "split": "test"},
      "train": {"name": "squares.Source", "split": "train"},
      "size": SIZE,
      "batch": 2,
      **options,
    }
  )


def bright(params, x):
  """The pixels above a gray level: the truth, here."""
  return jnp.where(x * 0.25 + 0.5 > params, 0.9, 0.1)


def column(params, x):
  """The truth, and its rightmost column of pixels too many."""
  return jnp.maximum(bright(params, x), jnp.roll(bright(params, x), 1, axis=2))


def test_images_with_a_mask_judge(tmp_path):
  evaluator = make()
  data = evaluator.load(cache_dir=tmp_path, progress=False)
  assert data.truth.shape == (3, SIZE, SIZE) and data.patients("test") == ["p0", "p1", "p1"]
  result = evaluator.run(bright, np.float32(0.5), data)
  assert {k: v.value for k, v in result.metrics.items()} == {
    "dice": 1.0,
    "iou": 1.0,
    "assd": 0.0,
    "hd95": 0.0,
  }
  assert result.metrics["dice"].n == 3
  wider = evaluator.run(column, np.float32(0.5), data)
  assert wider.metrics["dice"].value == pytest.approx(2 * 64 / (64 + 72))
  assert wider.metrics["iou"].value == pytest.approx(64 / 72)
  assert wider.metrics["hd95"].value == 1.0
  facts = evaluator.describe(data)
  assert (facts["n"], facts["patients"], facts["distances_in"]) == (3, 2, "pixels")
  assert "2 of 5 images have no lung mask and are left out" in facts["notes"]
  assert facts["split"] == "test"


def test_what_the_page_shows_goes_from_worst_to_best(tmp_path):
  evaluator = make()
  data = evaluator.load(cache_dir=tmp_path, progress=False)
  # A mask's left half only, of the images further to the right less.
  half = lambda p, x: bright(p, x) * (jnp.arange(SIZE)[:, None] < 14)  # noqa: E731
  arrays = evaluator.run(half, np.float32(0.5), data).arrays
  assert arrays["id"].tolist() == ["test/3", "test/2", "test/0"]
  assert (np.diff(arrays["dice"]) >= 0).all() and arrays["dice"][-1] == 1.0
  np.testing.assert_array_equal(arrays["truth"][-1], square(4, 4)[..., 0] > 0)
  assert arrays["image"].shape == arrays["predicted"].shape == (3, SIZE, SIZE)


def test_the_floor_is_the_mean_training_mask(tmp_path):
  evaluator = make()
  data = evaluator.load(cache_dir=tmp_path, progress=False)
  called = evaluator.floor(data).arrays["predicted"]
  # Columns 4 to 11 lie in two of the three training masks or more.
  np.testing.assert_array_equal(called[0], square(2, 4)[..., 0] > 0)
  assert make(train=None).floor(make(train=None).load(tmp_path, False)) is None


def test_small_parts_are_dropped_where_asked_for(tmp_path):
  def speckled(params, x):
    return bright(params, x).at[:, 0, 0].set(1.0).at[:, 23, 23].set(1.0)

  both = {}
  for keep in (0, 1):
    evaluator = make(components=keep)
    data = evaluator.load(cache_dir=tmp_path, progress=False)
    both[keep] = evaluator.run(speckled, np.float32(0.5), data).metrics["dice"].value
  assert both[1] == 1.0 and both[0] == pytest.approx(2 * 64 / (64 + 66))


def test_an_empty_prediction_is_counted(tmp_path):
  evaluator = make(spacing=(0.5, 0.5))
  data = evaluator.load(cache_dir=tmp_path, progress=False)
  result = evaluator.run(lambda p, x: x * 0, np.float32(0), data)
  assert result.metrics["dice"].value == 0.0 and result.metrics["assd"].undefined
  assert result.facts["undefined_distances"] == 3
  assert "0.5" in evaluator.describe(data)["distances_in"]


def test_no_picture_for_the_attention_of_a_class_token(tmp_path):
  data = make().load(cache_dir=tmp_path, progress=False)
  pixels, names = make().examples(data, 6)
  assert len(pixels) == 0 and names == []


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"threshold": 1.0}, r"threshold=1\.0 must lie between 0 and 1"),
    ({"size": 0}, r"size=0 must be above 0"),
    ({"components": -1}, r"components=-1 must be 0 \(all\)"),
    ({"spacing": (1.0, 0.0)}, r"spacing=\(1\.0, 0\.0\) must be two lengths above 0"),
    ({"data": {"split": "test"}}, r"data\.name is missing"),
    ({"data": {"name": "squares.Bare", "split": "test"}}, r"squares has no lung masks"),
  ],
)
def test_mistakes(options, words, tmp_path):
  with pytest.raises(UserError, match=words):
    make(**options).load(cache_dir=tmp_path, progress=False)
