"""The package as it is installed: built, unpacked elsewhere, and used from any folder."""

import os
import subprocess
import sys

import pytest
from small import HANGS


@pytest.fixture(scope="module")
def installed(package, tmp_path_factory):
  """Runs a program of the installed package in a folder of its own; status and what it said."""
  work = tmp_path_factory.mktemp("work")
  environment = os.environ | {"PYTHONPATH": str(package), "JAX_PLATFORMS": "cpu"}

  def run(*arguments):
    done = subprocess.run(
      [sys.executable, *arguments],
      cwd=work,
      env=environment,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      timeout=HANGS,
    )
    return done.returncode, done.stdout

  run.work, run.place, run.environment = work, package, environment
  return run


def ends_well(answer):
  status, text = answer
  assert status == 0, text
  return text


@pytest.mark.full
def test_configs_are_found_by_name_and_path_from_any_folder(installed):
  text = ends_well(installed("-m", "cxrjax.main", "--config=dino:tiny", "--workdir=a"))
  assert "report.html" in text and (installed.work / "a" / "report.html").is_file()
  ends_well(installed("-m", "cxrjax", "train", "configs/finetune.py:tiny,init=a", "--workdir=b"))
  status, text = installed("-m", "cxrjax.main", "--config=dyno:tiny")
  assert status == 2 and "did you mean 'dino'?" in text and "Traceback" not in text


@pytest.mark.full
def test_the_zoo_predicts_the_films_that_come_along(installed):
  films = installed.place / "cxrjax" / "data" / "mini" / "films.zip"
  out = installed.work / "lungs"
  ends_well(installed("-m", "cxrjax", "predict", "--workdir=zoo:lungs", str(films), f"--out={out}"))
  assert len(list((out / "masks").rglob("*.png"))) == 1600


@pytest.mark.full
def test_published_sets_are_prepared_by_the_builders_that_come_along(installed, test_data):
  installed.environment["TFDS_DATA_DIR"] = str(installed.work / "tfds")
  text = ends_well(
    installed(
      "-m",
      "cxrjax.main",
      f"--config=finetune:tiny,data=tfds:nlm_tb/shenzhen,manual_dir={test_data}",
      "--workdir=tb",
    )
  )
  assert "report.html" in text
  folder = ends_well(installed("-m", "cxrjax", "folder", "tfds_builders")).strip()
  assert folder == str(installed.place / "cxrjax" / "tfds_builders")
