"""The thumbnail floor: exact areas, ridge as scikit-learn's, and its value on real radiographs."""

import io
import re
import zipfile

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import Ridge

from cxrjax.evals import thumbnail_baseline
from cxrjax.metrics import roc


def test_thumbnails_of_a_multiple_are_block_means():
  pixels = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 1)).astype(np.uint8)
  expected = pixels.reshape(300, 16, 2, 16, 2).mean((2, 4)) / 255
  np.testing.assert_allclose(
    thumbnail_baseline.thumbnails(pixels), expected.reshape(300, -1), atol=1e-6
  )
  assert thumbnail_baseline.thumbnails(pixels[:0]).shape == (0, 256)


@pytest.mark.parametrize("size", [17, 40, 50])
def test_thumbnails_of_any_size_are_pillows_box(size):
  pixels = np.random.default_rng(1).integers(0, 256, (2, size, size, 1)).astype(np.uint8)
  for x, got in zip(pixels, thumbnail_baseline.thumbnails(pixels), strict=True):
    # Every image pixel repeated 16 times along both axes makes the cells whole numbers of pixels.
    fine = np.repeat(np.repeat(x[..., 0].astype(np.float64), 16, 0), 16, 1)
    expected = fine.reshape(16, size, 16, size).mean((1, 3)) / 255
    np.testing.assert_allclose(got.reshape(16, 16), expected, atol=1e-6)


def test_smaller_images_than_the_thumbnail():
  pixels = np.full((1, 8, 8, 1), 51, np.uint8)
  np.testing.assert_allclose(thumbnail_baseline.thumbnails(pixels), 0.2, atol=1e-6)


def test_ridge_against_sklearn():
  rng = np.random.default_rng(2)
  x, test = rng.normal(2, 3, (90, 7)), rng.normal(2, 3, (20, 7))
  labels = (rng.random((90, 3)) < 0.4).astype(np.float64)
  labels[::4, 1] = np.nan
  labels[:, 2] = 0
  got = thumbnail_baseline.ridge(x, labels, test)
  for c in (0, 1):
    known = ~np.isnan(labels[:, c])
    scale = lambda v: (v - x.mean(0)) / x.std(0)  # noqa: E731
    model = Ridge(alpha=thumbnail_baseline.PENALTY * known.sum()).fit(
      scale(x[known]), labels[known, c]
    )
    np.testing.assert_allclose(got[:, c], model.predict(scale(test)), atol=1e-5)
  assert np.isnan(got[:, 2]).all()


def archive(folder, name):
  path = folder / name
  if not path.is_file():
    pytest.skip(f"no {name} in CXRJAX_TEST_DATA")
  return zipfile.ZipFile(path)


def read(files, names):
  """Thumbnails of files of one size, a few hundred at a time."""
  parts = []
  for start in range(0, len(names), 256):
    images = [
      np.asarray(Image.open(io.BytesIO(files.read(name))).convert("L"))
      for name in names[start : start + 256]
    ]
    parts.append(thumbnail_baseline.thumbnails(np.stack(images)[..., None]))
  return np.concatenate(parts)


def test_floor_of_the_official_pneumonia_test_split(test_data):
  with archive(test_data, "chest_xray.zip") as files:
    parts = {}
    for part in ("train", "test"):
      names = sorted(
        n
        for n in files.namelist()
        if re.fullmatch(rf"chest_xray/{part}/(NORMAL|PNEUMONIA)/[^/]+\.jpeg", n)
      )
      truth = np.array(["/PNEUMONIA/" in n for n in names], dtype=np.int64)
      patients = [re.match(r"(person\d+|(?:NORMAL2-)?IM-\d+)", n.split("/")[-1])[0] for n in names]
      parts[part] = read(files, names), truth, patients
  x, y, _ = parts["train"]
  test, truth, patients = parts["test"]
  assert (len(y), len(truth)) == (5216, 624)
  scores = thumbnail_baseline.ridge(x, np.eye(2)[y], test)[:, 1]
  got = roc.auroc(scores, truth, patients)
  assert got.value == pytest.approx(0.901, abs=0.003)
  assert 0.85 < got.low < got.value < got.high < 0.94


def test_floor_of_shenzhen_cross_validated(test_data):
  with archive(test_data, "ChinaSet_AllFiles.zip") as files:
    names = sorted(n for n in files.namelist() if re.search(r"CXR_png/CHNCXR_\d+_[01]\.png$", n))
    truth = np.array([int(n[-5]) for n in names])
    x = read(files, names)
  assert len(names) == 662
  fold = np.random.default_rng(0).permutation(len(x)) % 5
  scores = np.zeros(len(x), np.float32)
  for f in range(5):
    scores[fold == f] = thumbnail_baseline.ridge(
      x[fold != f], np.eye(2)[truth[fold != f]], x[fold == f]
    )[:, 1]
  assert roc.auroc(scores, truth).value == pytest.approx(0.88, abs=0.015)
