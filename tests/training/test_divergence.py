"""NaN and collapse stop a run, and the message says what to change."""

import math

import numpy as np
import pytest

from cxrjax.core.durations import Clock
from cxrjax.methods.dino import Method
from cxrjax.models.vit import Model
from cxrjax.training.divergence import Diverged, DivergenceMonitor

CLOCK = Clock(total_steps=100, steps_per_epoch=10.0, batch_size=8)
HEALTHY = {
  "loss": 5.0,
  "grad_norm": 1.0,
  "teacher_entropy": 3.0,
  "kl": 2.0,
  "feature_std": 0.7,
  "batch_entropy": 4.0,
}


@pytest.fixture(scope="module")
def method():
  encoder = Model(variant="Mu", patch_size=8, image_size=16)
  return Method(encoder=encoder, clock=CLOCK, prototypes=256)


def block(**changes):
  return {k: np.full(4, v) for k, v in {**HEALTHY, **changes}.items()}


def test_health_passes(method):
  watch = DivergenceMonitor(method.check_collapse, patience=1, grace=0)
  for step in range(0, 40, 4):
    watch.check(step, block())


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_nan_stops_at_once_and_names_the_step(method, name):
  metrics = block()
  metrics[name][2] = math.nan
  with pytest.raises(Diverged, match=rf"{name} became nan at step 42; lower config\.optimizer\.lr"):
    DivergenceMonitor(method.check_collapse, patience=3, grace=100).check(40, metrics)


@pytest.mark.parametrize(
  "changes,finding",
  [
    (
      {"teacher_entropy": math.log(256), "kl": 0.0},
      r"ln 256 = 5\.5452.*config\.method\.teacher_temp",
    ),
    ({"feature_std": 0.001}, "same features"),
    ({"batch_entropy": 0.001}, "one prototype"),
  ],
)
def test_collapse_stops_after_patience_and_not_in_the_grace(method, changes, finding):
  watch = DivergenceMonitor(method.check_collapse, patience=3, grace=20)
  for step in range(0, 20, 4):
    watch.check(step, block(**changes))
  watch.check(20, block(**changes))
  watch.check(24, block(**changes))
  watch.check(28, block())  # a recovery starts the count again
  watch.check(32, block(**changes))
  watch.check(36, block(**changes))
  with pytest.raises(Diverged, match=finding):
    watch.check(40, block(**changes))
