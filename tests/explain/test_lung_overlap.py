"""Scores of a network's maps: from images to intervals."""

import dataclasses
import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.data.base import SourceInfo, Table
from cxrjax.data.images import Images
from cxrjax.explain import lung_overlap
from cxrjax.explain.maps import Head
from cxrjax.metrics import saliency
from cxrjax.models.base import Encoder
from cxrjax.models.features import Features

N, SIDE = 12, 16


@dataclasses.dataclass(frozen=True)
class Bright(Encoder):
  """A convolutional network in miniature: its only map is the image, squares of 4 pixels."""

  dtype: str = "float32"

  def init(self, key):
    return {"scale": jnp.ones(())}

  def encode(self, params, x, *, intermediates=(), add_at=None):
    b, h, w, _ = x.shape
    maps = x.reshape(b, h // 4, 4, w // 4, 4, 1).mean((2, 4))
    maps = jnp.maximum(maps, 0) * params["scale"]
    maps = maps + (add_at or {}).get("stage:-1", 0.0)
    return Features(maps.mean((1, 2)), None, dict.fromkeys(intermediates, maps))


def images(inside, masks=True):
  """Bright squares at the left, where the masks are, in the images where `inside`."""
  pixels = np.full((N, SIDE, SIDE, 1), 127, np.uint8)
  for image, left in zip(pixels, inside, strict=True):
    image[4:8, 0 if left else 12 :][:, :4] = 255
  lung = np.zeros((N, SIDE, SIDE, 1), np.uint8)
  lung[:, :, :8] = 1
  lung[-1] = 0
  labels = np.eye(2, dtype=np.float32)[np.arange(N) % 2]
  table = Table(
    tuple(f"i{i}" for i in range(N)), tuple(f"p{i // 2}" for i in range(N)), ("",) * N, labels
  )
  info = SourceInfo(
    name="made",
    split="test",
    classes=("a", "b"),
    exclusive=True,
    splits={"test": N},
    fingerprint=hashlib.sha256(b"made").hexdigest(),
  )
  return Images(pixels, table, info, masks=lung if masks else None)


def look(of, **options):
  head = Head(jnp.ones((1, 2)), jnp.array([0.0, 1.0]))
  return lung_overlap.explain_and_score(
    "gradcam", Bright(), {"scale": jnp.float32(1)}, of, head=head, **options
  )


def test_images_with_masks():
  of = images(np.ones(N, bool))
  np.testing.assert_array_equal(lung_overlap.with_masks(of), np.arange(N - 1))
  assert len(lung_overlap.with_masks(of, 4)) == 4
  assert not len(lung_overlap.with_masks(images(np.ones(N, bool), masks=False)))


def test_a_network_that_looks_at_the_lungs_and_one_that_does_not():
  there, away = (look(images(np.full(N, left))) for left in (True, False))
  assert there.maps.shape == (N, 4, 4)
  assert (there.target == 1).all()  # the largest logit
  assert np.nanmin(there.scores.values["energy"]) > 0.99
  assert np.nanmax(away.scores.values["energy"]) < 0.01
  assert there.scores.reasons[-1] == saliency.EMPTY
  patients = [f"p{i // 2}" for i in range(N)]
  found = lung_overlap.differences(away.scores, there.scores, patients)
  assert found["energy_ratio"].value == pytest.approx(-2, abs=0.05)
  assert found["pointing"].value == -1 and found["pointing"].n == N - 1


def test_a_class_may_be_chosen():
  assert (look(images(np.ones(N, bool)), target=0).target == 0).all()


def test_summary_is_the_mean_of_images_with_intervals_over_patients():
  of = images(np.arange(N) < 6)
  scores = look(of).scores
  found = lung_overlap.summary(scores, of.patients, of.labels, of.info.classes)
  inside = found["all"]["pointing"]
  assert inside["value"] == pytest.approx(6 / 11) and inside["n"] == 11
  assert inside["low"] < 6 / 11 < inside["high"] and "patients" in inside["method"]
  assert inside["chance"] == 0.5 and found["all"]["energy_ratio"]["chance"] == 1
  assert found["classes"]["a"]["pointing"]["value"] == pytest.approx(3 / 6)
  assert found["undefined"] == {saliency.EMPTY: 1}


def test_without_masks_there_are_maps_and_no_scores():
  of = images(np.ones(N, bool), masks=False)
  seen = look(of)
  assert np.isnan(seen.scores.values["energy"]).all()
  found = lung_overlap.summary(seen.scores, of.patients, of.labels, of.info.classes)
  assert found["all"]["energy"]["value"] is None and found["all"]["energy"]["undefined"]


def test_sixteen_bits_are_shown_through_their_window():
  of = images(np.ones(N, bool))
  wide = dataclasses.replace(of, pixels=of.pixels.astype(np.uint16) * 257, windows=None)
  np.testing.assert_allclose(
    lung_overlap.normalize(wide, 0.5, 0.25), lung_overlap.normalize(of, 0.5, 0.25), atol=1e-5
  )
