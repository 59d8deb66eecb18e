"""The package as a wheel, installed outside of the clone."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

from small import REPOSITORY


def install(folder: pathlib.Path) -> pathlib.Path:
  """Builds a wheel of what is tracked or new; the folder to put on PYTHONPATH.

  Args:
    folder: where wheel and package go.
  """
  source, place = folder / "source", folder / "place"
  tracked = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard"],
    cwd=REPOSITORY,
    text=True,
    check=True,
    capture_output=True,
  ).stdout.splitlines()
  for name in tracked:
    if (REPOSITORY / name).is_file():  # others were removed
      (source / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(REPOSITORY / name, source / name)
  pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
  wheel = ["wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", str(source)]
  subprocess.run([*pip, *wheel], check=True)
  (built,) = folder.glob("*.whl")
  subprocess.run([*pip, "install", "--no-deps", f"--target={place}", str(built)], check=True)
  return place
