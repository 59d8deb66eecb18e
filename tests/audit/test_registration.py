"""Registration: maps that are known are found, and different radiographs stay different."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from cxrjax.audit import registration
from cxrjax.data.descriptors import batched, downsample
from cxrjax.data.sources import phantom


@pytest.fixture(scope="module")
def drawn():
  source = phantom.Source(split="train", n=12, size=160)
  return np.stack([source[i].image for i in range(12)])


def seen_through(image, m):
  """`image` resampled so that the map from it to the result's pixels is the inverse of `m`."""
  half = (image.shape[0] - 1) / 2
  matrix = np.array([[m[1][1], m[1][0]], [m[0][1], m[0][0]]])  # rows first
  shift = np.array([m[1][2], m[0][2]]) * half + half - matrix @ np.full(2, half)
  return ndimage.affine_transform(image.astype(np.float32), matrix, shift, order=1, mode="nearest")


def compare(a, b):
  near, maps = batched(registration.coarse, *(downsample(x, registration.COARSE) for x in (a, b)))
  r, maps = batched(registration.fine, *(downsample(x, registration.FINE) for x in (a, b)), maps)
  return near, r, maps


@pytest.mark.parametrize(
  "m",
  [
    [[1, 0, 0.06], [0, 1, -0.04]],
    [[0.94, 0, 0], [0, 0.94, 0]],
    [[0.95, 0, 0.02], [0, 1.03, 0]],
    [[0.999, -0.05, 0], [0.05, 0.999, 0]],
  ],
)
def test_a_known_map_is_found(drawn, m):
  moved = np.stack([seen_through(x[..., 0], m) for x in drawn])[..., None]
  near, r, maps = compare(drawn, moved)
  whole = np.array([*m, [0, 0, 1]])
  np.testing.assert_allclose(maps, np.broadcast_to(np.linalg.inv(whole)[:2], maps.shape), atol=0.02)
  assert near.min() > 0.9 and r.min() > 0.9


def test_the_same_image_is_exactly_the_same(drawn):
  near, r, maps = compare(drawn, drawn)
  np.testing.assert_allclose(near, 1, atol=1e-5)
  np.testing.assert_allclose(r, 1, atol=1e-5)
  np.testing.assert_allclose(maps, np.broadcast_to(np.eye(2, 3), maps.shape), atol=1e-4)


def test_other_radiographs_and_negatives_are_not(drawn):
  patients = phantom.Source(split="train", n=12, size=160).table.patients
  _, r, _ = compare(drawn[:-1], drawn[1:])
  other = np.array([a != b for a, b in itertools.pairwise(patients)])
  assert other.sum() > 3 and r[other].max() < 0.8
  assert compare(drawn, 255 - drawn)[1].max() < 0.5


def test_blank_images_correlate_with_nothing(drawn):
  blank = np.full_like(drawn, 90)
  near, r, _ = compare(drawn, blank)
  assert np.isfinite(near).all() and np.abs(near).max() < 0.01 and np.abs(r).max() < 0.01
