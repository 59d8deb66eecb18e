"""Radiographs to look at: drawn ones always, real ones where the archives are."""

import io
import os
import pathlib
import zipfile

import numpy as np
import PIL.Image
import pytest


@pytest.fixture(scope="session")
def drawn():
  """Four u8[160 160] images with smooth shading, sharp edges, fine lines and noise."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:160, :160] / 160.0
  images = []
  for i in range(4):
    image = 90 + 70 * np.sin(5 * x + i) * np.cos(4 * y) + 12 * rng.standard_normal(x.shape)
    image[40:90, 30 + 9 * i : 60 + 9 * i] = 255
    image[100 + 3 * i : 130, 90:140] = 0
    image[::16] += 40
    images.append(np.clip(image, 0, 255).astype(np.uint8))
  return np.stack(images)


@pytest.fixture(scope="session")
def radiographs():
  """A few real radiographs of each archive in CXRJAX_TEST_DATA, u8[h w]."""
  folder = os.environ.get("CXRJAX_TEST_DATA")
  if not folder:
    pytest.skip("CXRJAX_TEST_DATA is not set")
  images = []
  for path in sorted(pathlib.Path(folder).glob("*.zip")):
    with zipfile.ZipFile(path) as archive:
      names = sorted(
        n
        for n in archive.namelist()
        if n.lower().endswith((".png", ".jpg", ".jpeg")) and "mask" not in n.lower()
      )
      for name in names[:: max(1, len(names) // 4)][:4]:
        images.append(np.asarray(PIL.Image.open(io.BytesIO(archive.read(name))).convert("L")))
  if not images:
    pytest.skip(f"no archive with images in CXRJAX_TEST_DATA={folder}")
  return images
