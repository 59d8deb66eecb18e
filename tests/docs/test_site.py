"""The documentation's site: complete, and built without a warning."""

import importlib.util
import pkgutil
import re
import shutil
import subprocess
import sys

import pytest
from small import REPOSITORY

PAGES = sorted(str(p.relative_to(REPOSITORY / "docs")) for p in REPOSITORY.glob("docs/**/*.md"))


def test_every_page_is_in_the_menu_once():
  menu = re.findall(r"([\w/-]+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(), re.M)
  assert sorted(menu) == PAGES


def load(name):
  """A script of docs/ as a module."""
  spec = importlib.util.spec_from_file_location(name, REPOSITORY / "docs" / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_picture_of_the_architecture_is_that_of_the_imports():
  module = load("draw_layers")
  drawn = (REPOSITORY / "docs" / "layers.svg").read_text()
  assert module.draw() == drawn, "run python docs/draw_layers.py"


def test_the_reference_names_what_there_is():
  named = re.findall(r"^::: ([\w.]+)$", (REPOSITORY / "docs/api.md").read_text(), re.M)
  assert len(named) > 20 and len(set(named)) == len(named)
  for name in named:
    pkgutil.resolve_name(name)  # raises where there is none


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="extra `docs`")
def test_the_site_builds_without_a_warning(tmp_path):
  """Links, snippets and docstrings' references; the site has every page and the docstrings."""
  for name in ("docs", "cxrjax"):  # it takes no links out of the project's folder
    shutil.copytree(
      REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__")
    )
  for name in ("README.md", "mkdocs.yml"):
    shutil.copy(REPOSITORY / name, tmp_path / name)
  done = subprocess.run(
    [sys.executable, "-m", "zensical", "build", "--strict"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  for page in PAGES:
    assert (tmp_path / "site" / page).with_suffix(".html").exists(), page
  reference = (tmp_path / "site" / "api.html").read_text()
  assert "cxrjax.losses.dino.cross_entropy" in reference and "Calibrated" in reference
  assert "mimic_cxr_jpg" in (tmp_path / "site/how-to/data-sets.html").read_text()


def test_the_config_page_is_that_of_the_code():
  module = load("write_config_page")
  written = (REPOSITORY / "docs" / "config.md").read_text()
  assert module.page() == written, "run python docs/write_config_page.py"
