"""How much memory a process says it took."""

import pathlib

import numpy as np
import pytest

from cxrjax.core import memory


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs Linux")
def test_the_peak_is_of_all_that_was_held():
  before = memory.peak()["peak_rss_bytes"]
  held = np.ones(1 << 27, np.uint8)  # touched, so that it is there
  size, much = held.nbytes, memory.peak()["peak_rss_bytes"]
  assert 5e7 < before <= much < 1e12
  # More than it has now: bytes, neither kilobytes nor pages.
  with open("/proc/self/status") as file:
    now = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))
  assert much >= 0.98 * now > size
  del held
  assert memory.peak()["peak_rss_bytes"] >= much
