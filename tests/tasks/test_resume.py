"""A run is a function of (config, seed, step), however often it is killed."""

import re
import signal

import numpy as np
import pytest
from small import LENGTH, assert_same, broken, finish, launch, lines, losses, tiny

from cxrjax.core.errors import UserError
from cxrjax.tasks import train


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """Ten steps without interruption."""
  return ten_steps(tmp_path_factory.mktemp("runs") / "straight")


def ten_steps(workdir):
  train.run(tiny(**LENGTH), workdir, say=lambda s: None)
  return workdir


def test_killed_and_started_again_ends_bit_identical(straight, tmp_path):
  config, workdir = broken(tmp_path, at=8, how="SIGKILL"), tmp_path / "run"
  finish(launch(config, workdir, path=tmp_path), -signal.SIGKILL)
  assert len(lines(workdir)) < 10
  out, _ = finish(launch(config, workdir, path=tmp_path))
  assert re.search(r"^resumed from step [36] of 10$", out, re.M)
  assert "damaged" not in out and "metrics.jsonl" not in out
  assert_same(workdir, straight)
  np.testing.assert_array_equal(losses(workdir), losses(straight))
  assert [r["step"] for r in lines(workdir)] == list(range(1, 11))
  # Once finished, it says so and does nothing.
  out, _ = finish(launch(config, workdir, path=tmp_path))
  assert "holds a finished run" in out


@pytest.mark.full
def test_programs_as_users_have_them_end_bit_identical_too(optimised, tmp_path):
  config, workdir = broken(tmp_path, at=8, how="SIGKILL"), tmp_path / "run"
  finish(launch(config, workdir, path=tmp_path), -signal.SIGKILL)
  finish(launch(config, workdir, path=tmp_path))
  finish(launch(tiny(**LENGTH), tmp_path / "straight"))
  assert_same(workdir, tmp_path / "straight")


@pytest.mark.full
def test_sigterm_saves_first(straight, tmp_path):
  config, workdir = broken(tmp_path, at=5, how="SIGTERM"), tmp_path / "run"
  out, _ = finish(launch(config, workdir, path=tmp_path), 128 + signal.SIGTERM)
  assert "stopped by SIGTERM after saving step" in out
  steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
  assert steps[-1] % 3  # between two regular checkpoints
  finish(launch(config, workdir, path=tmp_path))
  assert_same(workdir, straight)


@pytest.mark.full
def test_blocks_of_steps_do_not_change_the_result(straight, tmp_path):
  config = tiny(duration="10 steps", checkpoint__every="5 steps", block=1)
  train.run(config, tmp_path / "run", say=lambda s: None)
  np.testing.assert_allclose(losses(tmp_path / "run"), losses(straight), rtol=1e-5)


@pytest.mark.full
def test_streamed_equals_resident(straight, tmp_path):
  config = tiny(duration="10 steps", data__storage="streamed")
  train.run(config, tmp_path / "run", say=lambda s: None)
  np.testing.assert_allclose(losses(tmp_path / "run"), losses(straight), rtol=1e-5)


def test_a_changed_config_is_refused(straight):
  config = tiny(duration="10 steps", checkpoint__every="3 steps", optimizer__clip=1.0)
  with pytest.raises(UserError, match=r"another config \(config\.optimizer\.clip: 3\.0 -> 1\.0\)"):
    train.run(config, straight, say=lambda s: None)


@pytest.mark.full
def test_a_damaged_checkpoint_is_told_and_survived(straight, tmp_path):
  config, workdir = broken(tmp_path, at=7, how="SIGTERM"), tmp_path / "run"
  finish(launch(config, workdir, path=tmp_path), 128 + signal.SIGTERM)
  newest = max((workdir / "checkpoints").iterdir(), key=lambda p: int(p.name))
  for file in newest.rglob("*"):
    if file.is_file():
      file.write_bytes(file.read_bytes()[:10])
  (workdir / "metrics.jsonl").unlink()
  out, _ = finish(launch(config, workdir, path=tmp_path))
  assert f"{newest.name} is damaged" in out
  assert re.search(r"metrics\.jsonl lacks ([36]) of \1 lines up to step \1", out)
  assert_same(workdir, straight)
