"""Sources of given images and tables, and fixtures of the tests that read them."""

import io
import tempfile

import numpy as np
import pytest
from PIL import Image

from cxrjax.data import base as data_base
from cxrjax.data.base import Record, SourceInfo, Table


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """A cache of decoded images of the test's own."""
  folder = tmp_path / "cache"
  monkeypatch.setenv("CXRJAX_CACHE", str(folder))
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # TFDS leaves folders behind there
  return folder


def _encode(pixels, form="PNG", **options):
  """Encoded bytes of an array, or of a PIL image."""
  image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
  buffer = io.BytesIO()
  image.save(buffer, form, **options)
  return buffer.getvalue()


def _texture(height, width, seed=0):
  """An 8-bit image with structure at every scale, so that resizing it wrongly shows."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:height, :width]
  smooth = 100 + 60 * np.sin(x / 9) + 50 * np.cos(y / 13)
  return np.clip(smooth + rng.normal(0, 12, (height, width)), 0, 255).astype(np.uint8)


class Arrays(data_base.Source):
  """A source of given images, which counts how often it is read."""

  def __init__(self, images, masks=None, labels=None, patients=None):
    n = len(images)
    self.images, self.masks, self.reads = images, masks, 0
    labels = np.eye(2, dtype=np.float32)[np.arange(n) % 2] if labels is None else labels
    self.table = Table(
      ids=tuple(f"im{i}" for i in range(n)),
      patients=patients or tuple(f"p{i}" for i in range(n)),
      sites=("",) * n,
      labels=labels,
    )
    self.info = SourceInfo(
      name="arrays",
      split="train",
      classes=("a", "b"),
      exclusive=True,
      splits={"train": n},
      fingerprint=f"{sum(int(im.astype(np.int64).sum()) * (i + 1) for i, im in enumerate(images))}",
    )

  @property
  def bits(self):
    return max(8 * im.itemsize for im in self.images)

  def __len__(self):
    return len(self.images)

  def __getitem__(self, i):
    self.reads += 1
    t, mask = self.table, None if self.masks is None else self.masks[i]
    return Record(
      image=self.images[i][..., None],
      labels=t.labels[i],
      mask=None if mask is None else mask[..., None],
      id=t.ids[i],
      patient=t.patients[i],
      site=t.sites[i],
    )


class Listed(data_base.Source):
  """A source that is little more than its table; the pixels of image `i` are all `i % 256`."""

  def __init__(
    self,
    patients,
    labels=None,
    classes=None,
    *,
    ids=None,
    name="listed",
    split="train",
    exclusive=False,
    splits=None,
    skipped=(),
    **more,
  ):
    n = len(patients)
    labels = np.zeros((n, 0), np.float32) if labels is None else np.asarray(labels, np.float32)
    self.table = Table(
      ids=tuple(ids or (f"im{i}" for i in range(n))),
      patients=tuple(patients),
      sites=("",) * n,
      labels=labels,
      **more,
    )
    classes = tuple(classes or (f"c{i}" for i in range(labels.shape[1])))
    self.info = SourceInfo(
      name=name,
      split=split,
      classes=classes,
      exclusive=exclusive,
      splits=splits or {split: n},
      fingerprint=f"{name}/{n}",
      notes=("a note",),
      skipped=skipped,
    )

  def __len__(self):
    return len(self.table)

  def __getitem__(self, i):
    t = self.table
    return Record(
      image=np.full((4, 4, 1), i % 256, np.uint8),
      labels=t.labels[i],
      mask=None,
      id=t.ids[i],
      patient=t.patients[i],
      site=t.sites[i],
    )


@pytest.fixture
def listed():
  return Listed


@pytest.fixture
def encode():
  return _encode


@pytest.fixture
def texture():
  return _texture


@pytest.fixture
def arrays():
  return lambda n=12, size=24, **options: Arrays(
    [_texture(size, size, seed=i) for i in range(n)], **options
  )
