"""What the tests of all builders share."""

import tempfile

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """Each test prepares from nothing."""
  monkeypatch.setenv("CXRJAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # TFDS leaves folders behind there


@pytest.fixture
def manual(tmp_path):
  """An empty manual folder."""
  folder = tmp_path / "manual"
  folder.mkdir()
  return folder
