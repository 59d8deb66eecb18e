"""Which tests a command runs."""

import re
import subprocess
import sys

import pytest
from small import REPOSITORY

FILE = "tests/tasks/test_bits.py"  # of the full tier alone
TEST = "test_a_run_on_sixteen_bits"


@pytest.mark.full
@pytest.mark.parametrize(
  ("arguments", "tests", "status"),
  [
    ((FILE,), 0, 5),  # pytest's status where nothing was left to run
    (("--all", FILE), 1, 0),
    (("--all", "-m", "full", FILE), 1, 0),
    ((f"{FILE}::{TEST}",), 1, 0),
  ],
)
def test_the_full_tier_is_for_all_and_for_a_name(arguments, tests, status):
  found = subprocess.run(
    [sys.executable, "-m", "pytest", "--collect-only", *arguments],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
  )
  assert found.returncode == status, found.stdout + found.stderr
  assert len(re.findall(rf"^{FILE}::{TEST}$|^{FILE}: 1$", found.stdout, re.M)) == tests


def test_every_test_of_a_machine_of_its_own_or_another_library_is_in_the_full_tier():
  for path in (REPOSITORY / "tests").rglob("test_*.py"):
    text = path.read_text()
    if re.search(r'importorskip\("(torch|timm|transformers)"\)', text):
      assert "pytestmark = pytest.mark.full" in text, path.name
