"""Durations and schedules, against DINO's own arrays written out in NumPy."""

import math

import numpy as np
import pytest

from cxrjax.core import durations as clocks
from cxrjax.core.errors import UserError


@pytest.fixture
def clock():
  return clocks.Clock.start("10 epochs", num_examples=1000, batch_size=64)


def test_durations(clock):
  assert clock.total_steps == 156
  assert clock.steps("1 epochs") == clock.steps("1 epoch") == 16
  assert clock.steps("5 steps") == 5
  assert clock.steps("1e3 examples") == 16
  assert clock.steps("10 %") == clock.steps("10%") == 16
  assert clock.epoch(156) == pytest.approx(9.984)


@pytest.mark.parametrize("text", ["ten epochs", "10", "epochs", "-3 steps", "", "1 day"])
def test_not_a_duration(clock, text):
  with pytest.raises(UserError, match=r"config\.x=.* is not a duration"):
    clock.steps(text, "config.x")


def test_a_run_has_a_length():
  with pytest.raises(UserError, match="shorter than one step"):
    clocks.Clock.start("1 examples", 1000, 64)
  with pytest.raises(UserError, match="cannot be a percentage"):
    clocks.Clock.start("10 %", 1000, 64)


def test_cosine_with_warmup_is_dinos_array():
  base, final, total, warmup = 0.002, 1e-6, 100, 10
  rise = np.linspace(0, base, warmup)
  i = np.arange(total - warmup)
  fall = final + 0.5 * (base - final) * (1 + np.cos(np.pi * i / len(i)))
  want = np.concatenate([rise, fall])
  schedule = clocks.cosine(base, final, total, warmup)
  np.testing.assert_allclose([float(schedule(s)) for s in range(total)], want, rtol=1e-4, atol=1e-9)


def test_momentum_is_dinos_array():
  i = np.arange(50)
  want = 1 + 0.5 * (0.996 - 1) * (1 + np.cos(np.pi * i / 50))
  schedule = clocks.cosine(0.996, 1.0, 50)
  np.testing.assert_allclose([float(schedule(s)) for s in range(50)], want, rtol=1e-6)


@pytest.mark.parametrize("steps_per_epoch", [4, 78, 311])
def test_stairs_is_dinos_array(steps_per_epoch):
  by_epoch = np.concatenate([np.linspace(0.04, 0.07, 5), np.full(3, 0.07)])
  want = np.repeat(by_epoch, steps_per_epoch)
  schedule = clocks.stairs(0.04, 0.07, 5, float(steps_per_epoch))
  got = [float(schedule(s)) for s in range(8 * steps_per_epoch)]
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_warmup_may_end_one_step_later(clock):
  """MAE's learning rate: a share of the warm-up that is over, then half a cosine."""
  rate = clocks.from_config(
    {"start": 2.0, "end": 0.0, "warmup": "4 steps", "peak": "next"}, clock, "lr"
  )
  n = clock.total_steps
  want = [2 * i / 4 if i < 4 else 1 + math.cos(math.pi * (i - 4) / (n - 4)) for i in range(n)]
  np.testing.assert_allclose([rate(i) for i in range(n)], want, atol=1e-6)
  with pytest.raises(UserError, match=r"lr\.peak='first' is unknown; valid: last, next"):
    clocks.from_config({"start": 2.0, "peak": "first"}, clock, "lr")


def test_linear_is_dinov2s_array(clock):
  """Its teacher's temperature rises step by step, both ends included."""
  rise = clocks.from_config(
    {"kind": "linear", "start": 0.04, "end": 0.07, "warmup": "6 steps"}, clock, "temp"
  )
  want = [*np.linspace(0.04, 0.07, 6), 0.07, 0.07]
  np.testing.assert_allclose([rise(i) for i in range(8)], want, rtol=1e-6)
  assert float(clocks.linear(0.04, 0.07, 0)(0)) == pytest.approx(0.07)


def test_sigmoid_rises_as_in_temporal_ensembling(clock):
  want = [5 * np.exp(-5 * (1 - min(i / 40, 1)) ** 2) for i in range(60)]
  spec = {"kind": "sigmoid", "start": 0.0, "end": 5.0, "warmup": "40 steps"}
  schedule = clocks.from_config(spec, clock, "config.method.weight")
  np.testing.assert_allclose([float(schedule(s)) for s in range(60)], want, rtol=1e-5)
  assert float(clocks.sigmoid(1.0, 3.0, 0)(0)) == 3.0  # no rise
  assert float(clocks.sigmoid(1.0, 3.0, 10)(10)) == 3.0


def test_from_config_rejects_what_it_does_not_know(clock):
  with pytest.raises(UserError, match=r"config\.lr\.begin is not an option"):
    clocks.from_config({"begin": 1}, clock, "config.lr")
  with pytest.raises(UserError, match="longer than the run"):
    clocks.from_config({"start": 1, "warmup": "20 epochs"}, clock, "config.lr")
  with pytest.raises(UserError, match="kind='square' is unknown"):
    clocks.from_config({"start": 1, "kind": "square"}, clock, "config.lr")
  assert float(clocks.from_config(0.5, clock, "config.lr")(3)) == 0.5
