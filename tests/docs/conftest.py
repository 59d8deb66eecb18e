"""What documents and notebooks share."""

import os

import pytest


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
  """One folder for all workers of a test run: a command is run, a program compiled once."""
  base = tmp_path_factory.getbasetemp()
  return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "documents"
