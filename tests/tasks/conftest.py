"""Whole runs save in the background."""

import pathlib

import pytest

HERE = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items):
  """A run that stops in the middle leaves orbax's futures to the garbage collector, which reports
  their errors at any later time; what matters of them the run has raised itself."""
  for item in items:
    if HERE in item.path.parents:
      item.add_marker(
        pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))
