"""Evaluations see 16-bit images as their windows show them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from cxrjax.data.base import SourceInfo, Table
from cxrjax.data.decoding.windowing import to_unit
from cxrjax.data.images import Images
from cxrjax.evals import features, thumbnail_baseline
from cxrjax.evals.probe import Evaluator

N, SIDE = 23, 16
PARAMS = np.random.default_rng(1).normal(size=(SIDE * SIDE, 5)).astype(np.float32) / 16


def encode(params, x):
  return jnp.tanh(x.reshape(x.shape[0], -1) @ params)


@pytest.fixture
def wide():
  """Images that differ in where their levels lie; a window for each."""
  rng = np.random.default_rng(0)
  low = rng.uniform(0, 20000, N)
  pixels = (low[:, None, None, None] + rng.uniform(-500, 4000, (N, SIDE, SIDE, 1))).clip(0, 65535)
  names = tuple(map(str, range(N)))
  return Images(
    pixels=pixels.astype(np.uint16),
    windows=np.stack([low, low + 3000], 1).astype(np.float32),
    table=Table(names, names, ("",) * N, np.zeros((N, 1), np.float32)),
    info=SourceInfo("wide", "train", ("a",), False, {"train": N}, ""),
  )


@pytest.mark.parametrize("batch", [7, 64])
@pytest.mark.parametrize("devices", [1, 8])
def test_features(wide, batch, devices):
  if devices > len(jax.devices()):
    pytest.skip("needs several devices (XLA_FLAGS=--xla_force_host_platform_device_count=8)")
  mesh = (
    None
    if devices == 1
    else Mesh(np.array(jax.devices()[:devices]).reshape(-1, 2), ("data", "fsdp"))
  )
  got = features.extract(encode, PARAMS, wide, batch=batch, mean=0.4, std=0.3, mesh=mesh)
  x = (to_unit(wide.pixels, wide.windows).astype(np.float64) - 0.4) / 0.3
  np.testing.assert_allclose(got, np.tanh(x.reshape(N, -1) @ PARAMS), atol=2e-5)


def test_features_of_rows_that_stay_in_their_file(wide):
  rows = [5, 1, 20, 2]
  got = features.extract(encode, PARAMS, wide.take(rows), batch=3)
  np.testing.assert_allclose(got, features.extract(encode, PARAMS, wide, batch=3)[rows], atol=1e-6)


def test_thumbnails(wide):
  got = thumbnail_baseline.thumbnails(wide, side=4)
  unit = to_unit(wide.pixels, wide.windows)
  exact = unit.reshape(N, 4, 4, 4, 4).mean((2, 4)).reshape(N, -1)
  np.testing.assert_allclose(got, exact, atol=1e-5)
  eight = thumbnail_baseline.thumbnails(wide.gray(slice(None)), side=4)
  assert np.abs(got - eight).max() < 0.5 / 255


def test_the_probe_on_sixteen_bits(fake, tmp_path, monkeypatch):
  """The same numbers as at 8 bits, within their rounding; figures are of 8 bits."""
  spec = fake(train=fake.split("train", 80), test=fake.split("test", 40))
  import fake_sets

  plain = fake_sets.Source.__getitem__

  def deep(self, i):
    record = plain(self, i)
    image = record.image.astype(np.uint16) * 10 + np.uint16(500)
    return dataclasses.replace(record, image=image, window=(500.0, 3050.0))

  monkeypatch.setattr(fake_sets.Source, "__getitem__", deep)
  results = {}
  for bits in (8, 16):
    evaluator = Evaluator(data=spec, size=16, ks=(5,), bits=bits)
    data = evaluator.load(tmp_path, progress=False)
    assert data.images["test"].bits == bits
    examples, names = evaluator.examples(data, 4)
    results[bits] = evaluator.run(lambda p, x: encode(PARAMS, x), None, data), examples, names
    assert examples.dtype == np.uint8 and len(examples) == 4
  assert results[8][2] == results[16][2]
  assert np.abs(results[8][1].astype(int) - results[16][1]).max() <= 1
  for name, interval in results[8][0].metrics.items():
    assert results[16][0].metrics[name].value == pytest.approx(interval.value, abs=0.03)
