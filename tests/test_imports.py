"""Imports point down only; the contracts stand in pyproject.toml."""

import subprocess
import sys


def test_the_contracts_of_pyproject_are_kept(repository):
  code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
  done = subprocess.run(
    [sys.executable, "-c", code, "--no-cache"], cwd=repository, text=True, capture_output=True
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_training_needs_no_tensorflow_and_no_torch(repository):
  """The base program never imports them; only builders' own command line does."""
  for file in (repository / "cxrjax").rglob("*.py"):
    text = file.read_text()
    for word in ("import tensorflow as", "import tensorflow\n", "import torch"):
      assert word not in text, f"{file} has {word!r}"


def test_main_is_short(repository):
  assert len((repository / "cxrjax" / "main.py").read_text().splitlines()) < 100
