"""One device, eight devices, parameters split or whole, one process or two: the same losses."""

import numpy as np
import pytest
from small import finish, free_port, launch, losses, tiny, two

from cxrjax.tasks import train

STEPS = "6 steps"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "alone"
  train.run(tiny(duration=STEPS), workdir, say=lambda s: None)
  return losses(workdir)


@pytest.mark.full  # the first tier has a step of DINO on eight, tests/methods/test_devices.py
@pytest.mark.parametrize(
  "changes",
  [
    pytest.param({}, id="data-parallel"),
    pytest.param(
      {"mesh__fsdp": 4, "mesh__rules": [("kernel", "fsdp")], "data__storage": "streamed"},
      id="fsdp-streamed",
    ),
  ],
)
def test_eight_devices(alone, tmp_path, changes):
  config = tiny(duration=STEPS, **changes)
  finish(launch(config, tmp_path / "run", devices=8))
  np.testing.assert_allclose(losses(tmp_path / "run"), alone, rtol=2e-4)


@pytest.mark.full
def test_two_processes(alone, tmp_path):
  with two(tiny(duration=STEPS), tmp_path / "run", free_port(), devices=2) as both:
    for process in both:
      finish(process)
  np.testing.assert_allclose(losses(tmp_path / "run"), alone, rtol=2e-4)


@pytest.mark.full
def test_accumulation_equals_one_large_batch(tmp_path):
  # Without batch normalisation, which sees the microbatch.
  for n in (1, 2):
    config = tiny(duration="4 steps", accumulate=n, method__batch_norm=False)
    train.run(config, tmp_path / str(n), say=lambda s: None)
  np.testing.assert_allclose(losses(tmp_path / "2"), losses(tmp_path / "1"), rtol=2e-4)
